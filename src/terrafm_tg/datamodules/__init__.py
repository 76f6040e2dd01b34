"""Datamodules: what feeds the Trainer with native-resolution tiles, or with labelled images for fine-tuning."""

from .bench import BenchDataModule
from .cache import CachedTiles
from .faults import DamageLog, FaultTolerant
from .in_memory import InMemoryDataModule
from .loader import TileDataLoader
from .major_tom import MajorTOMDataModule
from .mmearth import MMEarthDataModule
from .packed import PackedDataModule
from .sensor_oscd import SensorOSCDDataModule
from .sensors import SensorDataModule
from .sentinel_folder import SentinelFolderDataModule
from .simulated import SimulatedDataModule
from .split import even_pick, split_blocks
from .ssl4eo import SSL4EOS12DataModule
from .tiles import TileDataModule

__all__ = [
    "BenchDataModule",
    "CachedTiles",
    "DamageLog",
    "FaultTolerant",
    "InMemoryDataModule",
    "MMEarthDataModule",
    "MajorTOMDataModule",
    "PackedDataModule",
    "SSL4EOS12DataModule",
    "SensorDataModule",
    "SensorOSCDDataModule",
    "SentinelFolderDataModule",
    "SimulatedDataModule",
    "TileDataLoader",
    "TileDataModule",
    "even_pick",
    "split_blocks",
]

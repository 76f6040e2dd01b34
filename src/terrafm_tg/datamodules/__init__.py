"""Datamodules: what feeds the Trainer with batches of native-resolution tiles."""

from .cache import CachedTiles
from .faults import DamageLog, FaultTolerant
from .loader import TileDataLoader
from .major_tom import MajorTOMDataModule
from .sentinel_folder import SentinelFolderDataModule
from .simulated import SimulatedDataModule
from .split import even_pick, split_blocks
from .tiles import TileDataModule

__all__ = [
    "CachedTiles",
    "DamageLog",
    "FaultTolerant",
    "MajorTOMDataModule",
    "SentinelFolderDataModule",
    "SimulatedDataModule",
    "TileDataLoader",
    "TileDataModule",
    "even_pick",
    "split_blocks",
]

"""Datamodules: what feeds the Trainer with native-resolution tiles, or with labelled images for fine-tuning."""

from .labelled import SensorDataModule, SensorOSCDDataModule
from .loading.cache import CachedTiles
from .loading.faults import DamageLog, FaultTolerant
from .loading.loader import TileDataLoader
from .loading.split import even_pick, split_blocks
from .sources import (
    MajorTOMDataModule,
    MixedDataModule,
    MMEarthDataModule,
    PackedDataModule,
    SentinelFolderDataModule,
    SimulatedDataModule,
    SSL4EOS12DataModule,
)
from .tiles import TileDataModule

__all__ = [
    "CachedTiles",
    "DamageLog",
    "FaultTolerant",
    "MMEarthDataModule",
    "MajorTOMDataModule",
    "MixedDataModule",
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

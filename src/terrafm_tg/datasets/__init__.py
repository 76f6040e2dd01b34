"""Datasets: tiles of Sentinel-1 and Sentinel-2, land cover, and the simulated world."""

from .base import TileDataset, TileSlice, collate_tiles
from .bigearthnet import BigEarthNetS1, BigEarthNetS2
from .dfc2020 import DFC2020S1, DFC2020S2
from .esa_worldcover import ESAWorldCover
from .index import build_index
from .major_tom import MajorTOM
from .mmearth import MMEarthTiles
from .packed import PackedTiles
from .sensor_pairs import SensorPairs
from .sentinel_folder import SentinelFolder
from .simulated import SimulatedWorld, simulate
from .ssl4eo import SSL4EOS12Tiles

__all__ = [
    "DFC2020S1",
    "DFC2020S2",
    "BigEarthNetS1",
    "BigEarthNetS2",
    "ESAWorldCover",
    "MMEarthTiles",
    "MajorTOM",
    "PackedTiles",
    "SSL4EOS12Tiles",
    "SensorPairs",
    "SentinelFolder",
    "SimulatedWorld",
    "TileDataset",
    "TileSlice",
    "build_index",
    "collate_tiles",
    "simulate",
]

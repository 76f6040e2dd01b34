"""Datasets: tiles of Sentinel-1 and Sentinel-2, land cover, and the simulated world."""

from .base import TileDataset, TileSlice, collate_tiles
from .esa_worldcover import ESAWorldCover
from .index import build_index
from .major_tom import MajorTOM
from .sentinel_folder import SentinelFolder
from .simulated import SimulatedWorld, simulate

__all__ = [
    "ESAWorldCover",
    "MajorTOM",
    "SentinelFolder",
    "SimulatedWorld",
    "TileDataset",
    "TileSlice",
    "build_index",
    "collate_tiles",
    "simulate",
]

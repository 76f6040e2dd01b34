"""Datasets: tiles of Sentinel-1 and Sentinel-2, and land cover."""

from .esa_worldcover import ESAWorldCover
from .folder.dataset import SentinelFolder
from .index.build import build_index
from .labelled import DFC2020S1, DFC2020S2, BigEarthNetS1, BigEarthNetS2, SensorPairs
from .majortom.dataset import MajorTOM
from .mixed import MixedTiles
from .mmearth import MMEarthTiles
from .scenes.stac.catalog import open_stac
from .scenes.stac.search import StacSearch
from .ssl4eo import SSL4EOS12Tiles
from .store.dataset import PackedTiles
from .tiles.dataset import TileDataset, TileSlice, collate_tiles

__all__ = [
    "DFC2020S1",
    "DFC2020S2",
    "BigEarthNetS1",
    "BigEarthNetS2",
    "ESAWorldCover",
    "MMEarthTiles",
    "MajorTOM",
    "MixedTiles",
    "PackedTiles",
    "SSL4EOS12Tiles",
    "SensorPairs",
    "SentinelFolder",
    "StacSearch",
    "TileDataset",
    "TileSlice",
    "build_index",
    "collate_tiles",
    "open_stac",
]

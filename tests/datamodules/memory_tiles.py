"""Tiles made from their row number, for tests of what lies between a dataset and the Trainer."""

import mmap
from collections.abc import Callable, Collection, Sequence

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from terrafm_tg.datamodules import TileDataModule
from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality


def make_index(rows: np.ndarray, cols: np.ndarray, land_cover: Sequence[int] | None = None) -> gpd.GeoDataFrame:
    """Four tiles in each of the cells; land cover repeats along the tiles. Every third cell lacks S1."""
    lat, lon = (np.repeat(x, 4) for x in grid.corners(rows, cols))
    quadrant = np.tile(np.arange(4), len(rows))
    half_height, half_width = 90 / grid.ROWS, np.repeat(180 / grid.cells_per_row(rows), 4)
    x, y = lon + quadrant % 2 * half_width, lat + (1 - quadrant // 2) * half_height
    times = np.full(len(x), np.datetime64("2021-06-01"), "datetime64[ns]")
    return gpd.GeoDataFrame(
        {
            "cell": np.repeat(grid.names(rows, cols), 4),
            "quadrant": quadrant,
            "epsg": 32631,
            "land_cover": np.resize([0, 1, 2, 3] if land_cover is None else land_cover, len(x)),
            "has_s1rtc": np.repeat(np.arange(len(rows)) % 3 > 0, 4),
            "has_s2l2a": True,
        },
        index=pd.IntervalIndex.from_arrays(times, times + np.timedelta64(1, "D"), closed="both", name="datetime"),
        geometry=shapely.box(x, y, x + half_width, y + half_height),
        crs=4326,
    )


def square(edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a square of cells near 0° N 3° E."""
    rows, cols = np.divmod(np.arange(edge * edge), edge)
    return rows, cols + 33


class MemoryTiles(TileDataset):
    """Each pixel holds the row's number and the band's; ``reads`` counts decodings, of all processes."""

    def __init__(self, index: gpd.GeoDataFrame, damaged: Collection[int] = (), size: int = 12) -> None:
        super().__init__(index, native=True, tile_size=size)
        self.damaged = set(damaged)
        self.reads = np.frombuffer(mmap.mmap(-1, 4 * len(index) * 2), np.int32).reshape(-1, 2)

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        self.reads[row, self.modalities.index(modality)] += 1
        if row in self.damaged:
            raise DamagedTileError(f"{self.name(row)} {modality.name}", "the file is truncated")
        dtype = np.float32 if modality.name == "s1rtc" else np.uint16
        return {
            res: np.full((len(bands), size, size), 1 + row, dtype) + np.arange(len(bands), dtype=dtype)[:, None, None]
            for res, bands in modality.native.items()
            if (size := self.tile_size * 10 // res)
        }


class Changed(MemoryTiles):
    """Tiles of which the index's second half has other pixels: what ``change`` makes of a modality's group."""

    def __init__(self, index: gpd.GeoDataFrame, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
        super().__init__(index)
        self.change = change

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        groups = super()._read(row, modality)
        return groups if row < len(self) // 2 else {r: self.change(modality.name, x) for r, x in groups.items()}


class MemoryDataModule(TileDataModule):
    """The square of cells above, as a datamodule."""

    def __init__(self, edge: int = 6, damaged: Collection[int] = (), **kwargs) -> None:
        self.index, self.broken = make_index(*square(edge)), damaged
        super().__init__(**{"batch_size": 4, "num_workers": 0, "val_block": 2, **kwargs})

    def make_dataset(self) -> MemoryTiles:
        return MemoryTiles(self.index, self.broken)

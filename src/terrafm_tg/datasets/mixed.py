"""Tiles of several archives in one dataset, such as one of 4 bands and one of 13, or of other tile sizes."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from rasterio.windows import Window
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import NODATA, linear_power
from terrafm_tg.utils.arguments import checked

from .tiles.bands import at_own_resolution
from .tiles.dataset import TileDataset, check_tile_size
from .tiles.outlines import GRID, boxes
from .tiles.pixels import crop
from .tiles.table import ALIGNMENT, TIMES, with_sizes

#: Columns that stay, besides ``has_<modality>`` and ``bands_<modality>``, and what they are where an archive has none.
_COLUMNS = {"cell": None, "quadrant": 0, "epsg": 0, "land_cover": -1, "climate": -1, "region": -1, "ocean": False}


@checked()
class MixedTiles(TileDataset):
    """The tiles of several datasets of tiles, one dataset after the other.

    All have the size of the smallest tiles: larger ones are cut, from the upper left corner, and what is left at the
    edges is not used. So that tiles of all archives fit into one batch, bands that an archive stores finer than their
    own resolution are averaged down to it, and radar is handed out as linear power. A tile in a source that is smaller
    than its archive's ``tile_size`` is left out with a warning.

    The column ``archive`` of the table is the number of the dataset that a tile is of: ``by=["archive", "land_cover"]``
    draws rare archives as often as common ones.

    Args:
        sources: Datasets with ``native=True``.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that any source has where None.
        tile_size: Edge of all tiles in pixels of 10 m, a multiple of 6; that of the smallest where None.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If there is no source, one is not native, or no tile is as large as that.
    """

    def __init__(
        self,
        sources: Sequence[TileDataset],
        modalities: Sequence[str] | None = None,
        tile_size: int | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        if not sources or not all(source.native for source in sources):
            raise TerraFMError(
                f"`sources` are {len(sources)} datasets: give one or more, each made with `native=True`."
            )
        size = min(map(_edge, sources)) if tile_size is None else tile_size
        check_tile_size(size)
        self.sources, self.root = list(sources), sources[0].root
        tables = [_cut_rows(source, number, size) for number, source in enumerate(sources)]
        super().__init__(_concatenate(tables, size), modalities, True, size, transforms)

    def name(self, row: int) -> str:
        """Returns the name of the tile in its archive, which comes first."""
        source, own, _ = self._place(row)
        return f"{source.root}/{source.name(own)}"

    def _place(self, row: int) -> tuple[TileDataset, int, Window]:
        """Finds a tile's dataset, its row there, and its place in that row's tile."""
        source, own, top, left = (int(self._arrays[name][row]) for name in ("archive", "_row", "_top", "_left"))
        return self.sources[source], own, Window(left, top, self.tile_size, self.tile_size)

    def expect(self, rows: Sequence[int]) -> None:
        """Tells each archive which of its tiles are read next."""
        places = [self._place(row)[:2] for row in rows]
        for source in {id(source): source for source, _ in places}.values():
            source.expect([own for other, own in places if other is source])

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray] | None:
        source, own, window = self._place(row)
        return self._fitted(source._read(own, modality), window)

    def _read_together(self, row: int, modality: Modality) -> dict[int, dict[int, np.ndarray] | None]:
        source, own, _ = self._place(row)
        groups = source._read_together(own, modality)
        archive, rows = (np.asarray(self._arrays[name]) for name in ("archive", "_row"))
        here = np.flatnonzero((archive == archive[row]) & np.isin(rows, list(groups)))
        return {int(at): self._fitted(groups[int(rows[at])], self._place(int(at))[2]) for at in here}

    def _fitted(self, groups: dict[int, np.ndarray] | None, window: Window) -> dict[int, np.ndarray] | None:
        """Returns the tile's part of native groups, in the form in which all tiles come."""
        if groups is None:
            return None
        size = groups[10].shape[-2:]
        groups = at_own_resolution({resolution: crop(group, window, size) for resolution, group in groups.items()})
        for resolution, group in groups.items():
            if group.dtype == np.int16:  # radar in steps of 0.01 dB
                power = linear_power(torch.from_numpy(np.ascontiguousarray(group))).numpy()
                groups[resolution] = np.where(group == NODATA, np.float32(NODATA), power)
        return groups


def _edge(source: TileDataset) -> int:
    """Returns the edge of a dataset's largest tiles, which may be smaller than its ``tile_size``."""
    sides = [source.table[side] for side in ("height", "width") if side in source.table]
    largest = int(np.minimum(*sides).max()) if sides else source.tile_size
    return min(largest, source.tile_size) // ALIGNMENT * ALIGNMENT


def _cut_rows(source: TileDataset, number: int, size: int) -> pd.DataFrame:
    """Makes the rows of one dataset: as many for each of its tiles as fit into it."""
    table = source.table
    kept = [c for c in table if c in (*_COLUMNS, *TIMES, *GRID) or c.startswith(("has_", "bands_", "offset_"))]
    table = table[kept].assign(archive=np.int16(number), _row=np.arange(len(table), dtype=np.int32))
    if getattr(source, "harmonize", True):  # it takes them off as it reads
        table = table.assign(**{column: np.int16(0) for column in kept if column.startswith("offset_")})
    if "x" not in table:  # of a table with polygons
        table[["x", "y"]] = [source._footprints.origin(row) for row in range(len(table))]
    table = with_sizes(table, source.tile_size)
    down, across = (table[side].to_numpy() // size for side in ("height", "width"))
    if (left_out := down * across == 0).any():
        warnings.warn(
            f"{left_out.sum():,} of {len(table):,} tiles of {source.root} are smaller than {size} pixels and left out: "
            "lower `tile_size` to have them.",
            stacklevel=4,
        )
    rows = np.repeat(np.arange(len(table)), down * across)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(down * across) - down * across, down * across)
    tiles = table.iloc[rows].reset_index(drop=True)
    top, left = nth // across[rows] * size, nth % across[rows] * size
    return tiles.assign(
        quadrant=(tiles["quadrant"] * (down * across)[rows] + nth).astype(np.int32),
        x=tiles["x"] + left * tiles["xres"],
        y=tiles["y"] - top * tiles["yres"],
        height=np.int32(size),
        width=np.int32(size),
        _top=top.astype(np.int32),
        _left=left.astype(np.int32),
    )


def _concatenate(tables: Sequence[pd.DataFrame], size: int) -> pd.DataFrame:
    """Joins tables one below the other; a column that some lack is there what stands for none."""
    by = ("climate", "region")  # of an index; a mixture always has them, so that its overlay can name them
    names = dict.fromkeys((*(name for table in tables for name in table), *by))
    none = {name: False if name.startswith("has_") else _COLUMNS.get(name, 0) for name in names}
    texts = [name for name in names if name == "cell" or name.startswith("bands_")]
    columns: dict[str, Any] = {
        name: np.concatenate([t[name] if name in t else np.full(len(t), none[name]) for t in tables])
        for name in names
        if name not in texts
    }
    for name in texts:
        parts = [pd.Categorical(t[name] if name in t else [None] * len(t), dtype=None) for t in tables]
        parts = [part.rename_categories(part.categories.astype(str)) for part in parts]
        columns[name] = union_categoricals(parts)
    table = pd.DataFrame(columns)
    if table.empty:
        raise TerraFMError(f"No tile is as large as {size} pixels: lower `tile_size`.")
    return table.assign(**boxes(table, size))

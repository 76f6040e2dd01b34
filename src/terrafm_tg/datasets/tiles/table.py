"""The tile table: the tile index without its polygons, which are gigabytes of objects at millions of tiles.

It is a plain data frame with a row per tile, counted from 0. Besides the columns of the index it has

* ``datetime_start`` and ``datetime_stop`` instead of the index' intervals;
* ``xmin``, ``ymin``, ``xmax``, ``ymax``: the box around the footprint in EPSG:4326;
* ``x`` and ``y``: the tile's upper left corner in its own CRS, ``epsg``, from which the footprint is computed
  when somebody asks for it; ``xres``, ``yres``, ``height`` and ``width`` too where tiles are not all of one
  size. A table that was made from given polygons keeps them as ``geometry``;
* ``cell`` as a categorical column, as names are best held that repeat; lists (``land_cover_share``) and names of
  products as Arrow holds them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj
import shapely
from geopandas import GeoDataFrame
from pyproj import CRS

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import OFFSET, UNKNOWN
from terrafm_tg.utils.shared import derived, names_dtype

from .outlines import BOX, GRID, edges, is_geographic, middle, outlines, to_zones, transformer, turned


def as_table(index: pd.DataFrame) -> pd.DataFrame:
    """Returns the tile table of a tile index; a table stays as it is."""
    if not isinstance(index, GeoDataFrame):
        return index
    west, south, east, north = index.geometry.bounds.to_numpy().T
    table = pd.DataFrame(index.reset_index(drop=True)).rename(columns={index.geometry.name: "geometry"})
    columns: dict[str, Any] = dict(zip(BOX, (west, south, east, north), strict=True))
    columns |= dict(zip(TIMES, (index.index.left, index.index.right), strict=True))
    return table.assign(cell=table["cell"].astype("category"), **columns)


def as_index(table: pd.DataFrame, tile_size: int | None = None, crs: CRS | str = "EPSG:4326") -> GeoDataFrame:
    """Returns the tile index of a tile table: footprints on TorchGeo's IntervalIndex."""
    geometry = table["geometry"].array if "geometry" in table else outlines(table, tile_size)
    rest = with_categories(table.drop(columns=[*BOX, *TIMES, "geometry"], errors="ignore"))
    lists = [name for name, column in rest.items() if isinstance(column.dtype, pd.ArrowDtype)]
    rest = rest.astype(dict.fromkeys(lists, object))  # as geopandas can write and read them
    rest.index = pd.IntervalIndex.from_arrays(*(table[name] for name in TIMES), closed="both", name="datetime")
    return GeoDataFrame(rest, geometry=geometry, crs=crs)


def categorical(column: pa.ChunkedArray) -> pd.Categorical:
    """Converts names that repeat; pyarrow's own way makes a Python object of each."""
    chunks = column.unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks])
    names = chunks[0].dictionary
    if names.null_count or len(names.unique()) < len(names):
        raise ValueError("the names of a column must be unique, and none missing")
    return pd.Categorical.from_codes(codes, dtype=names_dtype(names), validate=False)


def with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """Converts names in Arrow to categories, of which a few rows take little memory."""
    in_arrow = {
        name: pd.Series(categorical(pa.table({name: column})[name]), table.index)
        for name, column in table.items()
        if isinstance(column.dtype, pd.ArrowDtype) and pa.types.is_dictionary(column.dtype.pyarrow_dtype)
    }
    return table.assign(**in_arrow)


def times(start: pd.Series, stop: pd.Series) -> dict[str, np.ndarray]:
    """Returns the columns ``datetime_start`` and ``datetime_stop``: a tile without any date is valid for all time."""
    limits = pd.Timestamp.min.ceil("us").as_unit("us"), pd.Timestamp.max.floor("us").as_unit("us")
    return {
        name: column.astype("datetime64[us]").fillna(limit).to_numpy()
        for name, column, limit in zip(TIMES, (start, stop), limits, strict=True)
    }


#: Tile edges are a multiple of this many 10 m pixels, so that 20 and 60 m pixels end on them too.
ALIGNMENT = 6
#: Longest edge of a tile in pixels: what a file declares beyond it is not read.
MAX_TILE = 4092
#: Columns of a tile table: the time that a tile is valid for.
TIMES = ("datetime_start", "datetime_stop")


def with_sizes(table: pd.DataFrame, tile_size: int) -> pd.DataFrame:
    """Adds the last four columns of ``GRID`` where a table leaves them to its dataset: tiles of 10 m pixels."""
    usual = zip(GRID[3:], (10.0, 10.0, np.int32(tile_size), np.int32(tile_size)), strict=True)
    return table.assign(**{name: value for name, value in usual if name not in table})


class TileSlice(tuple[slice, slice, slice]):
    """A GeoSlice ``(x, y, t)`` that knows its index row and its position in the epoch.

    Args:
        slices: x, y (in the index' CRS) and t.
        row: Row of the dataset's index.
        position: Place in the epoch's one global list of draws; -1 when no sampler drew it.
        epoch: The epoch in which it was drawn.
    """

    row: int
    position: int
    epoch: int

    def __new__(cls, slices: tuple[slice, slice, slice], row: int, position: int = -1, epoch: int = 0) -> "TileSlice":
        """Makes the tuple; see the class."""
        self = super().__new__(cls, slices)
        self.row, self.position, self.epoch = row, position, epoch
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.row, self.position, self.epoch


class Footprints:
    """Place and time of the tiles of a table, as arrays: pandas takes too long to be asked at every read."""

    def __init__(self, table: pd.DataFrame, tile_size: int, crs: pyproj.CRS) -> None:
        self.table, self.tile_size, self.crs = table, tile_size, crs.to_string()
        self.round = crs.is_geographic  # its x is an angle
        self.west, self.south, self.east, self.north = (table[name].to_numpy() for name in BOX)
        self.start, self.stop = (table[name].to_numpy() for name in TIMES)
        self.epsg = table["epsg"].to_numpy()

    def times(self, row: int) -> tuple[pd.Timestamp, pd.Timestamp]:
        """Returns the first and the last moment for which a tile is valid."""
        return pd.Timestamp(self.start[row]), pd.Timestamp(self.stop[row])

    def slices(self, row: int, res: tuple[float, float]) -> tuple[slice, slice, slice]:
        """Returns the box around one tile, and its time."""
        return (
            slice(self.west.item(row), self.east.item(row), res[0]),
            slice(self.south.item(row), self.north.item(row), res[1]),
            slice(*self.times(row), 1),
        )

    def extent(self, res: tuple[float, float]) -> tuple[slice, slice, slice]:
        """Returns the box around all tiles, and all their times; the narrowest where some lie across 180 degrees."""
        west, east = float(self.west.min()), float(self.east.max())
        if self.round and east > 180:
            order = np.argsort(self.west)
            starts, stops = self.west[order], np.maximum.accumulate(self.east[order])
            gaps = np.append(starts[1:], west + 360) - stops
            last = int(gaps.argmax())
            if gaps[last] <= 0:
                west, east = -180.0, 180.0
            elif last < len(order) - 1:
                west, east = float(starts[last + 1]), float(stops[last] + 360)
        return (
            slice(west, east, res[0]),
            slice(float(self.south.min()), float(self.north.max()), res[1]),
            slice(pd.Timestamp(self.start.min()), pd.Timestamp(self.stop.max()), 1),
        )

    def find(self, x: slice, y: slice, t: slice) -> int | None:
        """Finds the tile over the slices' center at that time; of several, the one whose center is nearest.

        Longitude is a circle: the slices may lie at any turn of it, and ``x.stop`` may lie west of ``x.start``, across
        180 degrees. A slice that is the box around a tile means that tile, also where its center lies beside it (at a
        pole).
        """
        first, last = (pd.Timestamp(limit).to_datetime64() for limit in (t.start, t.stop))
        when = (self.start <= last) & (self.stop >= first)
        east, north = middle(x, self.round), (y.start + y.stop) / 2
        near = np.flatnonzero(when & (self.south <= north) & (self.north >= north))
        ahead = turned(east, self.west[near]) if self.round else np.full(len(near), east)
        over = (self.west[near] <= ahead) & (self.east[near] >= ahead)
        near, ahead = near[over], ahead[over]
        away = self._away(near, ahead, north)
        if np.isfinite(away).any():
            return int(near[np.argmin(away)])
        same = (self.west == x.start) & (self.east == x.stop) & (self.south == y.start) & (self.north == y.stop) & when
        return int(same.argmax()) if same.any() else None

    def _away(self, rows: np.ndarray, lon: np.ndarray, lat: float) -> np.ndarray:
        """Returns how far the centers of some tiles are from places, in meters; inf where a tile is not over its."""
        if "geometry" in self.table:
            over = shapely.intersects(self.outlines(rows), shapely.points(lon, lat))
            across, up = (self.west[rows] + self.east[rows]) / 2 - lon, (self.south[rows] + self.north[rows]) / 2 - lat
            around = np.cos(np.radians(lat)) if self.round else 1.0
            return np.where(over, np.hypot(across * around, up), np.inf)
        left, top, right, bottom = edges(self.table.iloc[rows], self.tile_size)
        x, y = to_zones(lon, np.full(len(rows), lat), self.epsg[rows])
        degrees = np.array([is_geographic(code) for code in self.epsg[rows].tolist()], bool)
        x = np.where(degrees, turned(x, left), x)
        over = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
        across, up = (left + right) / 2 - x, (top + bottom) / 2 - y
        meters = np.where(degrees, 111_320.0, 1.0)
        around = np.where(degrees, np.cos(np.radians(lat)), 1.0)
        return np.where(over, meters * np.hypot(across * around, up), np.inf)

    def outlines(self, rows: np.ndarray) -> np.ndarray:
        """Returns footprints of some tiles, (n,) polygons: those given, else computed from the tiles' corners."""
        if "geometry" in self.table:
            return np.asarray(self.table["geometry"].array[rows])
        grid = self.table[[name for name in GRID if name in self.table]]
        return outlines(grid.iloc[rows], self.tile_size)

    def origin(self, row: int) -> tuple[float, float]:
        """Returns the upper left corner of a tile in its own CRS."""
        if "x" in self.table:
            return self._corners[0].item(row), self._corners[1].item(row)
        x, y = self._transformer(row).transform(*shapely.get_coordinates(self.table["geometry"].array[row]).T)
        return float(min(x)), float(max(y))

    def in_tile_crs(self, row: int, x: slice, y: slice) -> tuple[float, float, float, float]:
        """Converts a box of the index' CRS to (left, bottom, right, top) in the tile's own."""
        west, east = x.start, x.stop + 360 * (self.round and x.stop < x.start)
        west, south, east, north = self._transformer(row).transform_bounds(west, y.start, east, y.stop)
        if is_geographic(int(self.epsg[row])):  # to the turn that the tile is written in
            east += 360 * (east < west)
            center = (west + east) / 2
            turn = float(turned(center, self.origin(row)[0] - 180)) - center
            west, east = west + turn, east + turn
        return west, south, east, north

    def _transformer(self, row: int) -> pyproj.Transformer:
        return transformer(self.crs, int(self.epsg[row]))

    @cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        return self.table["x"].to_numpy(), self.table["y"].to_numpy()


def resolve_offsets(index: pd.DataFrame, modalities: Sequence[str] | None, ambiguous: str) -> pd.DataFrame:
    """Decides the unknown offsets of a tile table by the user's setting.

    Args:
        index: A tile index with ``has_<modality>`` and ``offset_<modality>``, -1 where unknown.
        modalities: The names that will be read; all where None.
        ambiguous: ``"present"`` (take 1000 off), ``"absent"``, ``"drop"`` (leave the modality out there),
            ``"error"``.

    Returns:
        The index with every offset 0 or more.

    Raises:
        TerraFMError: If the setting is unknown, or is ``"error"`` and an offset is unknown.
    """
    if ambiguous not in ("error", "present", "absent", "drop"):
        raise TerraFMError(f"`ambiguous_offset` must be 'error', 'present', 'absent' or 'drop', got {ambiguous!r}.")
    rows = {
        name: index[f"has_{name}"].to_numpy() & (index[f"offset_{name}"].to_numpy() == UNKNOWN)
        for name in (MODALITIES if modalities is None else modalities)
        if f"offset_{name}" in index
    }
    unknown = {name: where for name, where in rows.items() if where.any()}
    if not unknown:
        return index
    if ambiguous == "error":
        name, where = next(iter(unknown.items()))
        advice = "index their source (`terrafm index` asks the pixels), or set"
        if f"verdict_{name}" in index:  # they were asked
            advice = "set `offset` to 0 or 1000, which all images then hold, or, for those alone,"
        row = index.iloc[int(where.argmax())]
        first = " in ".join(str(row[key]) for key in (f"product_{name}", "cell") if key in row)
        raise TerraFMError(
            f"Whether {name} holds the +1000 DN of baseline 04.00 is not known for {where.sum():,} of "
            f"{index[f'has_{name}'].sum():,} tiles, first {first}: {advice} "
            "`ambiguous_offset` to 'present' (1000 is taken off), 'absent' (nothing is) or 'drop' (left out there)."
        )

    def decide(table: pd.DataFrame) -> pd.DataFrame:
        for name, where in unknown.items():
            offsets = np.where(where, OFFSET if ambiguous == "present" else 0, table[f"offset_{name}"])
            table = table.assign(**{f"offset_{name}": offsets.astype(np.int16)})
            if ambiguous == "drop":
                table = table.assign(**{f"has_{name}": table[f"has_{name}"].to_numpy() & ~where})
        return table

    return derived(index, f"offsets {[*unknown]} {ambiguous}", decide)

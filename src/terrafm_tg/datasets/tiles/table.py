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

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property, lru_cache
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
    names = pd.StringDtype(na_value=np.nan).__from_arrow__(chunks[0].dictionary)
    # Whether names differ is checked on objects, which stay with the original for good: a copy is without them.
    kind = deepcopy(pd.CategoricalDtype(pd.Index(names)))
    return pd.Categorical.from_codes(codes, dtype=kind, validate=False)


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
#: Columns of a tile table: the box around each footprint in EPSG:4326, and the time it is valid for.
BOX = ("xmin", "ymin", "xmax", "ymax")
TIMES = ("datetime_start", "datetime_stop")
#: Columns of which a footprint is computed; the last four where tiles are not of one size.
GRID = ("epsg", "x", "y", "xres", "yres", "height", "width")
_CHUNK = 1 << 18  # rows whose footprints are computed at once


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
        """Returns the box around all tiles, and all their times."""
        return (
            slice(float(self.west.min()), float(self.east.max()), res[0]),
            slice(float(self.south.min()), float(self.north.max()), res[1]),
            slice(pd.Timestamp(self.start.min()), pd.Timestamp(self.stop.max()), 1),
        )

    def find(self, x: slice, y: slice, t: slice) -> int | None:
        """Finds the tile over the slices' center at that time; of several, the one whose center is nearest."""
        east, north = (x.start + x.stop) / 2, (y.start + y.stop) / 2
        first, last = (pd.Timestamp(limit).to_datetime64() for limit in (t.start, t.stop))
        over = (self.west <= east) & (self.east >= east) & (self.south <= north) & (self.north >= north)
        near = np.flatnonzero(over & (self.start <= last) & (self.stop >= first))
        near = near[shapely.intersects(self.outlines(near), shapely.Point(east, north))]
        if not len(near):
            return None
        away = ((self.west[near] + self.east[near]) / 2 - east, (self.south[near] + self.north[near]) / 2 - north)
        return int(near[np.argmin(away[0] ** 2 + away[1] ** 2)])

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
        return self._transformer(row).transform_bounds(x.start, y.start, x.stop, y.stop)

    def _transformer(self, row: int) -> pyproj.Transformer:
        return _transformer(self.crs, int(self.epsg[row]))

    @cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        return self.table["x"].to_numpy(), self.table["y"].to_numpy()


def outlines(table: pd.DataFrame, tile_size: int | None = None) -> np.ndarray:
    """Returns footprints in EPSG:4326 of north-up grids.

    Args:
        table: ``epsg``, ``x`` and ``y`` of the upper left corner; ``xres``, ``yres``, ``height``, ``width``
            where they are not ``tile_size`` pixels of 10 m.
        tile_size: Edge in 10 m pixels.

    Returns:
        (n,) polygons. One that crosses the date line lies wholly on the eastern side, beyond 180 degrees.
    """
    return np.concatenate([shapely.polygons(rings) for rings in _rings(table, tile_size)])


def boxes(table: pd.DataFrame, tile_size: int | None = None) -> dict[str, np.ndarray]:
    """Returns the columns ``BOX``: the boxes around :func:`outlines`, which are not kept."""
    parts = [np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1) for rings in _rings(table, tile_size)]
    return dict(zip(BOX, np.concatenate(parts).T.copy(), strict=True))


def _rings(table: pd.DataFrame, tile_size: int | None) -> Iterator[np.ndarray]:
    """Yields the corners of some tiles after the other, (n, 4, 2) longitude and latitude."""
    for start in range(0, max(len(table), 1), _CHUNK):
        part = table.iloc[start : start + _CHUNK]
        left, top = part["x"].to_numpy(np.float64), part["y"].to_numpy(np.float64)
        if "xres" in table or tile_size is None:
            right = left + (part["width"] * part["xres"]).to_numpy()
            bottom = top - (part["height"] * part["yres"]).to_numpy()
        else:
            right, bottom = left + tile_size * 10.0, top - tile_size * 10.0
        x, y = np.stack([left, right, right, left], axis=1), np.stack([top, top, bottom, bottom], axis=1)
        rings, epsg = np.empty((len(part), 4, 2)), part["epsg"].to_numpy()
        for code in np.unique(epsg):
            here = epsg == code
            to_lonlat = _transformer(f"EPSG:{code}", 4326)
            rings[here] = np.stack(to_lonlat.transform(x[here], y[here]), axis=-1)
        split = np.ptp(rings[..., 0], axis=1) > 180
        rings[split, :, 0] %= 360
        yield rings


def to_zones(lon: np.ndarray, lat: np.ndarray, epsg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts places to x and y in the CRS that each has, (n,) all."""
    x, y = np.empty(len(lon)), np.empty(len(lon))
    for code in np.unique(epsg):
        here = epsg == code
        x[here], y[here] = _transformer("EPSG:4326", int(code)).transform(lon[here], lat[here])
    return x, y


@lru_cache(maxsize=256)
def _transformer(crs: str, epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, epsg, always_xy=True)


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
    for name in MODALITIES if modalities is None else modalities:
        if f"offset_{name}" not in index:
            continue
        has, offsets = index[f"has_{name}"].to_numpy(), index[f"offset_{name}"].to_numpy()
        unknown = has & (offsets == UNKNOWN)
        if not unknown.any():
            continue
        if ambiguous == "error":
            products = index.get(f"product_{name}", index["cell"])
            raise TerraFMError(
                f"Whether {name} holds the +1000 DN of baseline 04.00 is not known for {unknown.sum():,} of "
                f"{has.sum():,} tiles, first {index['cell'].iat[unknown.argmax()]} "
                f"({products.iat[unknown.argmax()]}): set `ambiguous_offset` to 'present' "
                "(1000 is taken off), 'absent' (nothing is) or 'drop' (they are left out)."
            )
        decided = np.where(unknown, OFFSET if ambiguous == "present" else 0, offsets).astype(np.int16)
        index = index.assign(**{f"offset_{name}": decided})
        if ambiguous == "drop":
            index = index.assign(**{f"has_{name}": has & ~unknown})
    return index

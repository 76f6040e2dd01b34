"""Major-TOM's grid of 10 km cells: names to corners and back, and the UTM grid of a cell's picture.

A cell such as ``897U_171L`` is named after its row (U north, D south of the equator) and its column (R east,
L west of Greenwich). Rows are 180/2004 degrees high; how many columns a row has follows from the length of
its parallel, so that cells are about 10 km wide everywhere. Numbers count from the equator and from
Greenwich, and name the cell's bottom left corner (Francis & Czerkawski, "Major TOM", 2024; not the numbering
of the package ``majortom-eg``).

Corners, names and zones are those of the published code to the last bit of their arithmetic: 116 corners lie on the
border of two zones but for its rounding, and 12 that lie on 180 degrees are called east by it, the others west.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer

from terrafm_tg.errors import TerraFMError

EARTH_RADIUS = 6378.137  #: km
CELL_SIZE = 10.0  #: km
ROWS = int(np.ceil(np.pi * EARTH_RADIUS / CELL_SIZE))  #: rows from pole to pole
MARGIN = 340.0  #: meters by which a published picture starts before its cell, and ends behind it
FULL_SIZE = 1068  #: pixels of 10 m across a published picture
_ROUNDING = 1e-9  # of a cell: a computed corner lies in the cell that it is the corner of


def cells_per_row(rows: ArrayLike) -> NDArray[np.int64]:
    """The number of cells around the globe in each row."""
    latitude = np.radians(np.asarray(rows) * 180 / ROWS)
    return np.ceil(2 * np.pi * EARTH_RADIUS * np.cos(latitude) / CELL_SIZE).astype(np.int64)


def cells_at(lat: ArrayLike, lon: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the cells that places lie in.

    Args:
        lat: Degrees north, -90 to 90.
        lon: Degrees east; any turn of the globe.

    Returns:
        Rows (north positive) and columns (east positive). A cell that 180 degrees cuts has one name, that of its
        western part.
    """
    lon = (np.asarray(lon, dtype=np.float64) + 180) % 360 - 180
    rows = np.floor(np.asarray(lat, dtype=np.float64) * ROWS / 180 + _ROUNDING).astype(np.int64).clip(max=ROWS // 2 - 1)
    count = cells_per_row(rows)
    return rows, _column(np.floor(lon * count / 360 + _ROUNDING).astype(np.int64), count)


def cells_over(west: float, south: float, east: float, north: float) -> list["GridCell"]:
    """Lists the cells that a box meets, each once, from the south west.

    Args:
        west: Degrees; any turn of the globe.
        south: Degrees.
        east: Degrees; it may be less than ``west``, or more than 180, where the box lies across 180 degrees.
        north: Degrees.
    """
    turn = east - west if 0 <= east - west < 360 else (east - west) % 360 or 360.0
    cells = []
    for row in range(int(cells_at(south, 0)[0]), int(cells_at(north, 0)[0]) + 1):
        count = cells_per_row(row)
        first, last = (int(np.floor(lon * count / 360 + _ROUNDING)) for lon in (west, west + turn))
        numbers = np.arange(first, min(last + 1, first + int(count)))
        cells += [GridCell(row, col) for col in _column(numbers, count).tolist()]
    return cells


def _column(number: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Names the cell so many cells east of Greenwich, any turn of the globe, by the column that its row has."""
    first = (_longitude(count // 2, count) == 180) - count // 2  # the westernmost
    return (number - first) % count + first


def corners(rows: ArrayLike, cols: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitude and longitude (-180 to 180) of the cells' bottom left corners."""
    count = cells_per_row(rows)
    return (np.asarray(rows) % ROWS * (180 / ROWS) - 90) % 180 - 90, _longitude(np.asarray(cols) % count, count)


def _longitude(number: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Longitude of the cell so many cells east of Greenwich, of ``count`` in its row."""
    return (number * (360 / count) - 180) % 360 - 180


def utm_zones(lat: ArrayLike, lon: ArrayLike) -> NDArray[np.int64]:
    """EPSG codes of the UTM zones that places (longitude -180 to 180) lie in, with those of Norway and Svalbard."""
    lat, lon = np.broadcast_arrays(np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64))
    zones = np.floor((lon + 180) / 6).astype(np.int64) % 60 + 1
    zones = np.where((lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12), 32, zones)
    svalbard = (lat >= 72) & (lat < 84) & (lon >= 0) & (lon < 42)
    zones = np.where(svalbard, 31 + 2 * np.searchsorted((9, 21, 33), lon, side="right"), zones)
    return np.where(lat < 0, 32700, 32600) + zones


def names(rows: ArrayLike, cols: ArrayLike) -> list[str]:
    """The cells' names, such as ``897U_171L``."""
    pairs = zip(np.atleast_1d(rows).tolist(), np.atleast_1d(cols).tolist(), strict=True)
    return [f"{abs(r)}{'U' if r >= 0 else 'D'}_{abs(c)}{'R' if c >= 0 else 'L'}" for r, c in pairs]


def parse(cells: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reads rows and columns off cells' names.

    Raises:
        TerraFMError: If a name is not of Major-TOM's form.
    """
    signs = {"U": 1, "D": -1, "R": 1, "L": -1}
    numbers = []
    for cell in cells:
        row, _, col = cell.partition("_")
        if not (row[:-1].isdecimal() and row[-1] in "UD" and col[:-1].isdecimal() and col[-1] in "RL"):
            raise TerraFMError(f"{cell!r} is no Major-TOM cell: expected a name such as '897U_171L'.")
        numbers.append((int(row[:-1]) * signs[row[-1]], int(col[:-1]) * signs[col[-1]]))
    rows, cols = np.array(numbers, dtype=np.int64).reshape(-1, 2).T
    return rows, cols


@lru_cache(maxsize=256)
def _to_utm(epsg: int) -> Transformer:
    return Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True)


@dataclass(frozen=True)
class GridCell:
    """A cell by its row (north positive) and column (east positive)."""

    row: int
    col: int

    @cached_property
    def name(self) -> str:
        """The name, such as ``897U_171L``."""
        return names(self.row, self.col)[0]

    @cached_property
    def corner(self) -> tuple[float, float]:
        """Latitude and longitude of the bottom left corner."""
        lat, lon = corners(self.row, self.col)
        return float(lat), float(lon)

    @cached_property
    def epsg(self) -> int:
        """The code of the UTM zone that the corner lies in, as :func:`utm_zones` has it."""
        return int(utm_zones(*self.corner))

    @cached_property
    def _corner_utm(self) -> tuple[float, float]:
        lat, lon = self.corner
        return _to_utm(self.epsg).transform(lon, lat)

    def transform(self, size: int = FULL_SIZE, meters: int = 10) -> Affine:
        """The UTM transform of the picture that is ``size`` pixels of 10 m wide, in pixels of ``meters``.

        Pictures of less than 1068 pixels have the same middle.
        """
        x, y = self._corner_utm
        inset = (FULL_SIZE - size) * 5.0 - MARGIN
        return Affine(meters, 0.0, x + inset, 0.0, -meters, y + inset + size * 10.0)

    def lonlat(self, size: int, shares: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Longitude and latitude of points of the picture, given as shares of its width and height."""
        transform, back = self.transform(size), _to_utm(self.epsg)
        points = [(transform.c + u * size * 10, transform.f - v * size * 10) for u, v in shares]
        return [back.transform(x, y, direction="INVERSE") for x, y in points]

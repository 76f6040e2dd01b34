"""Embeddings with their places: maps on a grid and tables of geometries, read a part at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Geod, Transformer

#: Values of a part: 64 MB as float32.
PART = 1 << 24
#: What makes two sets of vectors comparable, by the key under which a product says it.
MADE_BY = ("model", "weights", "pooling", "reduction")
WGS84 = CRS.from_epsg(4326)


class PlacedVectors(NamedTuple):
    """Embeddings of some places of one layer; missing ones are left out.

    Attributes:
        x: Embeddings, float32 (n, D).
        place: Which places of the layer, int64 (n,): ``row * width + column`` of a map, the row of a table.
        lon: Longitude of their middles in degrees, -180 to 180, float64 (n,).
        lat: Latitude, float64 (n,).
    """

    x: NDArray[np.float32]
    place: NDArray[np.int64]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]


class EmbeddingLayer(ABC):
    """A file of embeddings: all of one width, each with a place.

    Attributes:
        path: The file.
        crs: Of its grid or geometries.
        dims: D, the values of an embedding.
        count: Number of places, with and without an embedding.
        date: Time of the images, as the product says it; empty where it does not.
        about: What else the product says of itself (:data:`MADE_BY` and others).
    """

    path: Path
    crs: CRS
    dims: int
    count: int
    date: str
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its file without the ending."""
        return self.path.stem

    @abstractmethod
    def parts(self, most: int | None = None) -> Iterator[PlacedVectors]:
        """Reads all embeddings, a part at a time.

        Args:
            most: Read only some parts, spread evenly, until about so many places were looked at.

        Yields:
            Embeddings of at most :data:`PART` values, in the order of the file's blocks.
        """

    @abstractmethod
    def lonlat(self, place: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns longitude and latitude of places."""

    def date_of(self, place: int) -> str:
        """Returns the date of one place."""
        return self.date

    @abstractmethod
    def find(self, lon: float, lat: float) -> int | None:
        """Returns the place that a point lies in; None where it lies outside."""

    @abstractmethod
    def near(self, lon: float, lat: float, meters: float) -> NDArray[np.int64]:
        """Returns the places whose middles lie nearer to a point than a distance."""

    @abstractmethod
    def bounds(self) -> tuple[float, float, float, float]:
        """Returns west, south, east and north in degrees; east is beyond 180 where it lies across that line."""

    @abstractmethod
    def take(self, place: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads the embeddings of some places, (n, D), NaN where missing."""


class MapLayer(EmbeddingLayer):
    """Embeddings on a grid, a pixel each.

    Args:
        path: The file.
        crs: Of the grid.
        transform: From pixels to the CRS.
        shape: Height, width and D.
        block: Height and width of the file's blocks.
        date: Time of the images.
        about: What else the product says.
    """

    def __init__(
        self,
        path: Path,
        crs: CRS,
        transform: Affine,
        shape: tuple[int, int, int],
        block: tuple[int, int],
        date: str,
        about: Mapping[str, Any],
    ) -> None:
        self.path, self.crs, self.transform, self.date, self.about = path, crs, transform, date, about
        self.height, self.width, self.dims = shape
        self.count = self.height * self.width
        self._block = block

    @abstractmethod
    def read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Reads a window, (h, w, D), unscaled, NaN where missing."""

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """Cuts the grid into windows of at most :data:`PART` values in the order of the file's blocks."""
        tall, wide = (min(side, most) for side, most in zip(self._block, (self.height, self.width), strict=True))
        most = max(1, PART // self.dims)
        wide = min(wide * max(1, most // (tall * wide)), most)
        step = max(1, min(tall, most // wide))
        for top in range(0, self.height, tall):
            bottom = min(top + tall, self.height)
            for left in range(0, self.width, wide):
                columns = slice(left, min(left + wide, self.width))
                yield from ((slice(y, min(y + step, bottom)), columns) for y in range(top, bottom, step))

    def parts(self, most: int | None = None) -> Iterator[PlacedVectors]:
        """See :class:`EmbeddingLayer`."""
        windows = list(self.windows())
        if most is not None and most < self.count:
            few = max(1, math.ceil(len(windows) * most / self.count))
            windows = [windows[i] for i in np.linspace(0, len(windows) - 1, few).round().astype(int)]
        for rows, columns in windows:
            values = self.read(rows, columns)
            y, x = np.nonzero(np.isfinite(values).all(axis=-1))
            place = (y + rows.start) * self.width + x + columns.start
            yield PlacedVectors(values[y, x], place, *self.lonlat(place))

    def lonlat(self, place: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See :class:`EmbeddingLayer`."""
        rows, columns = np.divmod(place, self.width)
        return to_degrees(self.crs, *(self.transform * (columns + 0.5, rows + 0.5)))

    def pixels(self, lon: ArrayLike, lat: ArrayLike) -> NDArray[np.int64]:
        """Returns the places that points lie in, int64 (n,); -1 where they lie outside."""
        rows, columns = (np.floor(np.nan_to_num(part, nan=-1.0)) for part in self._project(lon, lat))
        inside = (rows >= 0) & (rows < self.height) & (columns >= 0) & (columns < self.width)
        return np.where(inside, rows * self.width + columns, -1).astype(np.int64)

    def find(self, lon: float, lat: float) -> int | None:
        """See :class:`EmbeddingLayer`."""
        (place,) = self.pixels([lon], [lat])
        return None if place < 0 else int(place)

    def near(self, lon: float, lat: float, meters: float) -> NDArray[np.int64]:
        """See :class:`EmbeddingLayer`."""
        y, x = self._project(*around(lon, lat, meters))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return np.empty(0, np.int64)
        rows = np.arange(max(0, math.floor(y.min())), min(self.height, math.ceil(y.max()) + 1))
        columns = np.arange(max(0, math.floor(x.min())), min(self.width, math.ceil(x.max()) + 1))
        place = (rows[:, None] * self.width + columns).ravel()
        return place[distances(*self.lonlat(place), lon, lat) < meters]

    def bounds(self) -> tuple[float, float, float, float]:
        """See :class:`EmbeddingLayer`."""
        corners = self.transform * (np.array([0, self.width]), np.array([self.height, 0]))
        x, y = map(sorted, corners)
        west, south, east, north = between(self.crs, WGS84).transform_bounds(x[0], y[0], x[1], y[1])
        return west, south, east + 360 * (east < west), north

    def take(self, place: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :class:`EmbeddingLayer`."""
        found = np.full((len(place), self.dims), np.nan, np.float32)
        y, x = np.divmod(place, self.width)
        for rows, columns in self.windows() if len(place) else ():
            here = np.flatnonzero((y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop))
            if len(here):
                top, left = y[here].min(), x[here].min()
                box = self.read(slice(top, y[here].max() + 1), slice(left, x[here].max() + 1))
                found[here] = box[y[here] - top, x[here] - left]
        found[~np.isfinite(found).all(axis=1)] = np.nan
        return found

    def _project(self, lon: ArrayLike, lat: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Turns degrees into rows and columns, not whole ones, NaN where the CRS does not reach."""
        x, y = between(WGS84, self.crs).transform(np.asarray(lon, float), np.asarray(lat, float))
        if self.crs.is_geographic:  # in the turn of the globe in which the grid is written
            middle = self.transform.c + self.transform.a * self.width / 2
            x = x + 360 * np.round((middle - x) / 360)
        x, y = (np.where(np.isfinite(part), part, np.nan) for part in (x, y))
        columns, rows = ~self.transform * (x, y)
        return rows, columns


@cache
def between(a: CRS, b: CRS) -> Transformer:
    """Returns the way from one CRS to another, x before y in both."""
    return Transformer.from_crs(a, b, always_xy=True)


def to_degrees(crs: CRS, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turns coordinates of a CRS into longitude, -180 to 180, and latitude."""
    lon, lat = between(crs, WGS84).transform(np.asarray(x, float), np.asarray(y, float))
    return (lon + 180) % 360 - 180, lat


def in_space(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float64]:
    """Returns points on the ellipsoid in meters from the Earth's center, (n, 3).

    Straight distances between them are those on the ground to 1 in 100,000 up to 100 km, at 180° and at the poles, too.
    """
    lon, lat = np.broadcast_arrays(np.asarray(lon, float), np.asarray(lat, float))
    return np.stack(between(CRS(4979), CRS(4978)).transform(lon, lat, np.zeros(lon.shape)), axis=-1)


def distances(lon: ArrayLike, lat: ArrayLike, at_lon: ArrayLike, at_lat: ArrayLike) -> NDArray[np.float64]:
    """Returns the distances in meters of points (n,) from another, or from another each."""
    return np.linalg.norm(in_space(lon, lat) - in_space(at_lon, at_lat), axis=-1)


def around(lon: float, lat: float, meters: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns longitude and latitude of 32 points in all directions, a little further than a distance."""
    same = np.ones(32)
    azimuths = 360 / 32 * np.arange(32)
    east, north, _ = Geod(ellps="WGS84").fwd(lon * same, lat * same, azimuths, 1.02 * meters * same)
    return np.asarray(east), np.asarray(north)


def normalized(x: NDArray) -> NDArray[np.float32]:
    """Returns vectors (n, D) of length one; those of length zero stay zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x, np.float32), where=length > 0).astype(np.float32, copy=False)


def keep_nearest(
    best: NDArray[np.float32], which: NDArray[np.int64], cosines: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Adds what a part of the embeddings holds to the nearest so far, the nearest first; of equal ones, the first.

    Args:
        best: Cosines so far, (q, up to k).
        which: Numbers of their places, (q, up to k).
        cosines: Of the part, (q, n).
        ids: Numbers of its places, (n,).
        k: How many to keep.
    """
    best = np.concatenate([best, cosines], axis=1)
    which = np.concatenate([which, np.broadcast_to(ids, cosines.shape)], axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(which, order, axis=1)

"""Where tiles lie: slices to index rows and back, without a search where a slice knows its row."""

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely
from geopandas import GeoDataFrame

#: Tile edges are a multiple of this many 10 m pixels, so that 20 and 60 m pixels end on them too.
ALIGNMENT = 6


class TileSlice(tuple[slice, slice, slice]):
    """A GeoSlice ``(x, y, t)`` that knows which index row it stands for, and where in the epoch it was drawn.

    Args:
        slices: x, y (in the index' CRS) and t.
        row: Row of the dataset's index.
        position: Place in the epoch's one global list of draws; -1 when no sampler drew it.
        epoch: The epoch in which it was drawn.
    """

    row: int
    position: int
    epoch: int

    def __new__(
        cls, slices: tuple[slice, slice, slice], row: int, position: int = -1, epoch: int = 0
    ) -> "TileSlice":
        """Make the tuple; see the class."""
        self = super().__new__(cls, slices)
        self.row, self.position, self.epoch = row, position, epoch
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.row, self.position, self.epoch


class Footprints:
    """The geometry of a tile index, as arrays: pandas takes too long to be asked at every read.

    Args:
        index: A tile index; see :class:`~terrafm_tg.datasets.TileDataset`.
    """

    def __init__(self, index: GeoDataFrame) -> None:
        self.geometry = index.geometry.array
        self.boxes = index.geometry.bounds.to_numpy()
        self.start, self.stop = index.index.left, index.index.right
        self.epsg = index["epsg"].to_numpy()
        self.crs = index.crs.to_string()
        self.lowest, self.highest = (
            self.boxes[:, :2].min(axis=0).tolist(),
            self.boxes[:, 2:].max(axis=0).tolist(),
        )
        self.first, self.last = self.start.min(), self.stop.max()

    def slices(self, row: int, res: tuple[float, float]) -> tuple[slice, slice, slice]:
        """The box around one tile, and its time."""
        x0, y0, x1, y1 = self.boxes[row].tolist()
        return slice(x0, x1, res[0]), slice(y0, y1, res[1]), slice(self.start[row], self.stop[row], 1)

    def extent(self, res: tuple[float, float]) -> tuple[slice, slice, slice]:
        """The box around all tiles, and all their times."""
        x, y = (
            slice(*pair, r) for pair, r in zip(zip(self.lowest, self.highest, strict=True), res, strict=True)
        )
        return x, y, slice(self.first, self.last, 1)

    def find(self, x: slice, y: slice, t: slice) -> int | None:
        """The tile over the slices' centre at that time; of several, the one whose centre is nearest."""
        centre = np.array([(x.start + x.stop) / 2, (y.start + y.stop) / 2])
        rows = np.sort(self._tree.query(shapely.Point(centre), predicate="intersects"))
        rows = rows[(self.start[rows] <= t.stop) & (self.stop[rows] >= t.start)]
        if not len(rows):
            return None
        middle = (self.boxes[rows, :2] + self.boxes[rows, 2:]) / 2
        return int(rows[np.argmin(((middle - centre) ** 2).sum(axis=1))])

    def origin(self, row: int) -> tuple[float, float]:
        """Upper left corner of a footprint in the tile's own CRS."""
        x, y = self._transformer(row).transform(*shapely.get_coordinates(self.geometry[row]).T)
        return float(min(x)), float(max(y))

    def in_tile_crs(self, row: int, x: slice, y: slice) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a box of the index' CRS in the tile's own."""
        return self._transformer(row).transform_bounds(x.start, y.start, x.stop, y.stop)

    def _transformer(self, row: int) -> pyproj.Transformer:
        return _transformer(self.crs, int(self.epsg[row]))

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometry)


def polygons(rings: np.ndarray) -> np.ndarray:
    """Outlines from their corners.

    Args:
        rings: (n, corners, 2) longitude and latitude; changed where an outline crosses the date line: it then
            lies wholly on the eastern side, beyond 180 degrees.

    Returns:
        (n,) polygons.
    """
    split = np.ptp(rings[..., 0], axis=1) > 180
    rings[split, :, 0] %= 360
    return shapely.polygons(rings)


@lru_cache(maxsize=256)
def _transformer(crs: str, epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, epsg, always_xy=True)

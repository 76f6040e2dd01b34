"""One Major-TOM cell and the UTM grid of its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from affine import Affine
from pyproj import Transformer

from . import grid

FULL_SIZE = 1068  #: pixels of 10 m across a published picture


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
        """Such as ``897U_171L``."""
        return grid.names(self.row, self.col)[0]

    @cached_property
    def corner(self) -> tuple[float, float]:
        """Latitude and longitude of the bottom left corner."""
        lat, lon = grid.corners(self.row, self.col)
        return float(lat), float(lon)

    @cached_property
    def epsg(self) -> int:
        """Code of the UTM zone that the corner lies in."""
        lat, lon = self.corner
        return (32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1

    @cached_property
    def _corner_utm(self) -> tuple[float, float]:
        lat, lon = self.corner
        return _to_utm(self.epsg).transform(lon, lat)

    def transform(self, size: int = FULL_SIZE, metres: int = 10) -> Affine:
        """UTM transform of the picture that is ``size`` pixels of 10 m wide, in pixels of ``metres``.

        Pictures of less than 1068 pixels have the same middle.
        """
        x, y = self._corner_utm
        inset = (FULL_SIZE - size) * 5.0 - grid.MARGIN
        return Affine(metres, 0.0, x + inset, 0.0, -metres, y + inset + size * 10.0)

    def lonlat(self, size: int, shares: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Longitude and latitude of points of the picture, given as shares of its width and height."""
        transform, back = self.transform(size), _to_utm(self.epsg)
        points = [(transform.c + u * size * 10, transform.f - v * size * 10) for u, v in shares]
        return [back.transform(x, y, direction="INVERSE") for x, y in points]

"""Rasters that a page can show: what each of them is, and its pixels, block by block."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.trust import open_image

#: Rows that are read at a time where blocks play no part.
_ROWS = 512


@dataclass(frozen=True, eq=False)
class MapFile:
    """A GeoTIFF and what it shows.

    Args:
        path: Of the file.
        kind: ``embeddings``, ``classes``, ``scores`` (one number per pixel) or ``picture`` (red, green and blue).
        crs: Of its georeference.
        place: Left, top, width and height of a pixel in the CRS, all north up.
        height: In pixels.
        width: Likewise.
        depth: Its bands.
        tags: Its metadata.
    """

    path: Path
    kind: str
    crs: CRS
    place: tuple[float, float, float, float]
    height: int
    width: int
    depth: int
    tags: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "MapFile":
        """Reads what a file is.

        Raises:
            TerraFMError: If it cannot be read, has no georeference, or is not north up.
        """
        try:
            return cls._of(path)
        except (OSError, rasterio.errors.RasterioError) as error:
            raise TerraFMError(
                f"{path} cannot be read as a GeoTIFF ({error}): give a map that terrafm wrote."
            ) from None

    @classmethod
    def _of(cls, path: Path) -> "MapFile":
        with open_image(path) as source:
            to = source.transform
            if source.crs is None or to.b or to.d or to.a <= 0 or to.e >= 0:
                raise TerraFMError(
                    f"{path} has no CRS or is not north up (transform {tuple(to)[:6]}): warp it first, as by gdalwarp."
                )
            return cls(
                path=path,
                kind=_kind(source),
                crs=CRS.from_wkt(source.crs.to_wkt()),
                place=(to.c, to.f, to.a, -to.e),
                height=source.height,
                width=source.width,
                depth=source.count,
                tags=source.tags(),
            )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north in its CRS."""
        left, top, dx, dy = self.place
        return left, top - self.height * dy, left + self.width * dx, top

    def overlaps(self, other: "MapFile") -> bool:
        """Tells whether both lie in one CRS and share some area."""
        (a, b, c, d), (e, f, g, h) = self.bounds, other.bounds
        return self.crs == other.crs and a < g and e < c and b < h and f < d

    def sample(self, most: int) -> NDArray:
        """Reads about ``most`` pixels that lie evenly over the map.

        Returns:
            (n, depth) float32, those without a missing value.
        """
        step = max(1, int(np.ceil(np.sqrt(self.height * self.width / most))))
        shape = -(-self.height // step), -(-self.width // step)
        with open_image(self.path) as source:
            values = _numbers(source, out_shape=(self.depth, *shape)).reshape(-1, self.depth)
        return values[np.isfinite(values).all(1)]

    def blocks(self) -> Iterator[tuple[int, int, NDArray]]:
        """Reads the map by its blocks.

        Yields:
            First row, first column, and the values, (h, w, depth) float32, NaN where missing.
        """
        with open_image(self.path) as source:
            for _, window in source.block_windows(1):
                yield window.row_off, window.col_off, _numbers(source, window=window)

    def strips(self, factor: int) -> Iterator[tuple[int, NDArray, NDArray]]:
        """Reads the first band as it is stored, in strips of rows that a factor divides.

        Yields:
            First row, the values (h, width), and whether each is there.
        """
        rows = -(-_ROWS // factor) * factor
        with open_image(self.path) as source:
            for row in range(0, self.height, rows):
                window = Window(0, row, self.width, min(rows, self.height - row))
                found = source.read(1, window=window, masked=True)
                yield row, found.data, ~np.ma.getmaskarray(found)

    def class_names(self) -> dict[int, str]:
        """Reads the names of its classes by code: a JSON object or list in the tag ``class_names``."""
        names = json.loads(self.tags.get("class_names", "{}"))
        return {int(code): str(name) for code, name in (names.items() if isinstance(names, dict) else enumerate(names))}

    def colors(self) -> dict[int, tuple[int, int, int, int]]:
        """Reads its color table; empty where it has none."""
        with open_image(self.path) as source:
            try:
                return source.colormap(1)
            except ValueError:
                return {}

    def picture(self, edge: int) -> NDArray:
        """Reads a picture (h, w, 4) uint8 whose longer edge is at most ``edge`` pixels, with alpha."""
        share = min(1.0, edge / max(self.height, self.width))
        shape = max(1, round(self.height * share)), max(1, round(self.width * share))
        with open_image(self.path) as source:
            bands = source.read([1, 2, 3], out_shape=(3, *shape), resampling=rasterio.enums.Resampling.average)
            alpha = source.dataset_mask(out_shape=shape)
        return np.moveaxis(np.concatenate([bands, alpha[None]]), 0, -1)


def _kind(source: rasterio.DatasetReader) -> str:
    eight = source.dtypes[0] == "uint8"
    if eight and source.colorinterp[0] is ColorInterp.palette:
        return "classes"
    if eight and source.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        return "picture"
    return "scores" if source.count == 1 else "embeddings"


def _numbers(source: rasterio.DatasetReader, **where: object) -> NDArray:
    """Reads all bands as float32 (h, w, depth), with scale and offset, NaN where missing."""
    found = source.read(masked=True, **where)
    values = np.moveaxis(found.astype(np.float32).filled(np.nan), 0, -1)
    if set(source.scales) | {1.0} != {1.0} or set(source.offsets) | {0.0} != {0.0}:
        values = values * np.float32(source.scales) + np.float32(source.offsets)
    return np.ascontiguousarray(values)

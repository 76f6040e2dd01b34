"""Rasters that a page can show: what each of them is, and its pixels, block by block."""

import json
import math
import re
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

#: Types of embeddings; probabilities and pictures have no sign.
_SIGNED = ("int8", "float16", "float32", "float64")
#: Rows that are read at a time where blocks play no part.
_ROWS = 512


@dataclass(frozen=True, eq=False)
class MapFile:
    """A GeoTIFF and what it shows.

    Args:
        path: Of the file.
        kind: ``embeddings``, ``classes``, ``scores`` (numbers, each band for itself) or ``picture`` (red, green, blue).
        crs: Of its georeference.
        place: Left, top, width and height of a pixel in the CRS, all north up.
        height: In pixels.
        width: Likewise.
        bands: Their names, empty where they have none.
        tags: Its metadata.
    """

    path: Path
    kind: str
    crs: CRS
    place: tuple[float, float, float, float]
    height: int
    width: int
    bands: tuple[str, ...]
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
                bands=tuple(name or "" for name in source.descriptions),
                tags=source.tags(),
            )

    @property
    def depth(self) -> int:
        """Number of its bands."""
        return len(self.bands)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north in its CRS."""
        left, top, dx, dy = self.place
        return left, top - self.height * dy, left + self.width * dx, top

    def overlaps(self, other: "MapFile") -> bool:
        """Tells whether both lie in one CRS and share some area."""
        (a, b, c, d), (e, f, g, h) = self.bounds, other.bounds
        return self.crs == other.crs and a < g and e < c and b < h and f < d

    def blocks(self, most: int | None = None) -> Iterator[tuple[int, int, NDArray]]:
        """Reads the map by its blocks.

        Args:
            most: Read only some blocks, which lie evenly over the map, until about so many pixels are read.

        Yields:
            First row, first column, and the values, (h, w, depth) float32, NaN where missing.
        """
        with open_image(self.path) as source:
            windows = [window for _, window in source.block_windows(1)]
            if most is not None and most < self.height * self.width:
                few = max(1, math.ceil(len(windows) * most / (self.height * self.width)))
                windows = [windows[i] for i in np.linspace(0, len(windows) - 1, few).round().astype(int)]
            for window in windows:
                yield window.row_off, window.col_off, _numbers(source, window)

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
        """Reads the names of its classes by code: a JSON object in the tag ``classes``."""
        try:
            return {int(code): str(name) for code, name in json.loads(self.tags.get("classes", "{}")).items()}
        except (ValueError, AttributeError):  # a tag of someone else's
            return {}

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
    if source.colorinterp[0] is ColorInterp.palette:
        return "classes"
    if source.dtypes[0] == "uint8" and source.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        return "picture"
    numbered = all(re.fullmatch(r"\D{0,10}\d+", name or "0") for name in source.descriptions)
    return "embeddings" if source.count > 1 and source.dtypes[0] in _SIGNED and numbered else "scores"


def _numbers(source: rasterio.DatasetReader, window: Window) -> NDArray:
    """Reads all bands as float32 (h, w, depth), with scale and offset, NaN where missing."""
    stored = np.moveaxis(source.read(window=window), 0, -1)  # masks of many bands take GDAL longer than their values
    missing = stored == np.array([np.nan if value is None else value for value in source.nodatavals])
    values = stored * np.float32(source.scales) + np.float32(source.offsets)
    values[missing] = np.nan
    return values

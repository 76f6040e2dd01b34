"""Rasters that a page can show: what each of them is, and its pixels, block by block."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.use import open_embeddings
from terrafm_tg.inference.use.maps import about_of, unscale, without_place
from terrafm_tg.inference.use.vectors import MapLayer
from terrafm_tg.utils.trust import open_image

#: Ending of the composite beside a map.
PREVIEW = ".preview.tif"
#: Types of embeddings; probabilities and pictures have no sign.
_SIGNED = ("int8", "float16", "float32", "float64")
#: Rows that are read at a time where blocks play no part.
_ROWS = 512


@dataclass(frozen=True, eq=False)
class MapFile:
    """A GeoTIFF or Zarr store and what it shows.

    Args:
        path: Of the file.
        kind: ``embeddings``, ``classes``, ``scores`` (numbers, each band for itself) or ``picture`` (red, green, blue).
        crs: Of its georeference.
        place: Left, top, width and height of a pixel in the CRS, all north up.
        height: In pixels.
        width: Likewise.
        bands: Names of bands of scores, empty where they have none.
        about: What it says of itself.
        layer: Reads embeddings.
    """

    path: Path
    kind: str
    crs: CRS
    place: tuple[float, float, float, float]
    height: int
    width: int
    bands: tuple[str, ...]
    about: Mapping[str, Any]
    layer: MapLayer | None = None

    @classmethod
    def open(cls, path: Path) -> "MapFile":
        """Reads what a file is.

        Raises:
            TerraFMError: If it cannot be read, has no georeference, or is not north up.
        """
        if path.is_dir():
            return cls._embeddings(path)
        try:
            with open_image(path) as source:
                if (kind := _kind(path, source)) == "embeddings":
                    return cls._embeddings(path)
                if source.crs is None:
                    raise without_place(path)
                crs, place = CRS.from_wkt(source.crs.to_wkt()), _north_up(path, source.transform)
                bands = tuple(name or "" for name in source.descriptions)
                return cls(path, kind, crs, place, source.height, source.width, bands, about_of(source.tags()))
        except (OSError, UnicodeError, rasterio.errors.RasterioError) as error:
            raise TerraFMError(
                f"{path} cannot be read as a GeoTIFF ({error}): give a map that terrafm wrote."
            ) from None

    @classmethod
    def _embeddings(cls, path: Path) -> "MapFile":
        (layer,) = open_embeddings(path).layers
        assert isinstance(layer, MapLayer)
        place = _north_up(path, layer.transform)
        return cls(path, "embeddings", layer.crs, place, layer.height, layer.width, (), layer.about, layer)

    @property
    def depth(self) -> int:
        """Numbers of a pixel."""
        return self.layer.dims if self.layer else len(self.bands)

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
        windows = list(self.layer.windows() if self.layer else self._windows())
        if most is not None and most < self.height * self.width:
            few = max(1, math.ceil(len(windows) * most / (self.height * self.width)))
            windows = [windows[i] for i in np.linspace(0, len(windows) - 1, few).round().astype(int)]
        for rows, columns in windows:
            yield rows.start, columns.start, self.layer.read(rows, columns) if self.layer else self._read(rows, columns)

    def _windows(self) -> Iterator[tuple[slice, slice]]:
        with open_image(self.path) as source:
            yield from (window.toslices() for _, window in source.block_windows(1))

    def _read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        with open_image(self.path) as source:
            stored = np.moveaxis(source.read(window=Window.from_slices(rows, columns)), 0, -1)
            nodata = np.array([np.nan if value is None else value for value in source.nodatavals])
            scale, offset = (np.array(x, np.float32) for x in (source.scales, source.offsets))
            return unscale(stored, scale, offset, nodata)

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
        names = self.about.get("classes")
        found = names.items() if isinstance(names, dict) else ()
        return {int(code): str(name) for code, name in found if code.isdecimal()}

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


def _north_up(path: Path, to: Affine) -> tuple[float, float, float, float]:
    """Returns left, top, and width and height of a pixel."""
    if to.b or to.d or to.a <= 0 or to.e >= 0:
        raise TerraFMError(f"{path} is not north up (transform {tuple(to)[:6]}): warp it first, as by gdalwarp.")
    return to.c, to.f, to.a, -to.e


def _kind(path: Path, source: rasterio.DatasetReader) -> str:
    if source.colorinterp[0] is ColorInterp.palette:
        return "classes"
    if path.name.endswith(PREVIEW) or source.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        return "picture"
    numbered = all(re.fullmatch(r"\D{0,10}\d+", name or "0") for name in source.descriptions)
    return "embeddings" if source.count > 1 and source.dtypes[0] in _SIGNED and numbered else "scores"

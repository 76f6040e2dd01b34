"""A small picture of an image, made while it is read: natural colors, or radar as VV, VH and their ratio."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.files import atomic_write

from .engine import Watch
from .images import Image
from .parts import MapParts
from .windows import WindowLayout

_EDGE = 1500  # pixels of the longer edge, about
_RGB = ("B04", "B03", "B02")


def preview_parts(image: Image, parts: MapParts, layout: WindowLayout, folder: Path) -> MapParts:
    """Plans the picture: float32 (h, w, 3), a part for each of the map's."""
    pixels = parts.part * layout.stride
    factor = next(n for n in (1, 2, 4, 8, 16, 32, 64) if n == 64 or max(image.shape) / n <= _EDGE)
    while pixels % factor:
        factor //= 2
    height, width = (-(-size * layout.stride // factor) for size in (parts.height, parts.width))
    transform = tuple(image.transform * image.transform.scale(factor))[:6]
    sensor = next((name for name in ("s2l2a", "s2l1c", "s1rtc") if name in image.products), "s1rtc")
    about = {"sensor": sensor, "factor": factor}
    return MapParts(folder, image.name, image.crs, transform, height, width, 3, pixels // factor, "float32", about)


def watch_into(preview: MapParts) -> Watch:
    """Makes the function that takes each part's pixels and writes the picture's."""
    sensor, factor = preview.about["sensor"], preview.about["factor"]

    def watch(row: int, column: int, images: Mapping[str, NDArray[np.float32]]) -> None:
        rows, columns = preview.slices(row, column)
        shape = rows.stop - rows.start, columns.stop - columns.start, 3
        picture = np.full(shape, np.nan, np.float32)
        if sensor in images:
            planes = _planes(images[sensor], sensor)
            padded = np.full((3, shape[0] * factor, shape[1] * factor), np.nan, np.float32)
            high, wide = min(padded.shape[1], planes.shape[1]), min(padded.shape[2], planes.shape[2])
            padded[:, :high, :wide] = planes[:, :high, :wide]
            blocks = padded.reshape(3, shape[0], factor, shape[1], factor)
            some = np.isfinite(blocks)
            total, number = np.where(some, blocks, 0).sum((2, 4)), some.sum((2, 4))
            picture = np.where(number > 0, total / np.maximum(number, 1), np.nan).transpose(1, 2, 0)
        preview.write(row, column, picture)

    return watch


def _planes(image: NDArray[np.float32], sensor: str) -> NDArray[np.float32]:
    """Returns the three planes of the picture, (3, h, w)."""
    if sensor == "s1rtc":
        return np.stack([image[0], image[1], image[0] - image[1]])
    bands = MODALITIES[sensor].bands
    return np.stack([image[bands.index(band)] for band in _RGB])


def stretched(preview: MapParts) -> Callable[[NDArray[np.float32]], NDArray[np.uint8]]:
    """Makes the function that turns values into colors: 1 to 255 between the 2nd and the 98th percentile, 0 missing."""
    sample = np.concatenate([part[::4, ::4].reshape(-1, 3) for _, part in preview.rows()])
    sample = sample[np.isfinite(sample).any(axis=1)]
    if not len(sample):
        return lambda values: np.zeros(values.shape, np.uint8)
    optical = preview.about["sensor"] != "s1rtc"
    low, high = np.nanpercentile(sample, (2, 98), axis=None if optical else 0)
    width = np.maximum(high - low, 1e-6)

    def colors(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        scaled = np.clip((values - low) / width, 0, 1) * 254 + 1
        return np.where(np.isfinite(values), scaled, 0).astype(np.uint8)

    return colors


def write_preview(preview: MapParts, path: Path) -> None:
    """Writes the picture as COG: red, green and blue, 0 where missing."""
    colors = stretched(preview)
    bands = np.concatenate([colors(part) for _, part in preview.rows()]).transpose(2, 0, 1)
    profile = {"count": 3, "height": preview.height, "width": preview.width, "dtype": "uint8", "nodata": 0}
    shape = {"crs": preview.crs, "transform": preview.affine, "photometric": "RGB"}
    with atomic_write(path, sole_writer=True) as temporary, MemoryFile() as memory:
        with memory.open(driver="GTiff", **profile, **shape) as file:
            file.write(bands)
        with memory.open() as file, rasterio.Env(GDAL_PAM_ENABLED="NO"):
            rasterio.shutil.copy(file, temporary, driver="COG", COMPRESS="DEFLATE", BLOCKSIZE=256)

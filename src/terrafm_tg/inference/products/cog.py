"""Maps of embeddings as cloud-optimized GeoTIFF: a band per dimension."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.utils.files import atomic_write, work_folder

_BLOCK = 1 << 23  # bytes of all bands: what a reader decodes to look at one pixel
_CACHE = 1 << 26  # bytes of GDAL's
#: Prefix of the tags that say what a map is made of, each plain text or JSON.
TAG = "TERRAFM_"


def write_cog(parts: MapParts, path: Path, reduction: Reduction) -> None:
    """Writes a finished map as COG, whole or not at all, in memory that does not depend on its size.

    Bands are ``d000``, ``d001``, ..., stored pixel by pixel, as who uses embeddings reads whole vectors. A missing one
    is nodata in all bands. int8 comes with a scale per band, which GDAL and rioxarray unscale by. Overviews are means
    over what is there. The same map gives the same bytes with the same GDAL.

    Args:
        parts: The map, float32, all parts of which are there.
        path: The file.
        reduction: How its vectors are stored.
    """
    block = block_size(reduction)
    predictor = 3 if reduction.dtype == "float32" else 2  # libtiff's for floats, but GDAL refuses it for float16
    half = {"NBITS": 16} if reduction.dtype == "float16" else {}
    with rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_PAM_ENABLED="NO"), work_folder(path) as folder:
        plain = folder / "map.tif"
        _write_plain(parts, plain, reduction, block)
        _write_overviews(parts, plain, reduction, block)
        with atomic_write(path, sole_writer=True) as temporary:
            rasterio.shutil.copy(
                plain, temporary, driver="COG", COMPRESS="ZSTD", LEVEL=1, PREDICTOR=predictor, BLOCKSIZE=block,
                OVERVIEWS="FORCE_USE_EXISTING", BIGTIFF="IF_SAFER", **half,
            )  # fmt: skip


def block_size(reduction: Reduction) -> int:
    """Returns the edge of a block in pixels: a power of two from 16 to 512, with all bands in 8 MB."""
    size = 512
    while size > 16 and size**2 * reduction.stored * np.dtype(reduction.dtype).itemsize > _BLOCK:
        size //= 2
    return size


def tags(about: dict[str, Any], reduction: Reduction) -> dict[str, str]:
    """Returns what a map is made of as tags of a GeoTIFF, with the reduction from which its vectors are restored."""
    plain = {TAG + key.upper(): value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    return plain | {f"{TAG}REDUCTION": reduction.to_json()}


def _write_plain(parts: MapParts, path: Path, reduction: Reduction, block: int) -> None:
    """Writes the map uncompressed, whose blocks can be filled part by part."""
    with _create(path, parts, reduction, block, parts.height, parts.width) as file:
        file.descriptions = [f"d{band:03d}" for band in range(reduction.stored)]
        if reduction.scale is not None:
            file.scales, file.offsets = reduction.scale.tolist(), [0.0] * reduction.stored
        file.update_tags(**tags(parts.about, reduction))
        down, across = parts.grid
        for row in range(down):
            for column in range(across):
                _write(file, parts.slices(row, column), reduction.encode(parts.read(row, column)))


def _write_overviews(parts: MapParts, path: Path, reduction: Reduction, block: int) -> None:
    """Writes overviews of half the size each until one is a block: GDAL takes ten times as long for many bands."""
    height, width = parts.height, parts.width
    while max(height, width) > block:
        source, path = path, path.with_name(f"{path.name}.ovr")  # GDAL's name for the overview of a file
        size = height, width
        height, width = -(-height // 2), -(-width // 2)
        with rasterio.open(source) as src, _create(path, parts, reduction, block, height, width) as file:
            for top in range(0, height, block):
                rows, down = _weights(size[0], height, top, min(top + block, height))
                for left in range(0, width, block):
                    columns, across = _weights(size[1], width, left, min(left + block, width))
                    numbers = src.read(window=Window.from_slices(rows, columns)).transpose(1, 2, 0)
                    places = slice(top, top + len(down)), slice(left, left + len(across))
                    _write(file, places, _mean(numbers, down, across, reduction))


def _weights(size: int, smaller: int, start: int, stop: int) -> tuple[slice, NDArray[np.float32]]:
    """Returns which of ``size`` pixels the pixels from start to stop of ``smaller`` lie over, and how far each."""
    edges = np.arange(start, stop + 1) * (size / smaller)
    first, last = int(edges[0]), min(int(np.ceil(edges[-1] - 1e-9)), size)
    pixels = np.arange(first, last)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return slice(first, last), overlap.clip(0).astype(np.float32)


def _mean(numbers: NDArray, down: NDArray, across: NDArray, reduction: Reduction) -> NDArray:
    """Returns means of stored numbers (h, w, stored) over those that are there."""
    missing = numbers[..., :1] == reduction.missing if reduction.scale is not None else np.isnan(numbers[..., :1])
    there = np.where(missing, np.float32(0), np.float32(1))
    numbers = np.where(missing, np.float32(0), numbers).astype(np.float32)
    sums, weights = (across @ np.tensordot(down, array, 1) for array in (numbers, there))
    mean = np.where(weights > 1e-6, sums / weights.clip(1e-6), reduction.missing)
    return np.rint(mean).astype(np.int8) if reduction.scale is not None else mean.astype(reduction.dtype)


@contextmanager
def _create(
    path: Path, parts: MapParts, reduction: Reduction, block: int, height: int, width: int
) -> Iterator[DatasetWriter]:
    """Opens an uncompressed GeoTIFF of the map's extent for writing."""
    kind = {"dtype": reduction.dtype} if reduction.dtype != "float16" else {"dtype": "float32", "nbits": 16}
    scale = Affine.scale(parts.width / width, parts.height / height)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=reduction.stored, crs=parts.crs,
        transform=parts.affine * scale, nodata=reduction.missing, tiled=True, blockxsize=block, blockysize=block,
        interleave="pixel", bigtiff="YES", **kind,
    ) as file:  # fmt: skip
        yield file


def _write(file: DatasetWriter, places: tuple[slice, slice], numbers: NDArray) -> None:
    """Writes stored numbers (h, w, stored); float16 as float32 of the same values, which all versions of GDAL take."""
    numbers = numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers
    file.write(numbers.transpose(2, 0, 1), window=Window.from_slices(*places))

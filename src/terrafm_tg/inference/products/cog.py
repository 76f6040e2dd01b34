"""Maps of embeddings as cloud-optimized GeoTIFF: a band per dimension."""

import json
from itertools import count, groupby, product
from pathlib import Path
from shutil import disk_usage
from typing import Any
from zlib import crc32

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from terrafm_tg.errors import TerraFMError
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

    Raises:
        TerraFMError: If the disk is full, or GDAL fails otherwise.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_PAM_ENABLED="NO"), work_folder(path) as folder:
            draft = _Draft(parts, reduction, folder / "map.tif")
            draft.write()
            draft.write_overviews()
            with atomic_write(path, sole_writer=True) as temporary:
                draft.copy(temporary)
                draft.check(temporary)
    except (RasterioError, CPLE_BaseError) as error:
        size = parts.height * parts.width * reduction.stored * np.dtype(reduction.dtype).itemsize / 1e6
        free = disk_usage(path.parent).free / 1e6
        raise TerraFMError(
            f"{path} was not written ({str(error).rstrip('.')}): it takes up to {3 * size:,.0f} MB for a time, and "
            f"{free:,.0f} MB are free; make room, or name another place."
        ) from error


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


class _Draft:
    """A map as uncompressed GeoTIFF, whose blocks can be filled part by part, with a file for each overview.

    Args:
        parts: The map.
        reduction: How its vectors are stored.
        path: The file.
    """

    def __init__(self, parts: MapParts, reduction: Reduction, path: Path) -> None:
        self.parts, self.reduction, self.path = parts, reduction, path
        self.block = block_size(reduction)
        self._half = {"nbits": 16} if reduction.dtype == "float16" else {}
        self._sums = list[tuple[int, Window, int]]()  # level, place, checksum

    def write(self) -> None:
        """Writes the map itself."""
        parts, reduction = self.parts, self.reduction
        with self._create(self.path, parts.height, parts.width) as file:
            file.descriptions = [f"d{band:03d}" for band in range(reduction.stored)]
            if reduction.scale is not None:
                file.scales, file.offsets = reduction.scale.tolist(), [0.0] * reduction.stored
            file.update_tags(**tags(parts.about, reduction))
            for row, column in np.ndindex(parts.grid):
                self._fill(file, 0, parts.slices(row, column), reduction.encode(parts.read(row, column)))

    def write_overviews(self) -> None:
        """Writes overviews of half the size each until one is a block: GDAL takes ten times as long for many bands."""
        height, width, block, path = self.parts.height, self.parts.width, self.block, self.path
        for level in count(1):
            if max(height, width) <= block:
                return
            source, path, size = path, path.with_name(f"{path.name}.ovr"), (height, width)  # GDAL looks for this name
            height, width = -(-height // 2), -(-width // 2)
            with rasterio.open(source) as src, self._create(path, height, width) as file:
                for top, left in product(range(0, height, block), range(0, width, block)):
                    rows, down = _weights(size[0], height, top, min(top + block, height))
                    columns, across = _weights(size[1], width, left, min(left + block, width))
                    numbers = src.read(window=Window.from_slices(rows, columns)).transpose(1, 2, 0)
                    places = slice(top, top + len(down)), slice(left, left + len(across))
                    self._fill(file, level, places, _mean(numbers, down, across, self.reduction))

    def copy(self, path: Path) -> None:
        """Makes the COG."""
        predictor = 3 if self.reduction.dtype == "float32" else 2  # 3 is for floats, but GDAL refuses it for float16
        rasterio.shutil.copy(
            self.path, path, driver="COG", COMPRESS="ZSTD", LEVEL=1, PREDICTOR=predictor, BLOCKSIZE=self.block,
            OVERVIEWS="FORCE_USE_EXISTING", BIGTIFF="IF_SAFER", **self._half,
        )  # fmt: skip

    def check(self, path: Path) -> None:
        """Compares the COG with what was to be written: GDAL says nothing where closing a file fails.

        Raises:
            RasterioIOError: If it differs.
        """
        for level, sums in groupby(self._sums, lambda one: one[0]):
            with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as src:
                for _, window, checksum in sums:
                    if self._sum(src.read(window=window).transpose(1, 2, 0)) != checksum:
                        raise RasterioIOError("pixels were lost on the way to the disk")

    def _create(self, path: Path, height: int, width: int) -> DatasetWriter:
        kind = "float32" if self._half else self.reduction.dtype  # which all versions of GDAL have
        scale = Affine.scale(self.parts.width / width, self.parts.height / height)
        return rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=self.reduction.stored, crs=self.parts.crs,
            transform=self.parts.affine * scale, nodata=self.reduction.missing, tiled=True, blockxsize=self.block,
            blockysize=self.block, interleave="pixel", bigtiff="YES", dtype=kind, **self._half,
        )  # fmt: skip

    def _fill(self, file: DatasetWriter, level: int, places: tuple[slice, slice], numbers: NDArray) -> None:
        """Writes stored numbers (h, w, stored)."""
        window = Window.from_slices(*places)
        self._sums.append((level, window, self._sum(numbers)))
        numbers = numbers.astype(np.float32) if self._half else numbers
        file.write(numbers.transpose(2, 0, 1), window=window)

    def _sum(self, numbers: NDArray) -> int:
        numbers = numbers.astype(self.reduction.dtype, copy=False)
        if self.reduction.scale is None:  # one of the many forms of NaN
            numbers = np.where(np.isnan(numbers), numbers.dtype.type("nan"), numbers)
        return crc32(np.ascontiguousarray(numbers).data)


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

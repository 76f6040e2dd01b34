"""Pixels of one grid on another, by GDAL's warp."""

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window, from_bounds

_SAME = 1e-3  # of a pixel, and of the unit of its size


def needed_window(src: DatasetReader, crs: CRS, bounds: tuple[float, float, float, float]) -> Window | None:
    """Finds the pixels of a file that a box needs, with two beyond for interpolation; None where it has none.

    Args:
        src: An open file.
        crs: Of the box.
        bounds: Left, bottom, right, top.
    """
    there = bounds if src.crs == crs else transform_bounds(crs, src.crs, *bounds, densify_pts=21)
    needed = from_bounds(*there, transform=src.transform)
    ranges = []
    for (low, high), size in zip(needed.toranges(), src.shape, strict=True):
        start, stop = max(math.floor(low) - 2, 0), min(math.ceil(high) + 2, size)
        if start >= stop:
            return None
        ranges.append((start, stop))
    return Window.from_slices(*ranges)


def warp(
    pixels: NDArray,
    transform: Affine,
    crs: CRS,
    to: Affine,
    to_crs: CRS,
    shape: tuple[int, int],
    nodata: float,
    average: bool = True,
) -> NDArray:
    """Puts pixels on another grid, each band by itself.

    Where the pixels of both grids end on the same lines they are copied. Otherwise they are interpolated linearly over
    those that are not missing, or averaged where they are much finer.

    Args:
        pixels: (h, w), or (C, h, w).
        transform: Of their grid.
        crs: Of their grid.
        to: Transform of the new grid.
        to_crs: Of the new grid.
        shape: Height and width of the new grid.
        nodata: Value of missing pixels, here and there.
        average: Average finer pixels; False interpolates between the nearest four.

    Returns:
        (H, W), or (C, H, W), of the same type.
    """
    column, row = (to.c - transform.c) / transform.a, (to.f - transform.f) / transform.e
    apart = (
        abs(column - round(column)),
        abs(row - round(row)),
        abs(transform.a - to.a),
        abs(transform.e - to.e),
    )
    if crs == to_crs and transform.b == transform.d == 0 and max(apart) < _SAME:
        method = Resampling.nearest
    elif average and max(pixels.shape[-2:]) > 1.5 * max(shape):
        method = Resampling.average
    else:
        method = Resampling.bilinear
    options = {} if average else {"XSCALE": 1, "YSCALE": 1}  # else GDAL widens its kernel over finer pixels
    result = np.full((*pixels.shape[:-2], *shape), nodata, dtype=pixels.dtype)
    planes = zip(pixels.reshape(-1, *pixels.shape[-2:]), result.reshape(-1, *shape), strict=True)
    for band, image in planes:  # one by one: together, a pixel is missing only where all bands lack it
        reproject(
            band, image, src_transform=transform, src_crs=crs, dst_transform=to, dst_crs=to_crs,
            src_nodata=nodata, dst_nodata=nodata, resampling=method, tolerance=0.01, **options,
        )  # fmt: skip
    return result

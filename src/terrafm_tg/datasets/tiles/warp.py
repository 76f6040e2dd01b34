"""Pixels of one grid on another, by GDAL's warp."""

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window, from_bounds
from rasterio.windows import union as windows_union

_SAME = 1e-3  # of a pixel, at each edge
_TURNS = (0, -360, 360)  # degrees: a file around the globe has both ends of a box across its edge


def needed_window(src: DatasetReader, crs: CRS, bounds: tuple[float, float, float, float]) -> Window | None:
    """Finds the pixels of a file that a box (left, bottom, right, top) needs and two beyond; None where it has none.

    Longitude is a circle: a file may be written in any turn of it, and the box lie across 180 degrees.
    """
    left, bottom, right, top = bounds if src.crs == crs else transform_bounds(crs, src.crs, *bounds, densify_pts=21)
    turns = [0.0]
    if src.crs.is_geographic:
        right += 360 * (right < left)
        turns = [_turn((left + right) / 2, src.transform.c + src.transform.a * src.shape[1] / 2) + n for n in _TURNS]
    windows = [
        _inside(from_bounds(left + n, bottom, right + n, top, transform=src.transform), src.shape) for n in turns
    ]
    found = [window for window in windows if window is not None]
    return windows_union(found) if found else None


def _inside(needed: Window, shape: tuple[int, int]) -> Window | None:
    ranges = []
    for (low, high), size in zip(needed.toranges(), shape, strict=True):
        start, stop = max(math.floor(low) - 2, 0), min(math.ceil(high) + 2, size)
        if start >= stop:
            return None
        ranges.append((start, stop))
    return Window.from_slices(*ranges)


def _turn(lon: float, near: float) -> float:
    """Returns the whole turns of the globe, in degrees, that bring a longitude nearest to another."""
    return 360.0 * round((near - lon) / 360)


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
    height, width = shape
    if crs.is_geographic:  # to the turn of the new grid, or the one that GDAL knows
        middle = transform.c + transform.a * pixels.shape[-1] / 2
        turn = _turn(middle, to.c + to.a * width / 2 if to_crs.is_geographic else 0.0)
        transform = Affine(transform.a, transform.b, transform.c + turn, transform.d, transform.e, transform.f)
    rows = (np.array([to.f, to.f + height * to.e]) - transform.f) / transform.e - [0, height]
    columns = (np.array([to.c, to.c + width * to.a]) - transform.c) / transform.a - [0, width]
    row, column = round(rows[0]), round(columns[0])
    apart = np.abs([rows - row, columns - column]).max()
    result = np.full((*pixels.shape[:-2], *shape), nodata, dtype=pixels.dtype)
    if crs == to_crs and transform.b == transform.d == 0 and apart < _SAME:
        top, left = max(row, 0), max(column, 0)
        part = pixels[..., top : max(row + height, top), left : max(column + width, left)]
        result[..., top - row :, left - column :][..., : part.shape[-2], : part.shape[-1]] = part
        return result
    method, options = Resampling.bilinear, {}
    if not average:
        options = {"XSCALE": 1, "YSCALE": 1}  # else GDAL widens its kernel over finer pixels
    elif max(pixels.shape[-2:]) > 1.5 * max(shape):
        method = Resampling.average
    exact = np.float64 if not average and pixels.dtype.kind == "u" else pixels.dtype  # GDAL rounds up, not to even
    for place in np.ndindex(pixels.shape[:-2]):  # one by one: together, a pixel is missing only where all bands lack it
        image = np.full(shape, nodata, exact)
        reproject(
            pixels[place].astype(exact), image, src_transform=transform, src_crs=crs, dst_transform=to, dst_crs=to_crs,
            src_nodata=nodata, dst_nodata=nodata, resampling=method, tolerance=0.01, **options,
        )  # fmt: skip
        result[place] = np.rint(image) if exact is np.float64 else image
    return result

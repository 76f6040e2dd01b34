"""Pixels of one north-up grid read on another of the same CRS."""

import numpy as np
from affine import Affine
from rasterio.io import DatasetReader
from rasterio.windows import Window

#: Along a side of one tile; a damaged header must not ask for more memory than there is.
MOST_PIXELS = 1 << 15


def source_window(src: DatasetReader, extent: tuple[float, float, float, float]) -> tuple[Window, bool]:
    """The pixels of a file that an extent needs.

    Args:
        src: An open file, north-up.
        extent: (left, bottom, right, top) in its CRS.

    Raises:
        ValueError: If the file's grid is none, or its pixels are so small that the extent has too many.

    Returns:
        The window, within the file; and whether the extent is exactly that window, to a thousandth of a
        pixel. Where it is not, the window reaches one pixel beyond, as interpolation needs.
    """
    left, bottom, right, top = extent
    t = src.transform
    if not (t.a > 0 > t.e and np.isfinite(tuple(t)).all()):
        raise ValueError(f"its grid is not north-up ({', '.join(f'{number:g}' for number in tuple(t)[:6])})")
    if (right - left) / t.a > MOST_PIXELS or (top - bottom) / -t.e > MOST_PIXELS:
        raise ValueError(f"its pixels are {t.a:g} x {-t.e:g} wide, far too small for its tile")
    edges = np.array([[(top - t.f) / t.e, (bottom - t.f) / t.e], [(left - t.c) / t.a, (right - t.c) / t.a]])
    whole = np.rint(edges)
    sizes = np.array([[src.height], [src.width]])
    exact = bool((abs(edges - whole) < 1e-3).all() and (whole >= 0).all() and (whole <= sizes).all())
    if not exact:
        whole = np.stack([np.floor(edges[:, 0]) - 1, np.ceil(edges[:, 1]) + 1], axis=1)
    (row, bottom), (column, right) = np.clip(whole, 0, sizes).astype(int).tolist()
    return Window(column, row, right - column, bottom - row), exact


def regrid(
    pixels: np.ndarray,
    transform: Affine,
    extent: tuple[float, float, float, float],
    shape: tuple[int, int],
    nodata: float,
) -> np.ndarray:
    """Interpolate linearly between pixel centres, over the pixels that are not missing.

    Args:
        pixels: (C, h, w), missing where not above 0.
        transform: Of their grid, north-up.
        extent: (left, bottom, right, top) of the new grid, in the same CRS.
        shape: Height and width of the new grid.
        nodata: What missing pixels become: those outside, or whose nearest pixel is missing.

    Returns:
        (C, *shape) of the same type; integers are rounded.
    """
    left, bottom, right, top = extent
    down = (top + (np.arange(shape[0]) + 0.5) * (bottom - top) / shape[0] - transform.f) / transform.e - 0.5
    along = (left + (np.arange(shape[1]) + 0.5) * (right - left) / shape[1] - transform.c) / transform.a - 0.5
    valid = pixels > 0
    rows, columns = _weights(down, pixels.shape[1]), _weights(along, pixels.shape[2])
    value = rows @ np.where(valid, pixels, 0) @ columns.T
    weight = rows @ valid @ columns.T
    nearest = valid[:, np.rint(down).clip(0, pixels.shape[1] - 1).astype(int)]
    nearest = nearest[:, :, np.rint(along).clip(0, pixels.shape[2] - 1).astype(int)]
    inside = (rows.sum(axis=1)[:, None] * columns.sum(axis=1)) > 0.5
    value = np.divide(value, weight, out=np.zeros_like(value), where=weight > 0)
    if np.issubdtype(pixels.dtype, np.integer):
        value = np.rint(value)
    return np.where(nearest & inside & (weight > 0), value, nodata).astype(pixels.dtype)


def _weights(at: np.ndarray, size: int) -> np.ndarray:
    """(n, size) weights of linear interpolation at pixel coordinates; zero outside of the pixels."""
    held = np.clip(at, 0, size - 1)
    low = np.minimum(held.astype(int), max(size - 2, 0))
    weights = np.zeros((len(at), size))
    here = np.arange(len(at))
    weights[here, low] = 1 - (held - low)
    weights[here, np.minimum(low + 1, size - 1)] += held - low
    return np.where((at >= -0.5) & (at <= size - 0.5), weights.T, 0).T

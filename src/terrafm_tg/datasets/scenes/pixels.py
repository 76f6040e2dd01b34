"""Pixels of a scene on another grid, in digital numbers or linear power."""

from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds

from terrafm_tg.datasets.tiles.pixels import native_pixels
from terrafm_tg.datasets.tiles.warp import needed_window, warp
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.trust import open_image

_TELLING = 100  # pixels that tell their unit


def read_band(path: Path, modality: Modality, unit: str, crs: CRS, transform: Affine, side: int) -> np.ndarray:
    """Reads one band of a scene on a square grid; see :func:`~terrafm_tg.datasets.tiles.warp.warp`.

    Args:
        path: The band's file.
        modality: The scene's.
        unit: ``DN``, ``linear``, ``dB`` or ``amplitude``; radar is interpolated as power.
        crs: Of the grid.
        transform: Of the grid.
        side: Pixels along each side.

    Returns:
        (side, side) uint16, 0 where missing, or float32 linear power, -32768 where missing.

    Raises:
        rasterio.errors.RasterioError: If the file cannot be read.
        TerraFMError: If its numbers are not of that unit.
    """
    with open_image(path) as src:
        window = needed_window(src, crs, array_bounds(side, side, transform))
        if window is None:
            return np.full((side, side), modality.nodata, np.uint16 if unit == "DN" else np.float32)
        pixels = _native(path, src.read(1, window=window), modality, unit, src.nodata)
        origin, source = src.window_transform(window), src.crs
    return warp(pixels, origin, source, transform, crs, (side, side), modality.nodata)


def _native(path: Path, pixels: np.ndarray, modality: Modality, unit: str, nodata: float | None) -> np.ndarray:
    """Converts stored values to digital numbers or linear power; also NaN, and 0 in radar of any unit, is missing."""
    if unit == "DN":
        return native_pixels(np.nan_to_num(pixels), modality, nodata)
    missing = np.isnan(pixels) | (pixels == 0) | (pixels == modality.nodata)
    if nodata is not None:
        missing |= pixels == nodata
    negative = (pixels[~missing] < 0).mean() if (~missing).sum() >= _TELLING else 0.5
    if (negative > 0.5) if unit != "dB" else (negative == 0):
        other, what = ("dB", "mostly") if unit != "dB" else ("linear", "no")
        raise TerraFMError(
            f"{path.name} holds {what} negative numbers, as {other} data: set `radar_unit` to {other!r}, got {unit!r}."
        )
    pixels = np.where(missing, np.float32(modality.nodata), pixels * pixels if unit == "amplitude" else pixels)
    return native_pixels(pixels, modality, None, unit="dB" if unit == "dB" else "linear")

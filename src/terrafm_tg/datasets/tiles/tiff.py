"""Bands in GeoTIFFs to native pixels: uint16 digital numbers, or float32 linear power."""

import numpy as np

from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import remove_offset

#: Units in which radar is stored.
RADAR_UNITS = ("dB", "linear")


def native_pixels(
    pixels: np.ndarray,
    modality: Modality,
    nodata: float | None,
    offset: int = 0,
    unit: str = "linear",
    scale: float = 1.0,
) -> np.ndarray:
    """Stored values as the ``native=True`` samples have them.

    Args:
        pixels: Any shape, as read from a file.
        modality: Whose they are.
        nodata: The value that the file declares as missing; the modality's own counts as well.
        offset: DN of the processing baseline to take off (optics).
        unit: ``"dB"`` or ``"linear"`` (radar).
        scale: Digital numbers per stored unit (optics): 10,000 where reflectance is stored.

    Returns:
        Optics uint16, 0 where missing and at least 1 elsewhere. Radar float32 linear power, -32768 where
        missing.

    Raises:
        ValueError: If there is NaN that the file does not declare as missing.
    """
    if pixels.dtype == np.uint16 and modality.unit == "DN" and not nodata and scale == 1:
        return remove_offset(pixels, offset)
    missing = pixels == modality.nodata
    if nodata is not None:
        missing |= np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
    if np.isnan(np.where(missing, 0, pixels)).any():
        raise ValueError("it holds NaN, which the file does not declare as nodata")
    if modality.unit == "DN":
        numbers = np.clip(np.rint(np.where(missing, 0, pixels) * scale), 0, np.iinfo(np.uint16).max)
        return remove_offset(np.where(missing, 0, np.maximum(numbers, 1)).astype(np.uint16), offset)
    with np.errstate(over="ignore"):
        power = 10 ** (pixels.astype(np.float64) / 10) if unit == "dB" else pixels
    return np.where(missing | ~np.isfinite(power) | (power <= 0), modality.nodata, power).astype(np.float32)

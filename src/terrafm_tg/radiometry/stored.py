"""The meaning of stored pixels: radar backscatter, missing pixels, and the offset of Sentinel-2's baseline 04.00.

Radar is stored as float32 linear power, or as int16 hundredths of a decibel in half the bytes; the dtype tells which.
Speckle spreads single pixels over several decibels, so a step of 0.01 dB (an error of at most 0.005 dB) loses nothing;
what averages pixels does so in linear power, in either form.

Since 25 January 2022 Sentinel-2 products hold ``reflectance * 10,000 + 1000``, so that dark pixels do not clip at 0. An
archive mixes both conventions.
"""

import math

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC

from .claims import FILLS, OFFSET, UNKNOWN, Verdict

#: Stored integers per decibel.
STEPS = 100
#: A missing pixel, in both forms.
NODATA = int(S1RTC.nodata)
#: Linear power of -90 dB: decibels at or below, and any power above +90 dB, are no measurement.
LEAST = 1e-9


def quantize(power: np.ndarray) -> np.ndarray:
    """Quantizes linear power to int16 hundredths of a decibel.

    Args:
        power: Floating point, any shape. What is not above 0, or not finite, is missing.

    Returns:
        The same shape; -32768 where missing. What lies beyond +-327.67 dB, where nothing is measured, is taken to
        those ends.

    Raises:
        TerraFMError: If the numbers are integers, which may be such steps already.
    """
    if not np.issubdtype(power.dtype, np.floating):
        raise TerraFMError(f"Linear power must be floating point, got {power.dtype}: is it quantized already?")
    valid = (power > 0) & (power < np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(10 * STEPS * np.log10(power))
    return np.where(valid, steps.clip(-32767, 32767), NODATA).astype(np.int16)


def linear_power(pixels: Tensor) -> Tensor:
    """Converts stored pixels to float32 linear power, on the device on which they are.

    Args:
        pixels: int16 hundredths of a decibel, or linear power, any shape.

    Returns:
        Linear power; what is missing is not above 0, or not finite.
    """
    if pixels.dtype != torch.int16:
        return pixels.float()
    power = pixels.float().mul_(math.log2(10) / (10 * STEPS)).exp2_()
    return power.masked_fill_(pixels == NODATA, 0.0)


def present(pixels: np.ndarray) -> np.ndarray:
    """Tells the stored pixels of any sensor that are not missing.

    0 is missing in optics, and what is not above 0 in linear power; hundredths of a decibel are mostly negative.
    """
    return pixels != NODATA if pixels.dtype == np.int16 else pixels > 0  # NaN compares false


def remove_offset(pixels: np.ndarray, offset: int) -> np.ndarray:
    """Removes the offset from digital numbers: missing pixels (0) stay 0, others become at least 1."""
    if not offset:
        return pixels
    return np.where(pixels > 0, np.maximum(pixels, offset + 1) - offset, 0).astype(pixels.dtype)


def archive_verdict(modality: str, unit: str, offset: int = 0, nodata: float | None = None) -> Verdict:
    """Makes the verdict on an archive whose documentation says how its numbers are to be read.

    Args:
        modality: Sensor and level.
        unit: As in :class:`Verdict`.
        offset: Of baseline 04.00.
        nodata: Value that the file declares as missing, beside the usual ones.
    """
    extra = () if nodata is None or not math.isfinite(nodata) else (float(nodata),)
    fill = tuple(dict.fromkeys((0.0, *FILLS, *extra)))
    return Verdict(
        modality, unit, offset=offset, fill=fill, proof=f"{unit}, offset {offset} by the archive's description"
    )


def native(stored: np.ndarray, verdict: Verdict, mask: np.ndarray | None = None, harmonize: bool = False) -> np.ndarray:
    """Converts stored values to native pixels.

    Args:
        stored: As read from a file, any shape and number type.
        verdict: The rule.
        mask: Where a mask or an alpha band says that pixels are missing (True), same shape or broadcast to it.
        harmonize: Take the offset off that the verdict found.

    Returns:
        Optics uint16 DN, 0 where missing and at least 1 elsewhere. Radar float32 linear power, -32768 where missing.

    Raises:
        TerraFMError: If the offset is to be taken off and not known.
    """
    optics = verdict.unit == "DN"
    offset = verdict.offset if harmonize and optics else 0
    if offset == UNKNOWN:
        raise TerraFMError("The offset of baseline 04.00 is not known: set `offset` to 0 or 1000.")
    whole = stored.dtype.kind in "ui"
    limits = np.iinfo(stored.dtype) if whole else np.finfo(np.float64)
    fill = [x for x in verdict.fill if limits.min <= x <= limits.max and (not whole or x == int(x))]
    if optics and stored.dtype == np.uint16 and (verdict.scale, verdict.add, fill) == (1, 0, [0]) and mask is None:
        return remove_offset(stored, offset)
    with np.errstate(over="ignore"):  # a fill value of more than float16 or float32 holds
        missing = np.isin(stored, np.array(fill).astype(stored.dtype))
    if mask is not None:
        missing = missing | mask
    if optics and stored.dtype == np.uint16 and (verdict.scale, verdict.add) == (1, 0):
        return remove_offset(np.where(missing, np.uint16(0), stored), offset)
    values = np.where(missing, np.nan, stored.astype(np.float64)) * verdict.scale + verdict.add
    with np.errstate(over="ignore", invalid="ignore"):
        if optics:  # a reflectance below -0.1 is none
            numbers = np.rint(values)
            present = (numbers > -OFFSET) & (numbers <= np.iinfo(np.uint16).max)
            return remove_offset(np.where(present, numbers.clip(1), 0).astype(np.uint16), offset)
        power = 10 ** (values / 10) if verdict.unit == "dB" else values**2 if verdict.unit == "amplitude" else values
        present = (power > LEAST * (verdict.unit == "dB")) & (power < 1 / LEAST)
    return np.where(present, power, NODATA).astype(np.float32)

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

#: Stored integers per decibel.
STEPS = 100
#: A missing pixel, in both forms.
NODATA = int(S1RTC.nodata)
#: What baseline 04.00 added, in digital numbers.
OFFSET = 1000
#: An offset or a baseline that is not known.
UNKNOWN = -1


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

"""The meaning of stored pixels: radar backscatter, missing pixels, and the offset of Sentinel-2's baseline 04.00.

Radar is stored as float32 linear power, or as int16 hundredths of a decibel in half the bytes; the dtype tells which.
Speckle spreads single pixels over several decibels, so a step of 0.01 dB (an error of at most 0.005 dB) loses nothing;
what averages pixels does so in linear power, in either form.

Since 25 January 2022 Sentinel-2 products hold ``reflectance * 10,000 + 1000``, so that dark pixels do not clip at 0. An
archive mixes both conventions. What is not known for certain is called unknown here, and a setting decides it, never a
guess.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from .errors import TerraFMError
from .modalities import S1RTC

#: Stored integers per decibel.
STEPS = 100
#: A missing pixel, in both forms.
NODATA = int(S1RTC.nodata)
#: What baseline 04.00 added, in digital numbers.
OFFSET = 1000
#: An offset or a baseline that is not known.
UNKNOWN = -1
_FIRST = 400  # baseline 04.00
_BASELINE = re.compile(r"_N(\d{4})(?:_|$)")
_AMBIGUOUS = 9999  # "N9999": reprocessed outside ESA's chain, with either convention


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


def offsets_by_name(products: Iterable[object]) -> np.ndarray:
    """Finds the offset of products by the baseline in their names.

    Args:
        products: Product ids such as ``S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419``; anything
            that is no text has no baseline.

    Returns:
        int16 (n,): 1000 from baseline 04.00 on, 0 before, -1 where the name does not say (``N9999``, or no
        baseline).
    """
    baselines = baselines_by_name(products)
    offsets = np.where(baselines >= _FIRST, OFFSET, 0)
    return np.where(np.isin(baselines, (UNKNOWN, _AMBIGUOUS)), UNKNOWN, offsets).astype(np.int16)


def baselines_by_name(products: Iterable[object]) -> np.ndarray:
    """Reads the processing baseline of products, int16 (n,): 400 for ``N0400``, 9999 for ``N9999``, -1 for none."""
    found = (_BASELINE.search(name) if isinstance(name, str) else None for name in products)
    return np.array([int(match[1]) if match else UNKNOWN for match in found], dtype=np.int16)


def offset_by_pixels(bands: Mapping[str, np.ndarray]) -> int:
    """Finds the offset of an image by its pixels, where they leave no doubt.

    Two facts are certain enough: the cirrus band B10 of L1C is nearly black without an offset (its median
    lies above 800 DN only with one, or under a high cloud that no pixel of the scene escapes); and with an
    offset next to no pixel of any band lies below 900 DN, which would be a reflectance below -1 %.

    Args:
        bands: Digital numbers by band name, 0 where missing.

    Returns:
        1000 or 0; -1 where neither fact holds (such as an L2A scene all of snow or cloud).
    """
    valid = {band: values[values > 0] for band, values in bands.items()}
    if any(np.mean(values < 900) > 0.01 for values in valid.values() if values.size):
        return 0
    cirrus = valid.get("B10", np.empty(0))
    return OFFSET if cirrus.size and np.median(cirrus) >= 800 else UNKNOWN


def offset_beside(l2a: Mapping[str, np.ndarray], l1c: Mapping[str, np.ndarray], l1c_offset: int) -> int:
    """Finds the offset of an L2A image by the L1C image of the same acquisition.

    Short-wave infrared passes the air almost unchanged: in B11 and B12 the dark ends (1st percentiles) of
    both lie 0 or 1000 DN apart once the offset of L1C is gone.

    Args:
        l2a: Digital numbers by band name, 0 where missing.
        l1c: The same of L1C.
        l1c_offset: The offset that L1C holds.

    Returns:
        1000 or 0; -1 where the bands are more than 300 DN from either, or are not there.
    """
    shared = [b for b in ("B11", "B12") if all((image.get(b, np.empty(0)) > 0).any() for image in (l2a, l1c))]
    dark = [[np.percentile(image[b][image[b] > 0], 1) for b in shared] for image in (l2a, l1c)]
    apart = np.array(dark[0]) - np.array(dark[1]) + l1c_offset
    return next((offset for offset in (0, OFFSET) if shared and (abs(apart - offset) < 300).all()), UNKNOWN)


def remove_offset(pixels: np.ndarray, offset: int) -> np.ndarray:
    """Removes the offset from digital numbers: missing pixels (0) stay 0, others become at least 1."""
    if not offset:
        return pixels
    return np.where(pixels > 0, np.maximum(pixels, offset + 1) - offset, 0).astype(pixels.dtype)

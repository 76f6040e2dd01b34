"""Stored values to native pixels by a verdict."""

import numpy as np

from terrafm_tg.errors import TerraFMError

from .claims import Verdict
from .stored import NODATA, OFFSET, UNKNOWN, remove_offset

#: Linear power at or below which nothing was measured, -90 dB; nor is anything above +90 dB.
LEAST = 1e-9


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
    missing = np.isin(stored, verdict.fill) if optics or not verdict.add else np.isin(stored, verdict.fill[1:])
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
        present = (power > LEAST) & (power < 1 / LEAST)
    return np.where(present, power, NODATA).astype(np.float32)

"""One judge of radiometry: what stored pixels mean, and how they become digital numbers and linear power."""

from .claims import FILLS, UNITS, Claims, ContradictionError, Settings, Verdict, baselines_by_name, offsets_by_name
from .judge import TELLING, judge, offset_beside, offset_by_pixels
from .native import native
from .stored import NODATA, OFFSET, UNKNOWN, linear_power, present, quantize, remove_offset

__all__ = [
    "FILLS",
    "NODATA",
    "OFFSET",
    "TELLING",
    "UNITS",
    "UNKNOWN",
    "Claims",
    "ContradictionError",
    "Settings",
    "Verdict",
    "baselines_by_name",
    "judge",
    "linear_power",
    "native",
    "offset_beside",
    "offset_by_pixels",
    "offsets_by_name",
    "present",
    "quantize",
    "remove_offset",
]

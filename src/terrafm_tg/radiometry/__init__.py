"""One judge of radiometry: what stored pixels mean, and how they become digital numbers and linear power."""

from .bands import level_by_pixels
from .claims import (
    FILLS,
    OFFSET,
    UNITS,
    UNKNOWN,
    Claims,
    ContradictionError,
    OffsetError,
    Settings,
    Verdict,
    baselines_by_name,
    offsets_by_name,
)
from .judge import TELLING, judge, settle
from .offset import FEW, LIKELY, offset_beside, offset_evidence
from .stored import NODATA, STEPS, archive_verdict, linear_power, native, present, quantize, remove_offset

__all__ = [
    "FEW",
    "FILLS",
    "LIKELY",
    "NODATA",
    "OFFSET",
    "STEPS",
    "TELLING",
    "UNITS",
    "UNKNOWN",
    "Claims",
    "ContradictionError",
    "OffsetError",
    "Settings",
    "Verdict",
    "archive_verdict",
    "baselines_by_name",
    "judge",
    "level_by_pixels",
    "linear_power",
    "native",
    "offset_beside",
    "offset_evidence",
    "offsets_by_name",
    "present",
    "quantize",
    "remove_offset",
    "settle",
]

"""Claims about an image apart from its pixels, the user's settings, and the verdict on how its numbers are read."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality

#: What baseline 04.00 added, in digital numbers.
OFFSET = 1000
#: Words of a verdict whose offset pixels prove.
SEEN = "by its pixels"
#: An offset or a baseline that is not known.
UNKNOWN = -1
#: Units in which files hold pixels: of optics, and of radar.
UNITS = {"DN": ("DN", "reflectance"), "dB": ("dB", "linear", "amplitude")}
#: Values that files hold where a pixel is missing and that nothing measured can have.
FILLS = (-9999.0, -10000.0, -32767.0, -32768.0, -99999.0)
#: Baseline 04.00, and the one of products that were reprocessed outside ESA's chain, with either convention.
FIRST, AMBIGUOUS = 400, 9999
_BASELINE = re.compile(r"_N(\d{4})(?:_|$|\.)")


class ContradictionError(TerraFMError):
    """Two pieces of evidence on an image's pixels exclude each other; the sentence names the setting that decides."""


class OffsetError(ContradictionError):
    """The pieces of evidence are on the offset of baseline 04.00."""


@dataclass(frozen=True)
class Claims:
    """Statements on one image apart from its pixels: by its name, tags, metadata or catalog.

    Args:
        modality: ``"s1rtc"``, ``"s2l1c"`` or ``"s2l2a"``; None where only the pixels can tell.
        product: Name of the product, file or item.
        baseline: Processing baseline of Sentinel-2, 509 for N0509; read from ``product`` where None.
        offset_applied: The +1000 DN of baseline 04.00 are said to be taken off already.
        scale: Factor of ``value = stored * scale + offset``, as GDAL's and STAC's tags have it.
        offset: Summand of the same: -0.1 for reflectance (or -1000 for digital numbers) says that +1000 DN are held.
        unit: ``"DN"``, ``"reflectance"``, ``"dB"``, ``"linear"`` or ``"amplitude"``.
        nodata: Value declared as missing.
        source: Origin of each claim by field, in words for messages; ``"bands"`` where bands were identified by their
            names, and not by their usual order.
    """

    modality: str | None = None
    product: str = ""
    baseline: int | None = None
    offset_applied: bool | None = None
    scale: float | None = None
    offset: float | None = None
    unit: str | None = None
    nodata: float | None = None
    source: Mapping[str, str] = field(default_factory=dict)

    def said(self, name: str, otherwise: str) -> str:
        """Returns the origin of a claim in words."""
        return self.source.get(name, otherwise)


@dataclass(frozen=True)
class Settings:
    """The user's word on pixels, for all modalities or by modality; it decides a contradiction.

    Args:
        unit: As for :class:`Claims`; None: as claimed, else by the pixels.
        scale: Digital numbers (optics) or unit values (radar) per stored number; None: by tags and pixels.
        offset: 0 or 1000 DN that all optical files hold, or ``"detect"``.
        nodata: Stored value that is missing, beside the usual ones.
        bands: Bands of each file in order, where their usual order is not theirs.
    """

    unit: str | Mapping[str, str] | None = None
    scale: float | Mapping[str, float] | None = None
    offset: int | str | Mapping[str, int | str] | None = "detect"
    nodata: float | Mapping[str, float] | None = None
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        """Refuses what no setting can be.

        Raises:
            TerraFMError: Naming the setting.
        """
        units = [unit for group in UNITS.values() for unit in group]
        for value in _values(self.unit):
            if value not in units:
                raise TerraFMError(f"`unit` must be one of {', '.join(units)}, got {value!r}.")
        for value in _values(self.offset):
            if value not in (0, OFFSET, "detect"):
                raise TerraFMError(f"`offset` must be 0, 1000 or 'detect', got {value!r}.")
        for value in _values(self.scale):
            if not 0 < value < math.inf:
                raise TerraFMError(f"`scale` must be above 0, got {value!r}.")

    def of(self, name: str, modality: str) -> Any:
        """Returns a setting for one modality; None where there is none."""
        value = getattr(self, name)
        return value.get(modality) if isinstance(value, Mapping) else value


def _values(setting: Any) -> list[Any]:
    for name in setting if isinstance(setting, Mapping) else ():
        get_modality(name)
    return [v for v in (setting.values() if isinstance(setting, Mapping) else [setting]) if v is not None]


@dataclass(frozen=True)
class Verdict:
    """The rule by which an image's stored numbers become native pixels, and the reason for it.

    Args:
        modality: Sensor and level.
        unit: ``"DN"``; or ``"dB"``, ``"linear"`` or ``"amplitude"`` for radar.
        scale: Factor of ``value = stored * scale + add``.
        add: Summand of the same.
        offset: 1000 where digital numbers hold that of baseline 04.00, 0 where not, -1 where nothing tells.
        fill: Stored values that are missing, besides those that are not finite.
        proof: One sentence: the conclusion and its evidence.
    """

    modality: str
    unit: str
    scale: float = 1.0
    add: float = 0.0
    offset: int = 0
    fill: tuple[float, ...] = (0.0, *FILLS)
    proof: str = ""

    @property
    def seen(self) -> bool:
        """True where pixels prove the offset, and not what is said of them."""
        return SEEN in self.proof

    def to_json(self) -> str:
        """Returns the verdict as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """Reads a verdict, which may be a stranger's.

        Raises:
            TerraFMError: If it is none.
        """
        try:
            held = json.loads(text)
            verdict = cls(**held | {"fill": tuple(map(float, held["fill"]))})
            numbers = [verdict.scale, verdict.add]
            right = (
                verdict.unit in UNITS[get_modality(verdict.modality).unit]
                and verdict.unit != "reflectance"
                and all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
                and verdict.scale > 0
                and type(verdict.offset) is int
                and verdict.offset in (UNKNOWN, 0, OFFSET)
                and len(verdict.fill) <= 32
                and isinstance(verdict.proof, str)
            )
        except (ValueError, TypeError, KeyError, RecursionError):  # TerraFMError, too
            right = False
        if not right:
            raise TerraFMError(f"{str(text)[:80]!r} is no verdict on pixels: make the index again.")
        return verdict


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
    offsets = np.where(baselines >= FIRST, OFFSET, 0)
    return np.where(np.isin(baselines, (UNKNOWN, AMBIGUOUS)), UNKNOWN, offsets).astype(np.int16)


def baselines_by_name(products: Iterable[object]) -> np.ndarray:
    """Reads the processing baseline of products, int16 (n,): 400 for ``N0400``, 9999 for ``N9999``, -1 for none."""
    found = (_BASELINE.search(name) if isinstance(name, str) else None for name in products)
    return np.array([int(match[1]) if match else UNKNOWN for match in found], dtype=np.int16)

"""Evidence of the offset of baseline 04.00, in Sentinel-2's pixels and in what is said of them."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from .claims import AMBIGUOUS, FIRST, OFFSET, SEEN, UNKNOWN, Claims, OffsetError, baselines_by_name

type Bands = Mapping[str, np.ndarray]

#: Valid pixels of a band of which fewer tell nothing.
FEW = 100
#: Strength of evidence: good for agreeing with a claim only, good without any, and excluding the contrary.
FITS, LIKELY, CERTAIN = 1, 2, 3


class Evidence(NamedTuple):
    """A finding on the offset, its strength, and the reason in words."""

    offset: int
    strength: int
    words: str


def find_offset(
    who: str, claims: Claims, told: int | str | None, modality: str, numbers: Bands, tagged: bool, beside: Bands | None
) -> tuple[int, str]:
    """Finds the offset, and the reason in words."""
    seen = offset_evidence(numbers, modality)
    if seen.strength < LIKELY and beside:
        apart = offset_beside(numbers, beside)
        if apart != UNKNOWN:
            seen = Evidence(apart, CERTAIN, "the L1C image of the same day")
    said = [*_said(claims, tagged)]
    if told in (0, OFFSET):
        if seen.strength == CERTAIN and seen.offset != told:
            raise OffsetError(
                f"{who} has an offset of {seen.offset} DN {SEEN} ({seen.words}), but `offset` is {told}: "
                f"correct `offset` to {seen.offset} or 'detect'."
            )
        against = " and ".join(f"{offset} by {why}" for offset, _, why in said if offset != told)
        return int(told), f"offset {told} as `offset` is set" + f", against {against}" * bool(against)
    sides = {offset for offset, _, _ in said}
    words = " and ".join(f"{offset} by {why}" for offset, _, why in said)
    if seen.strength == FITS and sides != {OFFSET}:
        seen = seen._replace(offset=UNKNOWN)
    if seen.offset != UNKNOWN:
        if sides and seen.offset not in sides:
            fix = f" to go by the pixels, or `offset` to {OFFSET - seen.offset} to go by what is said"
            fix *= seen.strength < CERTAIN
            raise OffsetError(
                f"{who} has an offset of {seen.offset} DN {SEEN} ({seen.words}), but {words}: set `offset` to "
                f"{seen.offset}{fix}."
            )
        return seen.offset, f"offset {seen.offset} {SEEN} ({seen.words})"
    if len(sides) > 1:
        raise OffsetError(
            f"{who} has an offset of {words}, and its pixels do not tell ({seen.words}): set `offset` to 0 or 1000, "
            "as the provider says."
        )
    if any(own for _, own, _ in said):
        return sides.pop(), f"offset {words}"
    return UNKNOWN, f"offset unknown ({words or 'nothing says it'}, and {seen.words})"


def _said(claims: Claims, tagged: bool) -> Iterator[tuple[int, bool, str]]:
    """Yields what claims say of the offset: its value, whether the product's own metadata do, and who.

    Names and catalogs are believed only where pixels agree: providers take the offset off and keep the name, and flags
    are known to be wrong.
    """
    source = claims.said("offset", "its offset tag")
    own = "MTD_" in source
    if tagged or (own and claims.offset == 0):
        yield OFFSET if tagged else 0, own, f"{source} of {claims.offset:g}"
    baseline = int(baselines_by_name([claims.product])[0]) if claims.baseline is None else claims.baseline
    if claims.offset_applied:
        yield 0, False, f"{claims.said('offset_applied', 'its metadata')}, which says that it was taken off"
    elif baseline not in (UNKNOWN, AMBIGUOUS):
        offset = OFFSET if baseline >= FIRST else 0
        yield offset, False, f"{claims.said('baseline', 'its name')} (baseline {baseline / 100:05.2f})"


def offset_evidence(numbers: Bands, modality: str = "") -> Evidence:
    """Finds the offset of an image by its pixels.

    Without an offset some pixels are nearly black in some band: cirrus in L1C; water, shadow, or red and short-wave
    infrared of plants in any. With one next to nothing lies below 1000 DN: light from the top of the air cannot, and
    reflectance at the ground may by a few percent, where too much air was removed (over water, in shadow).

    Args:
        numbers: Digital numbers by band, NaN where missing.
        modality: ``"s2l1c"`` or ``"s2l2a"``, where it is known.

    Returns:
        1000, 0, or -1 where dark pixels are missing, such as in desert, snow and cloud.
    """
    dark = {b: float(np.nanpercentile(v, 1)) for b, v in numbers.items() if np.isfinite(v).sum() >= FEW}
    if not dark:
        return Evidence(UNKNOWN, 0, "there are too few pixels")
    low = sorted(dark, key=lambda band: dark[band])
    words = f"1 % of {low[0]} lies below {dark[low[0]]:.0f} DN"
    limit = 900 if modality == "s2l1c" else 500
    # of the blue bands, from which most air is removed, one alone may be as dark by error
    alone = modality == "s2l1c" or low[0] not in ("B01", "B02", "B03") or len(low) == 1
    if dark[low[0]] < limit and (alone or dark[low[1]] < 600):
        return Evidence(0, CERTAIN, words)
    red = _red_of_plants(numbers)
    if red < 850:
        return Evidence(0, CERTAIN, f"plants have only {red:.0f} DN in B04")
    infrared = [dark[band] for band in ("B11", "B12") if band in dark]
    others = [value for band, value in dark.items() if band != "B10"]
    if 900 <= dark.get("B10", 0) <= 1200 and min(others, default=900) >= 850 and min(infrared, default=0) < 2500:
        return Evidence(OFFSET, CERTAIN, f"cirrus B10 is {dark['B10']:.0f} DN where it is darkest")
    if 850 <= dark[low[0]] < 1700:
        if (1020 if modality == "s2l2a" else 1250) <= red < 1900:
            strength = LIKELY if infrared else FITS
            return Evidence(OFFSET, strength, f"plants have {red:.0f} DN in B04, and no more than {words}")
        flat = [*infrared, dark.get("B8A", dark.get("B08", np.nan))]
        if infrared and max(flat) <= 1200 and np.ptp(flat) <= 150 and dark.get("B04", 0) < 1500:
            return Evidence(OFFSET, LIKELY, f"water has {min(flat):.0f} to {max(flat):.0f} DN in infrared")
    return Evidence(UNKNOWN, 0, f"its darkest pixels fit 0 as well as 1000 ({words})")


def _red_of_plants(numbers: Bands) -> float:
    """Returns the 5th percentile of B04 over plants, which are much brighter in B08; NaN where there are few."""
    red, infrared = numbers.get("B04", np.empty(0)), numbers.get("B08", numbers.get("B8A", np.empty(1)))
    if red.shape != infrared.shape:
        return np.nan
    plants = red[infrared - red > 1500]
    return float(np.percentile(plants, 5)) if plants.size >= max(FEW, 0.01 * red.size) else np.nan


def offset_beside(l2a: Bands, l1c: Bands) -> int:
    """Finds the offset of an L2A image by the L1C image of the same day.

    Short-wave infrared passes the air almost unchanged: in B11 and B12 the dark ends (1st percentiles) of L2A are about
    1.1 times those of L1C, or that and 1000.

    Args:
        l2a: Digital numbers by band, NaN where missing.
        l1c: The same of L1C, without an offset; 0 is missing, too.

    Returns:
        1000 or 0; -1 where the bands are more than 400 DN from either, or are not there.
    """
    images = [{b: v[v > 0] for b, v in image.items() if b in ("B11", "B12")} for image in (l2a, l1c)]
    shared = [band for band in images[0] if all(image.get(band, np.empty(0)).size >= FEW for image in images)]
    dark = [np.array([np.percentile(image[band], 1) for band in shared]) for image in images]
    apart = dark[0] - 1.1 * dark[1]
    return next((offset for offset in (0, OFFSET) if shared and (abs(apart - offset) < 400).all()), UNKNOWN)

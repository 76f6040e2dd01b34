"""Evidence in Sentinel-2's pixels: their unit, their level, the order of their bands, the offset of baseline 04.00.

Thresholds are measured on real tiles with and without an offset; what lies between them tells nothing. See
``docs/radiometry.md``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from terrafm_tg.errors import TerraFMError

from .bands import Bands, check_order, find_level
from .claims import AMBIGUOUS, FIRST, OFFSET, UNKNOWN, Claims, ContradictionError, Settings, Verdict, baselines_by_name

_FEW = 100  # valid pixels of a band that tell nothing
_MOST = 1 << 18  # pixels of a band that are looked at
#: Digital numbers per unit of optics.
_FULL = {"DN": 1.0, "reflectance": 10_000.0}
_HUGE = 1e6  # a number of no unit
_LIMIT = np.iinfo(np.uint16).max
#: Between these digital numbers lie the brightest pixels of an image (the highest 99th percentile of its bands).
_BRIGHT = (255, 40_000)
#: Strength of evidence: good for agreeing with a claim only, good without any, and excluding the contrary.
FITS, LIKELY, CERTAIN = 1, 2, 3


class Evidence(NamedTuple):
    """A finding on the offset, its strength, and the reason in words."""

    offset: int
    strength: int
    words: str


def judge_optics(
    claims: Claims, pixels: Bands, settings: Settings, modality: str, fill: tuple[float, ...], beside: Bands | None
) -> Verdict:
    """Concludes on Sentinel-2; see :func:`~.judge.judge`."""
    who = claims.product or "The image"
    pixels = {band: values for band, values in pixels.items() if band.startswith("B")}
    piles = find_piles(pixels, fill, 0, 9999)
    fill = (*fill, *piles)
    stored = {band: without(values, fill) for band, values in pixels.items()}
    stored = {band: values for band, values in stored.items() if np.isfinite(values).any()}
    bytes_only = any(values.dtype == np.uint8 for values in pixels.values())
    scale, add, tagged, unit = _scale(who, claims, settings, modality, stored, bytes_only)
    numbers = {band: np.rint(values * scale + add) for band, values in stored.items()}
    numbers = {band: np.where((v > -OFFSET) & (v <= _LIMIT), v, np.nan) for band, v in numbers.items()}
    numbers = {band: v for band, v in numbers.items() if np.isfinite(v).sum() >= _FEW}
    check_order(who, claims, settings.of("bands", modality), numbers, len(pixels))
    modality, level = find_level(who, claims, numbers, modality)
    offset, proof = _offset(who, claims, settings.of("offset", modality), modality, numbers, tagged, beside)
    missing = f"missing where {', '.join(f'{x:g}' for x in piles)}" if piles else ""
    return Verdict(modality, "DN", scale, add, offset, fill, "; ".join(filter(None, (unit, level, proof, missing))))


def without(values: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
    """Returns stored values as float64, NaN where they are missing; of a large image every n-th pixel."""
    step = max(int(np.ceil(np.sqrt(values.size / _MOST))), 1)
    values = values[..., ::step, ::step] if values.ndim > 1 else values[::step]
    numbers = values.astype(np.float64)
    return np.where(np.isin(values, fill) | ~(np.abs(numbers) < _HUGE), np.nan, numbers)


def find_piles(pixels: Bands, fill: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
    """Finds fill values that nobody declared: of what lies outside of a range nearly all is one and the same number.

    Args:
        pixels: Stored values by band.
        fill: Fill values that are known.
        low: A number below is looked at in each band alone.
        high: A number of so much or more only where all bands, two or more, hold the same.

    Returns:
        Those fill values.
    """
    values = [held[np.isfinite(held)] for held in (without(x, fill) for x in pixels.values())]
    below = {top for held in values if (top := _pile(held, held < low)) is not None}
    above = {_pile(held, held >= high) for held in values}
    return (*below, *(top for top in above if top is not None and len(above) == 1 < len(values)))


def _pile(values: np.ndarray, far: np.ndarray) -> float | None:
    kinds, counts = np.unique(values[far], return_counts=True)
    enough = far.sum() >= max(0.005 * values.size, 3) and counts.max() >= 0.9 * far.sum()
    return float(kinds[counts.argmax()]) if enough else None


def _scale(
    who: str, claims: Claims, settings: Settings, modality: str, stored: Bands, bytes_only: bool
) -> tuple[float, float, bool, str]:
    """Finds digital numbers per stored number.

    Returns:
        Factor and summand, whether a tag says that +1000 DN are held, and the reason in words.
    """
    high = max((float(np.nanpercentile(v, 99)) for v in stored.values()), default=np.nan)
    told_scale, told = settings.of("scale", modality), settings.of("unit", modality)
    factor, summand = claims.scale or 1.0, claims.offset or 0.0
    tagged = min(abs(summand + OFFSET), abs(summand * 10_000 + OFFSET)) < 0.5
    if told not in (None, "DN", "reflectance"):
        raise TerraFMError(f"`unit` is {told!r} for {modality}: it must be 'DN' or 'reflectance'.")
    if told_scale:
        if high == high and not _BRIGHT[0] / 10 <= high * told_scale <= _LIMIT:
            raise ContradictionError(
                f"{who} holds numbers up to {high:.4g}, which are no digital numbers times {told_scale:g}: correct "
                "`scale`."
            )
        return float(told_scale), 0.0, tagged, f"digital numbers are {told_scale:g} x stored by `scale`"
    if bytes_only:
        raise ContradictionError(
            f"{who} holds 8-bit numbers, as a picture whose stretch is unknown: take the product's own numbers, or set "
            "`scale` to the digital numbers per step."
        )
    said = claims.unit if claims.unit in _FULL else None
    tag, origin = f"{claims.said('scale', 'its scale tag')} of {factor:g}", claims.said("unit", "its metadata")
    fits = dict[tuple[bool, str], tuple[float, float]]()
    for use_tag in (True, False) if (factor, summand) != (1, 0) else (False,):
        for unit in [told] if told else [said] if said and use_tag else _FULL:
            scale = _FULL[unit] * (factor if use_tag else 1)
            scale = round(scale) if scale > 0.5 and abs(scale / round(scale) - 1) < 1e-5 else scale
            add = _FULL[unit] * summand if use_tag and not tagged else 0.0
            low = 10 if told and not use_tag else _BRIGHT[0]
            if high != high or low <= high * scale + add <= _BRIGHT[1]:
                fits[use_tag, unit] = float(scale), float(add)
    if not fits:
        likely = next((unit for unit, full in _FULL.items() if 10 <= high * full <= _BRIGHT[1]), None)
        sure = f"{told} by `unit`" if told else f"{said} by {origin}" if said else "digital numbers or reflectance"
        fix = f"set `unit` to {likely!r}" if likely else "set `scale` to the digital numbers per stored number"
        raise ContradictionError(
            f"{who} holds numbers up to {high:.4g}, which cannot be {sure}: {fix}{' if they are that' * bool(likely)}."
        )
    (used, unit), (scale, add) = next(iter(fits.items()))
    if not told and said not in (None, unit):
        raise ContradictionError(
            f"{who} holds {unit} by its numbers up to {high:.4g}, but {said} by {origin}: set `unit` to what it is."
        )
    if not told and not used and factor != 1:
        raise ContradictionError(
            f"{who} holds {unit} by its numbers up to {high:.4g}, but has {tag}: set `unit` to {unit!r} if it does not "
            "hold."
        )
    reason = "`unit`" if told else origin if said else f"numbers up to {high:.4g}"
    return scale, add, tagged, f"{unit} by {reason}" + f" and {tag}" * (used and factor != 1)


def _offset(
    who: str, claims: Claims, told: int | str | None, modality: str, numbers: Bands, tagged: bool, beside: Bands | None
) -> tuple[int, str]:
    """Finds the offset, and the reason in words."""
    seen = offset_evidence(numbers, modality)
    if seen.strength < LIKELY and beside:
        apart = offset_beside(numbers, beside)
        if apart != UNKNOWN:
            seen = Evidence(apart, CERTAIN, "the L1C image of the same day")
    if told in (0, OFFSET):
        if seen.strength == CERTAIN and seen.offset != told:
            raise ContradictionError(
                f"{who} has an offset of {seen.offset} DN by its pixels ({seen.words}), but `offset` is {told}: "
                f"correct `offset` to {seen.offset} or 'detect'."
            )
        return int(told), f"offset {told} by `offset`"
    said = [*_said(claims, tagged)]
    sides = {offset for offset, sure, _ in said if sure} or {offset for offset, _, _ in said}
    words = " and ".join(f"{offset} by {why}" for offset, _, why in said)
    if seen.strength == FITS and sides != {OFFSET}:
        seen = seen._replace(offset=UNKNOWN)
    if seen.offset != UNKNOWN:
        if sides and seen.offset not in sides:
            raise ContradictionError(
                f"{who} has an offset of {seen.offset} DN by its pixels ({seen.words}), but {words}: set `offset` to "
                f"{seen.offset} if the pixels are right, else to {OFFSET - seen.offset}."
            )
        return seen.offset, f"offset {seen.offset} by its pixels ({seen.words})"
    if len(sides) > 1:
        raise ContradictionError(
            f"{who} has an offset of {words}, and its pixels do not tell ({seen.words}): set `offset` to 0 or 1000."
        )
    if sides and (any(sure for _, sure, _ in said) or sides == {0}):
        return sides.pop(), f"offset {words}"
    return (
        UNKNOWN,
        f"offset unknown: {f'{words}, which its provider may have taken off, and ' * bool(words)}{seen.words}",
    )


def _said(claims: Claims, tagged: bool) -> Iterator[tuple[int, bool, str]]:
    """Yields what claims say of the offset: its value, whether they speak of these very pixels, and who does."""
    if tagged:
        yield OFFSET, True, f"{claims.said('offset', 'its offset tag')} of {claims.offset:g}"
    baseline = int(baselines_by_name([claims.product])[0]) if claims.baseline is None else claims.baseline
    known = baseline not in (UNKNOWN, AMBIGUOUS)
    words = f"{claims.said('baseline', 'its name')} (baseline {baseline / 100:05.2f})"
    if claims.offset_applied:
        yield 0, True, f"{claims.said('offset_applied', 'its metadata')} (taken off)"
    elif known and baseline < FIRST:
        yield 0, True, words
    elif known:
        yield OFFSET, claims.offset_applied is False, words


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
    dark = {b: float(np.nanpercentile(v, 1)) for b, v in numbers.items() if np.isfinite(v).sum() >= _FEW}
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
        return Evidence(0, CERTAIN, f"plants have {red:.0f} DN in B04")
    infrared = [dark[band] for band in ("B11", "B12") if band in dark]
    others = [value for band, value in dark.items() if band != "B10"]
    if 900 <= dark.get("B10", 0) <= 1200 and min(others, default=900) >= 850 and min(infrared, default=0) < 2500:
        return Evidence(OFFSET, CERTAIN, f"cirrus B10 is {dark['B10']:.0f} DN where it is darkest")
    if 850 <= dark[low[0]] < 1700:
        if (1020 if modality == "s2l2a" else 1250) <= red < 1900:
            strength = LIKELY if infrared else FITS
            return Evidence(
                OFFSET, strength, f"plants have {red:.0f} DN in B04, and {words.replace('lies', 'only lies')}"
            )
        flat = [*infrared, dark.get("B8A", dark.get("B08", np.nan))]
        if infrared and max(flat) <= 1200 and np.ptp(flat) <= 150 and dark.get("B04", 0) < 1500:
            return Evidence(OFFSET, LIKELY, f"water has {min(flat):.0f} to {max(flat):.0f} DN in infrared")
    return Evidence(UNKNOWN, 0, f"its darkest pixels fit both ({words})")


def _red_of_plants(numbers: Bands) -> float:
    """Returns the 5th percentile of B04 over plants, which are much brighter in B08; NaN where there are few."""
    red, infrared = numbers.get("B04", np.empty(0)), numbers.get("B08", numbers.get("B8A", np.empty(1)))
    if red.shape != infrared.shape:
        return np.nan
    plants = red[infrared - red > 1500]
    return float(np.percentile(plants, 5)) if plants.size >= max(_FEW, 0.01 * red.size) else np.nan


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
    shared = [band for band in images[0] if all(image.get(band, np.empty(0)).size >= _FEW for image in images)]
    dark = [np.array([np.percentile(image[band], 1) for band in shared]) for image in images]
    apart = dark[0] - 1.1 * dark[1]
    return next((offset for offset in (0, OFFSET) if shared and (abs(apart - offset) < 400).all()), UNKNOWN)


def offset_by_pixels(bands: Bands) -> int:
    """Finds the offset of an image by its pixels alone, where they leave no doubt.

    Args:
        bands: Digital numbers by band, 0 where missing.

    Returns:
        1000 or 0; -1 where they do.
    """
    found = offset_evidence({band: without(values, (0.0,)) for band, values in bands.items()})
    return found.offset

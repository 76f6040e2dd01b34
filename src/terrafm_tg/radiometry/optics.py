"""Evidence in Sentinel-2's pixels: their unit, their level, the order of their bands, the offset of baseline 04.00.

Thresholds are measured on real tiles with and without an offset; what lies between them tells nothing. See
``docs/radiometry.md``.
"""

import numpy as np

from terrafm_tg.errors import TerraFMError

from .bands import check_last, check_order, find_level
from .claims import OFFSET, Claims, ContradictionError, Settings, Verdict
from .offset import FEW, Bands, find_offset

_MOST = 1 << 14  # pixels of a band that are looked at
#: Digital numbers per unit of optics.
_FULL = {"DN": 1.0, "reflectance": 10_000.0}
#: A number of no unit.
HUGE = 1e6
_LIMIT = np.iinfo(np.uint16).max
#: Ends of 10 to 14 bits.
_FULL_SCALE = (1023, 2047, 4095, 8191, 16383)
#: Between these digital numbers lie the brightest pixels of an image (the highest 99th percentile of its bands).
_BRIGHT = (256, 40_000)


def judge_optics(
    claims: Claims, pixels: Bands, settings: Settings, modality: str, fill: tuple[float, ...], beside: Bands | None
) -> Verdict:
    """Concludes on Sentinel-2; see :func:`~.judge.judge`."""
    who = claims.product or "The image"
    pixels = {band: values for band, values in pixels.items() if band.startswith("B")}
    piles = find_piles(pixels, fill, 0, 9999)
    piles = (*piles, *_find_common(pixels, (*fill, *piles)))
    fill = (*fill, *piles)
    stored = {band: without(values, fill) for band, values in pixels.items()}
    stored = {band: values for band, values in stored.items() if np.isfinite(values).any()}
    bytes_only = any(values.dtype == np.uint8 for values in pixels.values())
    if "bands" not in claims.source and not settings.of("bands", modality):
        check_last(who, stored)
    told = settings.of("unit", modality) or settings.of("scale", modality) or claims.scale not in (None, 1)
    if not told and not any(values.dtype == np.float16 for values in pixels.values()):
        _check_division(who, stored)
    scale, add, tagged, unit = _scale(who, claims, settings, modality, stored, bytes_only)
    if not told:
        _check_stretch(who, pixels, stored, scale)
    numbers = {band: np.rint(values * scale + add) for band, values in stored.items()}
    beyond = {band: (v < -OFFSET) | (v > _LIMIT) for band, v in numbers.items()}
    share = max((float(lost.sum() / np.isfinite(numbers[band]).sum()) for band, lost in beyond.items()), default=0.0)
    if share > 0.02:
        raise ContradictionError(
            f"{who} has {share:.0%} of a band below reflectance -0.1 or above 6.5 ({unit}): set `nodata` if these are "
            "fill, else take the product's own numbers."
        )
    numbers = {band: np.where((v > -OFFSET) & (v <= _LIMIT), v, np.nan) for band, v in numbers.items()}
    numbers = {band: v for band, v in numbers.items() if np.isfinite(v).sum() >= FEW}
    check_order(who, claims, settings.of("bands", modality), numbers, len(pixels))
    modality, level = find_level(who, claims, numbers, modality)
    offset, proof = find_offset(who, claims, settings.of("offset", modality), modality, numbers, tagged, beside)
    missing = f"missing where {', '.join(f'{x:g}' for x in piles)}" if piles else ""
    return Verdict(modality, "DN", scale, add, offset, fill, "; ".join(filter(None, (unit, level, proof, missing))))


def _check_division(who: str, stored: Bands) -> None:
    """Refuses whole numbers of 8 or 16 bits that were divided by the largest, as pictures are read, for reflectance."""
    flat = np.concatenate([values[np.isfinite(values)] for values in stored.values()] or [np.empty(0)])
    if not flat.size or not 0 < flat.max() <= 1:
        return
    whole = {n: bool((abs(flat * n - np.rint(flat * n)) < 0.02).all()) for n in (1, 10_000, _LIMIT, 255)}
    if whole[_LIMIT] and not whole[10_000] and not whole[1]:
        picture = "255, as a picture whose stretch is unknown: take the product's own numbers"
        raise ContradictionError(
            f"{who} holds whole numbers divided by {picture if whole[255] else f'{_LIMIT:,}: set `scale` to {_LIMIT}'}."
        )


def _check_stretch(who: str, pixels: Bands, stored: Bands, scale: float) -> None:
    """Refuses numbers that look like reflectance or digital numbers and were made of others, by a stretch or a wrap.

    Args:
        who: Name of the image.
        pixels: All stored values by band.
        stored: A part of them, NaN where missing.
        scale: Digital numbers per stored number, as it seems.
    """
    flat = np.concatenate([values[np.isfinite(values)] for values in stored.values()] or [np.empty(0)])
    if not flat.size:
        return
    top = max(float(np.nanmax(pixels[band])) for band in stored)
    cut = top == 1 if scale == _FULL["reflectance"] else scale == 1 and top in _FULL_SCALE
    if cut and (count := sum(int(np.count_nonzero(pixels[band] == top)) for band in stored)) >= 3:
        unit = "DN" if scale == 1 else "reflectance"
        raise ContradictionError(
            f"{who} holds numbers up to exactly {top:g} ({count:,} of them), as a picture whose stretch is unknown: "
            f"take the product's own numbers, or set `unit` to {unit!r} if they were cut off there."
        )
    wrapped = int(((flat > _LIMIT - OFFSET) & (flat < _LIMIT)).sum())
    if scale == 1 and wrapped >= 3 and not ((flat > _BRIGHT[1]) & (flat <= _LIMIT - OFFSET)).any():
        raise ContradictionError(
            f"{who} has pixels of more than {_LIMIT - OFFSET:,} DN beside dark ones, as numbers below 0 that were "
            "stored without a sign: store them as int16, or set `nodata` if they are fill."
        )


def without(values: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
    """Returns stored values as float64, NaN where they are missing; of a large image every n-th pixel."""
    step = max(int(np.ceil(np.sqrt(values.size / _MOST))), 1)
    values = values[..., ::step, ::step] if values.ndim > 1 else values[::step]
    numbers = values.astype(np.float64)
    return np.where(np.isin(values, fill) | ~(np.abs(numbers) < HUGE), np.nan, numbers)


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


def _find_common(pixels: Bands, fill: tuple[float, ...]) -> tuple[float, ...]:
    """Finds a fill value that nobody declared among usual numbers: many pixels hold it in all bands at once."""
    shapes = [values.shape for values in pixels.values()]
    alike = [without(values, fill) for values in pixels.values() if shapes.count(values.shape) >= 3]
    if not alike or len({values.shape for values in alike}) > 1:
        return ()
    same = np.isfinite(alike[0]) & (np.ptp(np.stack(alike), axis=0) == 0)
    same &= (alike[0] != 1) & ~np.isclose(alike[0], 1e-4, atol=0)  # 1 DN: black, not missing
    top = _pile(alike[0], same) if same.any() else None
    if top is None or all(np.nanmax(values) <= top for values in alike):
        return ()  # where nothing is brighter it is where numbers were cut, or one color all over
    return (top,)


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
    top = f"{high:.4g}" if high < 10_000 else f"{high:.0f}"
    whole = all((values[np.isfinite(values)] % 1 == 0).all() for values in stored.values())
    # a sea may be as dark as a picture of 8 bits
    infrared, blue = (stored.get(name, np.zeros(1)) for name in ("B08" if "B08" in stored else "B8A", "B02"))
    water = 0 < np.nanpercentile(infrared, 99) < np.nanmedian(blue)
    sea = whole and water
    told_scale, told = settings.of("scale", modality), settings.of("unit", modality)
    factor, summand = claims.scale or 1.0, claims.offset or 0.0
    tagged = min(abs(summand + OFFSET), abs(summand * 10_000 + OFFSET)) < 0.5
    if told not in (None, "DN", "reflectance"):
        raise TerraFMError(f"`unit` is {told!r} for {modality}: it must be 'DN' or 'reflectance'.")
    if told_scale:
        if high == high and not _BRIGHT[0] / 10 <= high * told_scale <= _LIMIT:
            raise ContradictionError(
                f"{who} holds numbers up to {top}, which are no digital numbers times {told_scale:g}: correct `scale`."
            )
        return float(told_scale), 0.0, tagged, f"digital numbers are {told_scale:g} x stored by `scale`"
    if bytes_only:
        raise ContradictionError(
            f"{who} holds 8-bit numbers, as a picture whose stretch is unknown: take the product's own numbers, or set "
            "`scale`, if you know the stretch, to the digital numbers (reflectance x 10,000) of one step."
        )
    said = claims.unit if claims.unit in _FULL else None
    tag, origin = f"a scale of {factor:g} by {claims.said('scale', 'its tags')}", claims.said("unit", "its metadata")
    fits = dict[tuple[bool, str], tuple[float, float]]()
    least = 1000 if not (told or water) and {"B08", "B8A"} & {*stored} else _BRIGHT[0]  # infrared of any land
    for use_tag in (True, False) if (factor, summand) != (1, 0) else (False,):
        for unit in [told] if told else [said] if said and use_tag else _FULL:
            scale = _FULL[unit] * (factor if use_tag else 1)
            scale = round(scale) if scale > 0.5 and abs(scale / round(scale) - 1) < 1e-5 else scale
            add = _FULL[unit] * summand if use_tag and not tagged else 0.0
            low = 10 if sea or (told and whole and not use_tag) else least
            if high != high or low <= high * scale + add <= _BRIGHT[1]:
                fits[use_tag, unit] = float(scale), float(add)
    if not fits:
        likely = "DN" if whole and 10 <= high <= _BRIGHT[1] else "reflectance" if 0 < high <= 4 else ""
        sure = f"{told} by `unit`" if told else f"{said} by {origin}" if said else "digital numbers or reflectance"
        fix = f"set `unit` to {likely!r}" if likely else "set `scale` to the digital numbers per stored number"
        fix += " if they are that" * (likely == "DN")
        raise ContradictionError(f"{who} holds numbers up to {top}, which cannot be {sure}: {fix}.")
    (used, unit), (scale, add) = next(iter(fits.items()))
    if not told and said not in (None, unit):
        raise ContradictionError(
            f"{who} holds {unit} by its numbers up to {top}, but {said} by {origin}: set `unit` to what it is."
        )
    if not told and not used and factor != 1:
        raise ContradictionError(
            f"{who} holds {unit} by its numbers up to {top}, but has {tag}: set `unit` to {unit!r} if it does not hold."
        )
    seen = f"numbers up to {top}" if high == high else "supposition, for no pixel was seen"
    reason = "`unit`" if told else origin if said else seen
    name = "DN" if (scale, add) == (1, 0) else unit  # reflectance / 10,000 by its tag: the numbers are DN as they are
    return scale, add, tagged, f"{name} by {reason}" + f" and {tag}" * (used and factor != 1)

"""The one judge of pixels: unit, scale, fill, offset, level and order of bands, from evidence."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality

from .claims import (
    AMBIGUOUS,
    FILLS,
    FIRST,
    UNITS,
    UNKNOWN,
    Claims,
    ContradictionError,
    Settings,
    Verdict,
    baselines_by_name,
)
from .offset import Bands
from .optics import HUGE, find_piles, judge_optics, without

#: Bands whose stored values tell, in a window of some 1,000 pixels a side; of a file without names all bands do.
TELLING = ("B01", "B02", "B04", "B08", "B8A", "B09", "B10", "B11", "B12", "VV", "VH")
#: Between these lie the median backscatter of an image in dB.
_RANGE = {"VV": (-28.0, 3.0), "VH": (-40.0, -3.0)}
#: Variance of the natural logarithm of power in the quietest places of an image of one date at 10 m: 0.09 to 0.17 by
#: measurement. Amplitude has a quarter of it; so may power that was filtered, which is why less of it tells nothing.
_SPECKLE = (0.075, 0.28)
#: Decibels below which lies noise: a number that many pixels there share was not measured.
_QUIET = -45.0
#: Amplitude of some archives is in steps, of which dB = 20 * log10(step) - 83.
_STEP = 10 ** (-83 / 20)


def judge(
    claims: Claims,
    pixels: Mapping[str, np.ndarray],
    settings: Settings | None = None,
    beside: Mapping[str, np.ndarray] | None = None,
) -> Verdict:
    """Concludes how an image's stored numbers are to be read.

    Args:
        claims: Statements apart from the pixels.
        pixels: Stored values by band, of :data:`TELLING` those that there are; NaN where masked.
        settings: The user's word, which decides a contradiction.
        beside: Digital numbers of the L1C image of the same day by band, 0 where missing, without the offset.

    Returns:
        The verdict; its offset is -1 where nothing tells.

    Raises:
        ContradictionError: If evidence excludes each other, or the pixels can be of no unit; the sentence names the
            evidence and the setting that decides.
        TerraFMError: If a setting is not of that sensor.
    """
    settings = settings or Settings()
    if odd := next((str(values.dtype) for values in pixels.values() if values.dtype.kind not in "uif"), None):
        raise TerraFMError(
            f"{claims.product or 'The image'} holds {odd} numbers: take its detected power or reflectance."
        )
    modality = claims.modality or ("s1rtc" if {"VV", "VH"} & {*pixels} else "")
    named = (claims.nodata, settings.of("nodata", modality))
    fill = tuple(dict.fromkeys((0.0, *FILLS, *(float(x) for x in named if x is not None and np.isfinite(x)))))
    if modality == "s1rtc":
        return _judge_radar(claims, pixels, settings, fill)
    return judge_optics(claims, pixels, settings, modality and get_modality(modality).name, fill, beside)


def settle(claims: Sequence[Claims], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Settles unknown offsets by the other images of one archive, whose provider takes it off everywhere or nowhere.

    Args:
        claims: Of each image.
        verdicts: Of each image.

    Returns:
        The verdicts: an offset that is not known becomes that of the other images of the same level whose baselines
        are on the same side of 04.00, where there are any and they agree.
    """
    names = baselines_by_name(claim.product for claim in claims)
    numbers = [int(n) if claim.baseline is None else claim.baseline for claim, n in zip(claims, names, strict=True)]
    kinds = [
        (verdict.modality, None if number in (UNKNOWN, AMBIGUOUS) else number >= FIRST)
        for verdict, number in zip(verdicts, numbers, strict=True)
    ]
    held = defaultdict[tuple[str, bool | None], set[int]](set)
    for verdict, kind in zip(verdicts, kinds, strict=True):
        held[kind] |= {verdict.offset} - {UNKNOWN}
    settled = []
    for verdict, kind in zip(verdicts, kinds, strict=True):
        if verdict.offset == UNKNOWN and kind[1] is not None and len(held[kind]) == 1:
            when = "from baseline 04.00 on" if kind[1] else "before baseline 04.00"
            offset = min(held[kind])
            proof = f"{verdict.proof}; offset {offset}, as the archive's other images {when} have it"
            verdict = replace(verdict, offset=offset, proof=proof)
        settled.append(verdict)
    return settled


def _decibels(values: np.ndarray, unit: str) -> np.ndarray:
    """Converts to dB; NaN where nothing was measured."""
    if unit == "dB":
        return np.where(np.abs(values) <= 90, values, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, (10 if unit == "linear" else 20) * np.log10(values), np.nan)


def _misfit(bands: Bands, unit: str) -> str:
    """Tells why numbers cannot be of a unit; empty where they can."""
    for band, values in bands.items():
        held = values[np.isfinite(values)]
        level = _decibels(held, unit)
        level = level[np.isfinite(level)]
        if held.size and level.size < 0.5 * held.size:
            return f"{band} lies beyond -90 to 90 dB" if unit == "dB" else f"{band} is negative"
        negative = float((held < 0).mean()) if held.size else 0.5 * (unit == "dB")
        if (negative < 0.5) if unit == "dB" else (negative > 0.05):
            return f"{negative:.0%} of {band} are negative"
        if level.size and not _RANGE[band][0] <= (middle := float(np.median(level))) <= _RANGE[band][1]:
            return f"the median of {band} would be {middle:.0f} dB"
    return ""


def _fits(stored: Bands, scale: float, add: float = 0.0) -> list[str]:
    scaled = {band: values * scale + add for band, values in stored.items()}
    return [unit for unit in UNITS["dB"] if not _misfit(scaled, unit)]


def _speckle(pixels: Bands, fill: tuple[float, ...]) -> float:
    """Returns the variance of ln(stored) in the quietest third of blocks of 7 x 7 pixels; NaN where there are few."""
    found = []
    for values in pixels.values():
        middle = tuple(slice(max(side // 2 - 256, 0), side // 2 + 256) for side in values.shape)
        held = values[middle].astype(np.float64)
        held = np.where(np.isin(held, fill) | ~(np.abs(held) < HUGE), np.nan, held)
        logs = _decibels(held, "linear") * (np.log(10) / 10)
        height, width = (side // 7 for side in logs.shape)
        blocks = logs[: height * 7, : width * 7].reshape(height, 7, width, 7).swapaxes(1, 2).reshape(-1, 49)
        spread = np.sort(blocks[np.isfinite(blocks).all(axis=1)].var(axis=1))
        if len(spread) >= 60:
            found.append(float(spread[: len(spread) // 3].mean()))
    return min(found, default=np.nan)


def _judge_radar(claims: Claims, pixels: Bands, settings: Settings, fill: tuple[float, ...]) -> Verdict:
    """Concludes on Sentinel-1."""
    who = claims.product or "The image"
    pixels = {band: values for band, values in pixels.items() if band in _RANGE}
    scale, add = settings.of("scale", "s1rtc") or claims.scale or 1.0, claims.offset or 0.0
    least = (10 ** (_QUIET / 10) - add) / scale  # power; of decibels nearly none lie above
    piles = find_piles(pixels, fill, -90, 100 if (scale, add) == (1, 0) else 9999)
    piles = (*piles, *find_piles(pixels, (*fill, *piles), least, np.inf))
    fill = (*fill, *piles)
    stored = {band: without(values, fill) for band, values in pixels.items()}
    stored = {band: values for band, values in stored.items() if np.isfinite(values).any()}
    told, told_scale = settings.of("unit", "s1rtc"), settings.of("scale", "s1rtc")
    if told not in (None, *UNITS["dB"]):
        raise TerraFMError(f"`unit` is {told!r} for s1rtc: it must be 'dB', 'linear' or 'amplitude'.")
    said = claims.unit if claims.unit in UNITS["dB"] else None
    asked, by = (told, "`unit`") if told else (said, claims.said("unit", "its metadata"))
    tag, origin = (claims.scale or 1.0, claims.offset or 0.0), claims.said("scale", "its tags")
    if told_scale:
        tag, origin = (float(told_scale), 0.0), "`scale`"
    if any(values.dtype == np.uint8 for values in pixels.values()) and tag == (1, 0):
        raise ContradictionError(
            f"{who} holds 8-bit numbers, as a picture whose stretch is unknown: take the product's own numbers, or set "
            "`unit` and `scale` if you know the stretch."
        )
    fits, plain = _fits(stored, *tag), [] if told_scale or tag == (1, 0) else _fits(stored, 1.0)
    if told in plain and told not in fits:  # the user passes over the tag
        tag, fits, plain = (1.0, 0.0), plain, []
    if not fits and plain:
        raise ContradictionError(
            f"{who} holds {' or '.join(plain)} by its numbers, but has a scale of {tag[0]:g} by {origin}: set `unit` "
            "to what it is if the tag does not hold."
        )
    if not fits or (asked and asked not in fits):
        reason = _misfit({band: values * tag[0] + tag[1] for band, values in stored.items()}, asked or "dB")
        what = f"is in {asked}{' power' * (asked == 'linear')} by {by}, but {reason}"
        if not asked:
            what = f"does not say its unit, and its numbers are of none as they are (taken as dB, {reason})"
        raise ContradictionError(f"{who} {what}: {_likely(stored, fits)}.")
    unit = asked or fits[0]
    if unit in plain:
        raise ContradictionError(
            f"{who} may be {unit} with a scale of {tag[0]:g} by {origin} or without: set `scale` to their factor."
        )
    if unit != "dB":
        unit, by = _power_or_amplitude(who, stored, pixels, fill, fits, asked, bool(told), by)
    elif not asked:
        by = "its numbers, which are negative" if stored else "supposition, for no pixel was seen"
    if unit == "dB":
        quiet = find_piles(pixels, fill, (_QUIET - tag[1]) / tag[0], np.inf)
        piles, fill = (*piles, *quiet), (*fill, *quiet)
        _check_logarithm(who, pixels, fill, tag, bool(told))
    if tag[1] and 0.0 not in (claims.nodata, settings.of("nodata", "s1rtc")):
        fill = tuple(x for x in fill if x)  # 0 is a number like others
    named = _check_polarizations(who, claims, settings, stored, tag, unit)
    missing = f"missing where {', '.join(f'{x:g}' for x in piles)}" if piles else ""
    scaled = f"a scale of {tag[0]:g} by {origin}" * (tag != (1, 0))
    proof = "; ".join(filter(None, (f"{unit} by {by}", scaled, named, missing)))
    return Verdict("s1rtc", unit, float(tag[0]), float(tag[1]), 0, fill, proof)


def _check_logarithm(who: str, pixels: Bands, fill: tuple[float, ...], tag: tuple[float, float], told: bool) -> None:
    """Refuses natural logarithms of power, which lie among decibels of very bright ground and are smoother than any."""
    levels = {b: np.where(np.isin(x, fill), np.nan, x.astype(np.float64) * tag[0] + tag[1]) for b, x in pixels.items()}
    levels = {band: _decibels(values, "dB") for band, values in levels.items()}
    if told or not np.isfinite(levels.get("VH", np.empty(0))).any() or np.nanmedian(levels["VH"]) < -7:
        return
    if (speckle := _speckle({band: 10 ** (values / 10) for band, values in levels.items()}, ())) < _SPECKLE[0] / 4:
        raise ContradictionError(
            f"{who} is as bright and smooth (variance {speckle:.3f}) as natural logarithms of power: take 4.343 times "
            "as much, which is dB, or set `unit` to 'dB' if it is that."
        )


def _power_or_amplitude(
    who: str,
    stored: Bands,
    pixels: Bands,
    fill: tuple[float, ...],
    fits: list[str],
    asked: str | None,
    told: bool,
    by: str,
) -> tuple[str, str]:
    """Tells linear power from amplitude by their speckle, and how that is known."""
    speckle = _speckle(pixels, fill)
    powerful = _SPECKLE[0] <= speckle <= _SPECKLE[1]
    if not asked:
        if len(fits) > 1 and not powerful:
            raise ContradictionError(
                f"{who} holds positive numbers, which may be linear power or amplitude: set `unit` to 'linear' or "
                "'amplitude'."
            )
        return (
            ("linear", "its numbers, whose speckle is that of power")
            if len(fits) > 1
            else (fits[0], "the size of its numbers")
        )
    if asked == "amplitude" and powerful:
        raise ContradictionError(
            f"{who} is in amplitude by {by}, but its speckle is that of linear power: set `unit` to 'linear'."
        )
    cross = _decibels(stored.get("VH", np.empty(0)), "linear")
    if (
        asked == "linear"
        and not told
        and speckle < _SPECKLE[0]
        and np.isfinite(cross).any()
        and np.nanmedian(cross) > -10
    ):
        raise ContradictionError(
            f"{who} is in linear power by {by}, but as bright and smooth as amplitude: set `unit` to what it is."
        )
    return asked, by


def _likely(stored: Bands, fits: list[str]) -> str:
    """Names the setting that numbers in no known unit likely need."""
    if fits := fits or _fits(stored, 1.0):
        return f"set `unit` to {' or '.join(map(repr, fits))}"
    for scale in (0.01, 0.1):
        if "dB" in _fits(stored, scale):
            return f"set `unit` to 'dB' and `scale` to {scale:g}, with which they would be"
    if all(np.nanmin(values) >= 0 for values in stored.values()):
        return (
            "calibrate it first if it holds amplitude as GRD has it, or set `unit` to 'amplitude' and `scale` to "
            f"{_STEP:.3g} if its archive says that dB = 20 * log10(number) - 83 (as ALOS's mosaics do)"
        )
    return "set `unit` and `scale` to what they are"


def _check_polarizations(
    who: str, claims: Claims, settings: Settings, stored: Bands, tag: tuple[float, float], unit: str
) -> str:
    """Refuses VV and VH that are exchanged, by their medians; returns how they are known, in words."""
    told, named = settings.of("bands", "s1rtc"), claims.source.get("bands", "")
    by = "`bands`" if told else named or "the usual order"
    if {"VV", "VH"} <= {*stored}:
        medians = [float(np.nanmedian(_decibels(stored[b] * tag[0] + tag[1], unit))) for b in ("VV", "VH")]
        apart = medians[0] - medians[1]
        if apart < (0 if told or named else 1):
            raise ContradictionError(
                f"{who} has VV (median {medians[0]:.1f} dB) and VH ({medians[1]:.1f} dB) by {by}, but VH is darker "
                "than VV on land and sea: set `bands` to [VH, VV] if they are stored in that order."
            )
        return f"VV lies {apart:.1f} dB above VH"
    return ""

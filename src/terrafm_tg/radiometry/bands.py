"""Evidence in Sentinel-2's pixels of the order of their bands and of their level."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from terrafm_tg.modalities import S2L1C

from .claims import OFFSET, UNKNOWN, Claims, ContradictionError
from .offset import FEW, Bands, offset_evidence

_LEVEL = re.compile(r"MSI_?(L1C|L2A)")
_TITLES = {"s2l1c": "L1C", "s2l2a": "L2A"}
#: Bands of 13 in the usual order, and neighbors in the spectrum, which resemble each other most.
_USUAL = (*S2L1C.bands[:10], "B10", *S2L1C.bands[10:])
_PAIRS = (("B02", "B03"), ("B03", "B04"), ("B06", "B07"), ("B07", "B08"), ("B08", "B8A"), ("B11", "B12"))
_BY_SIZE = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
#: Orders that files have beside the usual one.
_ORDERS = {
    "B8A last": (*(band for band in _USUAL if band != "B8A"), "B8A"),
    "L2A with a mask or classes last": (*S2L1C.bands, ""),
    "by resolution: B02, B03, B04, B08, B05, ...": (*_BY_SIZE, "B10"),
    "B04, B03, B02, B08, B05, ...": ("B04", "B03", "B02", *_BY_SIZE[3:], "B10"),
    "alphabetical: B1, B10, B11, B12, B2, ...": tuple(sorted(_USUAL, key=lambda band: band.replace("B0", "B"))),
    "reversed": _USUAL[::-1],
}


def _misfits(held: Mapping[str, float], kinds: Mapping[str, int]) -> Iterator[tuple[bool, str]]:
    """Yields what cannot be of Sentinel-2's bands, with whether that is certain, by medians and counts of numbers."""
    b = {name: held.get(name, np.nan) for name in ("B02", "B08", "B8A", "B09", "B10", "B11", "B12")}
    if b["B10"] > b["B09"] + 50:
        yield True, f"the cirrus band B10 (median {b['B10']:.0f}) is brighter than B09 ({b['B09']:.0f})"
    if b["B02"] < 3000 and all(b["B10"] - o > 0.3 * (b["B8A"] - o) > 150 for o in (0, OFFSET)):
        yield True, f"the cirrus band B10 (median {b['B10']:.0f}) is bright under a clear sky (B02 {b['B02']:.0f})"
    if b["B11"] > 500 and 10 * kinds.get("B12", 99) < min(kinds.get("B11", 0), 130):
        yield True, f"B12 holds only {kinds['B12']} numbers, as a mask or classes do"
    if b["B12"] > 1.2 * b["B11"] + 150:
        yield False, f"B12 (median {b['B12']:.0f}) is brighter than B11 ({b['B11']:.0f})"
    if b["B08"] > 700 and not 0.7 < b["B8A"] / b["B08"] < 1.45 and b["B8A"] == b["B8A"]:
        yield False, f"B8A (median {b['B8A']:.0f}) is not as bright as B08 ({b['B08']:.0f})"


def check_order(who: str, claims: Claims, told: Sequence[str] | None, numbers: Bands, count: int) -> None:
    """Refuses bands that cannot be those that they are taken for."""
    held = {band: float(np.nanmedian(values)) for band, values in numbers.items()}
    kinds = {b: len(np.unique(numbers[b][np.isfinite(numbers[b])])) for b in ("B11", "B12") if b in numbers}
    found = [words for certain, words in _misfits(held, kinds) if certain or not told]
    named = claims.source.get("bands", "")
    usual = _USUAL if count == len(_USUAL) else S2L1C.bands
    stored = "the order in which they are stored"
    alike = {} if named or told or count != len(usual) else _likeness(numbers)
    if alike:

        def score(place: Mapping[str, str]) -> float:
            return float(np.mean([alike.get((place[a], place[b]), 0.0) for a, b in _PAIRS]))

        own = score({band: band for band in usual})
        scores = {name: score(places) for name, order in _ORDERS.items() if (places := _places(order, usual))}
        best = max(scores, key=lambda name: scores[name])
        if scores[best] > max(own + 0.005, 0.82):
            found.append(f"they resemble each other as in another order ({scores[best]:.2f} against {own:.2f})")
            order = [band or "SCL" for band in _ORDERS[best] if band in usual or not band]
            stored = f"[{', '.join(order)}] (likely {best})"
        elif alike["B07", "B08"] > alike["B07", "B8A"] + 0.001 > 0.82:
            found.append("B07 resembles B08 more than B8A")
            swapped = {"B08": "B8A", "B8A": "B08"}
            stored = f"[{', '.join(swapped.get(band, band) for band in usual)}] (likely B8A before B08)"
        elif (
            own < 0.8
            and held["B08"] > 700
            and held["B02"] < 2500
            and max(x for pair, x in alike.items() if len({*pair}) > 1) > 0.9
        ):
            found.append(f"neighbors in the spectrum do not resemble each other ({own:.2f})")
    if found:
        by = "`bands`" if told else named or "the usual order"
        raise ContradictionError(f"{who} has its bands by {by}, but {found[0]}: set `bands` to {stored}.")


def check_last(who: str, stored: Bands) -> None:
    """Refuses a mask that is counted as the last band of a file without names, whatever numbers it holds."""
    kinds = [len(np.unique(stored[band][np.isfinite(stored[band])])) for band in ("B11", "B12") if band in stored]
    if len(kinds) == 2 and 10 * max(kinds[1], 1) < min(kinds[0], 130):
        first = S2L1C.bands if "B10" in stored else S2L1C.bands[:-1]
        raise ContradictionError(
            f"{who} has its bands by the usual order, but B12 holds only {kinds[1]} different "
            f"number{'s' * (kinds[1] != 1)}, as a mask or "
            f"classes do: set `bands` to [{', '.join(first)}, SCL] if that is the order in which they are stored."
        )


def _places(order: Sequence[str], usual: Sequence[str]) -> dict[str, str]:
    """Returns the usual band at the place of each band of another order; nothing where it has other bands."""
    order = [band for band in order if band in usual or not band]
    return dict(zip(order, usual, strict=True)) if len(order) == len(usual) else {}


def _likeness(numbers: Bands) -> dict[tuple[str, str], float]:
    """Returns the correlation of each pair of bands; nothing where bands differ in size, are flat, or are missing."""
    names = [*numbers]
    if not {band for pair in _PAIRS for band in pair} <= {*names} or len({v.shape for v in numbers.values()}) > 1:
        return {}
    values = np.stack([v.ravel() for v in numbers.values()])
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 1000 or not values.std(axis=1).all():
        return {}
    table = np.corrcoef(values)
    return {(a, b): float(table[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}


def find_level(who: str, claims: Claims, numbers: Bands, modality: str) -> tuple[str, str]:
    """Finds L1C or L2A; ``modality`` is what claims say, or empty."""
    match = _LEVEL.search(claims.product)
    named = {"L1C": "s2l1c", "L2A": "s2l2a"}[match[1]] if match else ""
    seen, words = level_by_pixels(numbers)
    told = {modality: claims.said("modality", "its folder"), named: f"its name ({match[1] if match else ''})"}
    told.pop("", None)
    levels = {*told, *([seen] if seen else [])}
    if not levels:
        raise ContradictionError(f"Nothing tells whether {who} is L1C or L2A: set `folders` to say which it is.")
    if len(levels) > 1:
        unnamed = "B10" in numbers and "bands" not in claims.source  # a mask or classes may have been taken for a band
        what = " and ".join(
            f"{_TITLES[name]} by {by}"
            for name, by in [*told.items(), *([(seen, words)] if seen and not unnamed else [])]
        )
        fix = "set `folders` to {s2l1c: its folder} or {s2l2a: its folder}, or give the other product"
        if unnamed:
            what += ", but has 13 bands without names, as L1C has, whose B10 no L2A product holds"
            fix = (
                f"set `bands` to [{', '.join(S2L1C.bands)}, SCL] if the last is a mask, or `folders` to "
                "{s2l1c: its folder} if it is L1C"
            )
        raise ContradictionError(f"{who} is {what}: {fix}.")
    level = levels.pop()
    return level, f"{_TITLES[level]} by {words if seen else next(iter(told.values()))}"


def _blue_over_plants(numbers: Bands) -> float:
    """Returns the median of B02 - B04 over plants, which air above them raises; NaN where there are few."""
    blue, red, infrared = (numbers.get(band, np.empty(0)) for band in ("B02", "B04", "B08"))
    if not blue.shape == red.shape == infrared.shape:
        return np.nan
    plants = (infrared - red > 1500) & np.isfinite(blue)
    return float(np.median((blue - red)[plants])) if plants.sum() >= max(FEW, 0.02 * red.size) else np.nan


def level_by_pixels(numbers: Bands) -> tuple[str, str]:
    """Tells L1C from L2A by the air above the ground, which L2A has removed.

    Args:
        numbers: Digital numbers by band, with an offset or without, NaN where missing.

    Returns:
        ``"s2l1c"``, ``"s2l2a"`` or nothing, and the reason in words.
    """
    if "B10" in numbers:
        return "s2l1c", "B10, which L2A does not have"
    held = {band: float(np.nanmedian(numbers[band])) for band in ("B02", "B8A", "B09") if band in numbers}
    seen = offset_evidence(numbers).offset
    light = {o: held.get("B8A", 0) - o for o in ((0, OFFSET) if seen == UNKNOWN else (seen,))}
    if "B09" in held and min(light.values()) > 400:
        ratios = [(held["B09"] - o) / bright for o, bright in light.items()]
        words = f"water vapor (B09 has {ratios[0]:.0%} of B8A)"
        if max(ratios) < 0.62:
            return "s2l1c", words
        if min(ratios) > 0.85 and held.get("B02", np.inf) < 2500:
            return "s2l2a", words
    above = _blue_over_plants(numbers)
    if 180 < above < 800:
        return "s2l1c", f"the air above plants (B02 lies {above:.0f} DN above B04)"
    if -1200 < above < -100:
        return "s2l2a", f"plants (B02 lies {-above:.0f} DN below B04)"
    blue = np.nanpercentile(numbers["B02"], 1) if "B02" in numbers else np.nan
    return ("s2l2a", f"its dark blue (1 % of B02 lie below {blue:.0f} DN)") if blue < 300 else ("", "")

"""The one judge of pixels: unit, scale, fill, offset, level and order of bands, from evidence."""

from collections.abc import Mapping

import numpy as np

from terrafm_tg.modalities import get_modality

from .claims import FILLS, Claims, ContradictionError, Settings, Verdict, offsets_by_name
from .stored import OFFSET, UNKNOWN

#: Bands whose stored values tell: the reader gives those that it has, and a window of 1,024 pixels is enough.
TELLING = ("B01", "B02", "B04", "B08", "B8A", "B09", "B10", "B11", "B12", "VV", "VH")


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
        ContradictionError: If evidence excludes each other; the sentence names both and the setting that decides.
        TerraFMError: If the pixels can be of no unit, or of several.
    """
    settings = settings or Settings()
    modality = claims.modality or ("s1rtc" if {"VV", "VH"} & {*pixels} else "s2l1c" if "B10" in pixels else "s2l2a")
    extra = (claims.nodata, settings.of("nodata", modality))
    fill = tuple(dict.fromkeys((0.0, *FILLS, *(float(x) for x in extra if x is not None and np.isfinite(x)))))
    if get_modality(modality).unit == "dB":
        return _radar(claims, pixels, settings, Verdict(modality, "dB", fill=fill))
    return _optics(claims, pixels, settings, Verdict(modality, "DN", fill=fill), beside)


def _valid(values: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
    """Returns the stored values (n,) float64 that are not missing."""
    values = values[np.isfinite(values)]
    return values[~np.isin(values, fill)].astype(np.float64)


def _optics(
    claims: Claims,
    pixels: Mapping[str, np.ndarray],
    settings: Settings,
    start: Verdict,
    beside: Mapping[str, np.ndarray] | None,
) -> Verdict:
    """Concludes on Sentinel-2."""
    name = start.modality
    unit = settings.of("unit", name) or claims.unit
    scale = settings.of("scale", name) or (10_000 if unit == "reflectance" else None)
    valid = {band: held for band, values in pixels.items() if (held := _valid(values, start.fill)).size}
    if scale is None:
        scale = 10_000 if valid and max(x.max() for x in valid.values()) < 10 else 1.0
    numbers = {band: np.rint(values * scale) for band, values in valid.items()}
    told = settings.of("offset", name)
    found: int = offset_by_pixels(numbers)
    said = int(offsets_by_name([claims.product])[0])
    if beside and found == UNKNOWN:
        found = offset_beside(numbers, beside, 0)
    if told in (0, OFFSET):
        offset, proof = int(told), f"`offset` is {told}"
    elif UNKNOWN not in (found, said) and found != said:
        raise ContradictionError(
            f"{claims.product} has {said} DN of offset by its name and {found} by its pixels: set `offset` to what it "
            "holds."
        )
    else:
        offset, proof = (said, "its name") if found == UNKNOWN else (found, "its pixels")
    return Verdict(name, "DN", float(scale), 0.0, offset, start.fill, f"offset {offset} by {proof}")


def _radar(claims: Claims, pixels: Mapping[str, np.ndarray], settings: Settings, start: Verdict) -> Verdict:
    """Concludes on Sentinel-1."""
    scale = settings.of("scale", "s1rtc") or claims.scale or 1.0
    valid = {band: held * scale for band, values in pixels.items() if (held := _valid(values, start.fill)).size}
    below = [float((values < 0).mean()) for values in valid.values()]
    unit = settings.of("unit", "s1rtc") or claims.unit or ("dB" if below and min(below) > 0.5 else "linear")
    if below and (unit == "dB") != (min(below) > 0.5):
        likely = "linear" if unit == "dB" else "dB"
        raise ContradictionError(
            f"{claims.product} holds {min(below):.0%} negative numbers, as {likely} data: set `unit` to {likely!r}, "
            f"got {unit!r}."
        )
    return Verdict("s1rtc", unit, float(scale), 0.0, 0, start.fill, f"{unit} by its numbers")


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

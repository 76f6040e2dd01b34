"""Spellings of Sentinel bands: the one place that knows which name of a band, a file or a variable means which.

A name holds a band where exactly one is in it: ``B2``, ``0_B02``, ``B02_10m``, ``S2_B02``, ``B02 surface reflectance``,
``red``, ``nir08``, ``Sigma0_VH_db``, ``iw-vv.rtc``. ``B08_B04_ratio`` and ``VV/VH`` hold two, ``NDVI`` none.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from terrafm_tg.modalities import S1RTC, S2L2A

#: Bands of Sentinel-2 from short to long wavelengths: L1C has all of them, L2A has no B10.
OPTICAL = (*S2L2A.bands[:10], *S2L2A.extra, *S2L2A.bands[10:])
RADAR = S1RTC.bands
#: What lies beside the bands and is a mask or says something about pixels, by the word that names it.
MASKS = {
    "scl": "SCL", "qa60": "QA60", "datamask": "dataMask", "data_mask": "dataMask", "valid": "dataMask",
    "valid_mask": "dataMask", "validmask": "dataMask", "alpha": "alpha", "fmask": "Fmask",
    "cloud_mask": "cloud_mask", "cldprb": "CLD", "cld": "CLD", "clp": "CLD", "clm": "cloud_mask",
}  # fmt: skip
# Further layers of the same products, which nothing here reads.
_LAYERS = {
    "aot", "wvp", "tci", "pvi", "snw", "snwprb", "angle", "incidence", "inc", "dem", "lia", "ls", "area", "rgb",
    "visual", "preview", "thumbnail", "overview", "browse", "looks",
}  # fmt: skip
_DERIVED = {
    "ratio", "probability", "zenith", "azimuth", "angle", "incidence", "std", "stddev", "stdev", "variance", "count",
    "msk", "mask", "quality", "flag", "flags", "detfoo", "defect", "uncertainty", "error", "diff", "difference", "lia",
}  # fmt: skip
_CODE = re.compile(r"B(?:(0?[1-9]|1[0-2])|0?8A)", re.IGNORECASE)
_EDGES = frozenset(("B05", "B06", "B07", "B8A"))
# Words of providers, longest first: one band, or those among which the word does not tell.
_WORDS: dict[tuple[str, ...], frozenset[str]] = {
    tuple(words.split()): frozenset(bands.split())
    for words, bands in {
        "coastal aerosol": "B01", "coastal": "B01", "aerosol": "B01", "aerosols": "B01", "ultra blue": "B01",
        "blue": "B02", "green": "B03", "red": "B04",
        "rededge1": "B05", "rededge2": "B06", "rededge3": "B07", "rededge4": "B8A",
        "red edge1": "B05", "red edge2": "B06", "red edge3": "B07", "red edge4": "B8A",
        "red edge 1": "B05", "red edge 2": "B06", "red edge 3": "B07", "red edge 4": "B8A",
        "rededge 1": "B05", "rededge 2": "B06", "rededge 3": "B07", "rededge 4": "B8A",
        "rededge071": "B05", "rededge075": "B06", "rededge078": "B07",
        "vegetation red edge": "B05 B06 B07 B8A", "red edge": "B05 B06 B07 B8A", "rededge": "B05 B06 B07 B8A",
        "nir broad": "B08", "nir narrow": "B8A", "narrow nir": "B8A", "nir08": "B8A", "nir09": "B09", "nir": "B08 B8A",
        "nir 1": "B08", "nir 2": "B8A", "nir1": "B08", "nir2": "B8A", "near infrared": "B08 B8A",
        "water vapour": "B09", "water vapor": "B09", "watervapour": "B09", "watervapor": "B09",
        "cirrus": "B10", "swir16": "B11", "swir22": "B12", "swir 16": "B11", "swir 22": "B12",
        "swir1": "B11", "swir2": "B12", "swir 1": "B11", "swir 2": "B12", "swir": "B11 B12",
    }.items()
}  # fmt: skip
_LONGEST = max(map(len, _WORDS))
_ALONE = {"nir": "B08"}  # STAC's common name, where nothing else is in the name
_UNITS = {
    "db": "dB", "decibel": "dB", "decibels": "dB", "linear": "linear", "power": "linear", "intensity": "linear",
    "amplitude": "amplitude", "amp": "amplitude",
}  # fmt: skip
_LANDSAT = re.compile(r"(?i)(?:^|[^a-z0-9])(?:L[COET]0[4-9]_|HLS\.?_?L30|(?:SR|ST)_B\d+)")


@dataclass(frozen=True)
class Name:
    """The meaning of the name of a band.

    Args:
        band: ``B02`` ... ``B12``, ``B8A``, ``VV`` or ``VH``; empty where it holds none, or several.
        mask: Name of a mask (values of :data:`MASKS`), else empty.
        layer: Whether it is a further layer that is known and not read.
        unit: ``dB``, ``linear`` or ``amplitude`` where it says so, else empty.
        rest: The name without the band or mask: equal in names that differ in it only.
        conflict: Why it holds no band although it names one.
        coded: Whether a code (``B02``, ``VV``) says it, and not a word such as ``red``.
    """

    band: str = ""
    mask: str = ""
    layer: bool = False
    unit: str = ""
    rest: str = ""
    conflict: str = ""
    coded: bool = True


def read_name(text: str | None) -> Name:
    """Reads the name of a band, a variable, or a file without its ending."""
    text = text or ""
    tokens = [(found[0].lower(), found.start(), found.end()) for found in re.finditer(r"[A-Za-z0-9]+", text)]
    words = [token for token, *_ in tokens]
    unit = next((_UNITS[word] for word in words if word in _UNITS), "")
    codes, colors, places = dict[str, None](), list[tuple[frozenset[str], int, int]](), list[tuple[int, int]]()
    place = 0
    while place < len(words):
        word, start, end = tokens[place]
        split = re.fullmatch(r"(vv|vh)(db)?", word)
        counted = place and words[place - 1] == "band" and word.isdigit()
        if split or (_CODE.fullmatch(word) and not counted):
            codes[(split[1] if split else word).upper() if split else spell(word)] = None
            unit = "dB" if split and split[2] else unit
            places.append((start, end))
            place += 1
            continue
        for length in range(min(_LONGEST, len(words) - place), 0, -1):
            if (meant := _WORDS.get(tuple(words[place : place + length]))) is not None:
                colors.append((meant, start, tokens[place + length - 1][2]))
                break
        else:
            length = 1
        place += length
    mask = next((MASKS[w] for w in (*words, "_".join(words)) if w in MASKS), "")
    if "cloud" in words and "mask" in words:
        mask = "cloud_mask"
    layer = not mask and bool((_LAYERS | _DERIVED) & {*words})
    if _LANDSAT.search(text):
        return Name("", "", layer, unit, text, "it is of Landsat, whose bands are others")
    if len(codes) == 1:
        band = next(iter(codes))
        if said := next((meant for meant, *_ in colors if band not in meant), None):
            return Name("", mask, layer, unit, text, f"it names {band} and {' or '.join(sorted(said))}")
        if mask or _DERIVED & {*words}:  # of the band, not its pixels
            return Name("", mask, True, unit, text)
        return Name(band, "", False, unit, text[: places[0][0]] + "{}" + text[places[-1][1] :])
    if codes:
        return Name("", mask, layer, unit, text, f"it names {', '.join(codes)}")
    meanings = {meant for meant, *_ in colors}
    if len(meanings) == 1 and not mask and not layer:
        meant, start, end = colors[0]
        only = sorted(meant) if len(meant) == 1 else [b for b in (_ALONE.get(text.lower()),) if b]
        if only:
            return Name(only[0], "", False, unit, text[:start] + "{}" + text[end:], coded=False)
    start, end = next(((start, end) for word, start, end in tokens if word in MASKS), (0, 0))
    return Name("", mask, layer, unit, text[:start] + "{}" + text[end:] if end else text)


def crossed(text: str) -> str:
    """Returns the polarization in a name that no stem knows, ``HH`` or ``HV``; empty where there is none."""
    found = re.search(r"(?i)(?:^|[^a-z0-9])(h[hv])(?:$|[^a-z0-9])", text)
    return found[1].upper() if found else ""


def spell(code: str) -> str:
    """Spells a band of Sentinel-2 as this package does: ``B02`` for ``b2``, ``B8A`` for ``B08a``."""
    found = _CODE.fullmatch(code)
    if found is None:
        return code.upper()
    return f"B{int(found[1]):02d}" if found[1] else "B8A"


@dataclass(frozen=True)
class Order:
    """Bands of a file or cube by the names that it holds.

    Args:
        bands: Place (from 0) by band.
        masks: Place by mask.
        units: Unit by band, where names say it.
        skipped: Names that hold no band, which are not read.
        problem: Why the names cannot be obeyed, as the end of a sentence; empty where they can, or hold nothing.
    """

    bands: dict[str, int]
    masks: dict[str, int]
    units: dict[str, str]
    skipped: tuple[str, ...] = ()
    problem: str = ""


def read_order(texts: Sequence[str | None]) -> Order:
    """Reads the names of all bands of a file: each that holds one band is obeyed, others are passed over.

    Args:
        texts: As the file has them; None or empty where a band has no name.
    """
    names = [read_name(text) for text in texts]
    bands, masks, units, problem = dict[str, int](), dict[str, int](), dict[str, str](), ""
    for place, name in enumerate(names):
        if name.band:
            if name.band in bands:
                problem = problem or (
                    f"its bands {texts[bands[name.band]]!r} and {texts[place]!r} both name {name.band}"
                )
            bands.setdefault(name.band, place)
            if name.unit:
                units[name.band] = name.unit
        elif name.mask:
            masks.setdefault(name.mask, place)
    conflict = next((p for p, name in enumerate(names) if name.conflict and not name.layer), None)
    if conflict is not None and not bands:
        problem = problem or f"of its band {texts[conflict]!r}, {names[conflict].conflict}"
    if bands and any(not text for text in texts):
        problem = problem or f"only {len([t for t in texts if t])} of its {len(texts)} bands are named"
    if {*bands} & {*OPTICAL} and {*bands} & {*RADAR}:
        problem = problem or f"it holds optical and radar bands ({', '.join(bands)})"
    if len(bands) > 1 and all(re.fullmatch(rf"b{p + 1}", text or "") for p, text in enumerate(texts)):
        problem = problem or f"its bands are only counted (b1 to b{len(texts)})"
    skipped = tuple(text or "" for text, name in zip(texts, names, strict=True) if not (name.band or name.mask))
    return Order(bands, masks, units, skipped, problem)


def band_set(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts bands: Sentinel-1's, then Sentinel-2's from short to long wavelengths."""
    known = (*RADAR, *OPTICAL)
    return tuple(sorted(names, key=known.index))

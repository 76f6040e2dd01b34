"""Statements on a scene apart from its pixels: by the names of files and folders, and by metadata beside them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from terrafm_tg.radiometry import Claims
from terrafm_tg.utils.trust import read_text, zip_above, zip_members

#: Names of folders that tell a modality, in any case. Those of the second kind are used for anything of the sensor.
LEVELS = {
    "s2l2a": ("s2l2a", "s2_l2a", "s2-l2a", "l2a", "sentinel2_l2a", "sentinel-2-l2a", "sentinel2-l2a"),
    "s2l1c": ("s2l1c", "s2_l1c", "s2-l1c", "l1c", "sentinel2_l1c", "sentinel-2-l1c", "sentinel2-l1c"),
    "s1rtc": ("s1rtc", "s1_rtc", "s1-rtc", "s1grd", "s1_grd", "s1-grd", "s1", "sentinel1", "sentinel-1", "sentinel_1"),
}
_USUAL = {"s2a": "s2l2a", "s2": "s2l2a", "s2c": "s2l1c"}  # as SSL4EO-S12 and BigEarthNet have them
_PRODUCT = re.compile(r"S2[A-D]_MSI(?P<level>L1C|L2A)_\d{8}T\d{6}(?:_N(?P<baseline>\d{4}))?(?=_|$|\.)[A-Z0-9_]*")
_RADAR_PRODUCT = re.compile(r"S1[A-D]_(?:IW|EW|SM|WV)_(?:GRD[FHM]|SLC_)_[0-9A-Z_]{4}_\d{8}T\d{6}[A-Z0-9_]*")
_LEVEL = re.compile(r"(?i)(?:^|[^a-z0-9])(?:MSI)?(L1C|L2A)(?:$|[^a-z0-9])")
_EARTH_ENGINE = re.compile(r"(?i)(?:^|[^a-z0-9])S2_(SR_)?(?:HARMONIZED)|(?:^|[^a-z0-9])S2_(SR)(?:$|[^a-z0-9])")
_SATELLITE = re.compile(r"(?i)(?:^|[^a-z0-9])(?:S|sentinel-?)([12][A-D])(?:$|[^a-z0-9])")
_ORBIT = re.compile(r"(?i)(?:^|[^a-z])(asc|desc)(?:ending)?(?:$|[^a-z])")
_ASF = re.compile(r"(?i)_RTC\d+_[a-z]_[gs]([pda])[uw]")
_ASF_UNITS = {"p": "linear", "d": "dB", "a": "amplitude"}
_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2}-?[01]\d-?[0-3]\d)(?:[T_ ]?([0-2]\d:?[0-5]\d:?[0-5]\d)(?!\d))?")
_RASTER = re.compile(r"<(?:BOA|RADIO)_ADD_OFFSET[^>]*>\s*(-?\d+(?:\.\d+)?)\s*<")
_QUANTIFICATION = re.compile(r"<(?:BOA_)?QUANTIFICATION_VALUE[^>]*>\s*(\d+(?:\.\d+)?)\s*<")
_NUMBER = re.compile(r"(?i)(?:^|[^a-z0-9])(?:t|imgs?_|dates?_|times?_)([1-9])(?:$|[^a-z0-9])")
_OTHER = re.compile(r"(?i)(?:^|[^a-z0-9])(?:L[COET]0[4-9]_|HLS\.L30|MOD\d\d|VNP\d\d|PSScene)")
#: Properties of STAC items, the first that says something.
_BASELINES = (
    "s2:processing_baseline", "processing:baseline", "processing:version", "earthsearch:processing_baseline",
)  # fmt: skip
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


@dataclass(frozen=True)
class Said(Claims):
    """Claims on one scene, of its pixels and of itself; None or empty where nothing says so.

    Args:
        time: Of acquisition.
        cloud_cover: Percent.
        orbit: ``ascending`` or ``descending``.
        platform: ``sentinel-2b``, ...
        number: Of its date among those of the place, where names count them (``imgs_1``, ``t2``); 0 where none does.
        conflict: Two statements that exclude each other, as a sentence.
    """

    time: pd.Timestamp | None = None
    cloud_cover: float | None = None
    orbit: str | None = None
    platform: str | None = None
    number: int = 0
    conflict: str = ""

    def add(self, source: str, **more: Any) -> "Said":
        """Returns these statements and others where there are none yet; levels that differ are a conflict."""
        new = {name: x for name, x in more.items() if x is not None and getattr(self, name) in (None, "", 0)}
        if self.time is not None and more.get("time") is not None and self.time == more["time"].normalize():
            new["time"] = more["time"]  # the same day, to the second
        mine, other = self.modality, more.get("modality")
        conflict = self.conflict
        if mine and other and mine != other:
            conflict = conflict or (
                f"{self.source.get('modality', 'a setting')} says {mine} and {source} says {other}: set `folders`, "
                f"such as {{{other!r}: 'folder'}}"
            )
        origins = {**dict.fromkeys(new, source), **self.source}
        return replace(self, **new, source=origins, conflict=conflict)

    def join(self, other: "Said") -> "Said":
        """Returns these statements and those of another where there are none yet."""
        told = {name: getattr(other, name) for name in other.source}
        for name, value in told.items():
            self = self.add(other.source[name], **{name: value})
        return self


def find_date(text: str) -> pd.Timestamp | None:
    """Finds the first date in a text, with its time where a valid one follows."""
    for match in _DATE.finditer(text):
        for parts in (match.groups(""), (match[1],)):
            stamp = pd.to_datetime("".join(parts).replace("-", "").replace(":", ""), errors="coerce")
            if not pd.isna(stamp):
                return stamp
    return None


def by_names(path: str) -> Said:
    """Reads what the name of a file and those of the folders above it say, the nearest first.

    Args:
        path: Below the root, with ``/``.
    """
    said = Said()
    parts = [PurePosixPath(path).name, *reversed(PurePosixPath(path).parts[:-1])]
    for part in parts:
        name = part.removesuffix(".SAFE").removesuffix(".zip")
        origin = f"the name {part.replace('{}', '*')!r}"
        if product := _PRODUCT.search(name):
            baseline = product["baseline"]
            said = said.add(
                origin, modality=f"s2{product['level'].lower()}", baseline=int(baseline) if baseline else None,
                product=product[0].rstrip("_") if baseline else None,
            )  # fmt: skip
        elif product := _RADAR_PRODUCT.search(name):
            said = said.add(origin, product=product[0].rstrip("_"))
        if engine := _EARTH_ENGINE.search(name):
            said = said.add(origin, modality="s2l2a" if engine[1] or engine[2] else "s2l1c")
            said = said.add(origin, offset_applied=True) if "HARMONIZED" in name.upper() else said
        elif not product and (level := _LEVEL.search(name)):
            said = said.add(origin, modality=f"s2{level[1].lower()}")
        if (asf := _ASF.search(name)) or "RTC-S1" in name or re.search(r"(?i)\.rtc\.tiff?$|_rtc$", name):
            said = said.add(origin, unit=_ASF_UNITS[asf[1].lower()] if asf else "linear")
        if re.match(r"T\d{2}[A-Z]{3}_\d{8}T\d{6}_\w+_[126]0m\.", name):  # L1C's have no resolution
            said = said.add(origin, modality="s2l2a")
        satellite = None if name.lower() in _USUAL else _SATELLITE.search(name)
        orbit, number = _ORBIT.search(name), _NUMBER.search(name)
        said = said.add(
            origin, number=int(number[1]) if number else None, time=find_date(name),
            platform=f"sentinel-{satellite[1].lower()}" if satellite else None,
            orbit={"asc": "ascending", "desc": "descending"}[orbit[1].lower()] if orbit else None,
        )  # fmt: skip
    return said


def by_folder(path: str) -> tuple[str | None, str, bool]:
    """Returns the modality that the folders above a file are named after, the folder, and if that leaves no doubt."""
    for part in reversed(PurePosixPath(path).parts[:-1]):
        sure = next((modality for modality, names in LEVELS.items() if part.lower() in names), None)
        if modality := sure or _USUAL.get(part.lower()):
            return modality, part, sure is not None
    return None, "", False


def other_sensor(path: str) -> bool:
    """Tells whether names say that a file is of another sensor, whose bands have the same codes."""
    return bool(_OTHER.search(path))


def by_metadata(root: Path, path: str, said: Said) -> Said:
    """Adds what metadata say that came with a file: MTD_MSI*.xml above it, or a STAC item of its own in its folder.

    A ``dates.txt`` above a folder such as ``imgs_1`` (OSCD) is before the names of files, in which the date may be that
    of reprocessing.
    """
    file = PurePosixPath(path)
    if (date := _listed_date(root, file)) is not None:
        said = replace(said, time=date, source={**said.source, "time": "its dates.txt"})
    for above in file.parents:
        told = Said()
        for name in _metadata_in(root / above):
            if name.endswith(".xml") or above == file.parent:
                told = told.join(_read_metadata(root / above / name, f"{above.name}/{file.name}"))
        if told.source:
            return _compared(said, told).join(told)
        if ".SAFE" in above.name:
            break
    return said


def _listed_date(root: Path, file: PurePosixPath) -> pd.Timestamp | None:
    """Finds the date that ``dates.txt`` gives to the numbered folder of a file, as ``date_1: 20160504``."""
    for above in file.parents[:-1]:
        number, dates = _NUMBER.search(above.name), root / above.parent / "dates.txt"
        if number and dates.is_file():
            line = re.search(rf"(?m)^\s*date_{number[1]}\s*:(.*)$", read_text(dates, 1 << 12))
            return find_date(line[1]) if line else None
    return None


def forget_metadata() -> None:
    """Forgets which metadata there were: files may have come since."""
    _metadata_in.cache_clear()
    _read_metadata.cache_clear()


def _compared(said: Said, told: Said) -> Said:
    """Notes a conflict where name and metadata tell baselines of which only one holds +1000."""
    regimes = {baseline >= 400 for baseline in (said.baseline, told.baseline) if baseline not in (None, 9999)}
    if len(regimes) < 2:
        return said
    return replace(
        said, conflict=said.conflict or f"{said.source['baseline']} says baseline {said.baseline} and "
        f"{told.source['baseline']} says {told.baseline}: set `offset` to what it holds, 0 or 1000",
    )  # fmt: skip


@lru_cache(256)
def _metadata_in(folder: Path) -> tuple[str, ...]:
    """Lists the files with metadata in a folder, or a folder of a zip file."""
    outer = zip_above(folder / "x") if ".zip" in str(folder) else None
    if outer is None:
        names = [x.name for x in folder.iterdir()] if folder.is_dir() else []
    else:
        inside = PurePosixPath(folder.relative_to(outer).as_posix())
        names = [PurePosixPath(m).name for m in zip_members(outer) if PurePosixPath(m).parent == inside]
    found = [n for n in names if re.fullmatch(r"(?:MTD_MSIL(?:1C|2A)|S2[A-D]_\w+MTD_SAF\w+)\.xml", n)]
    return tuple(sorted(found) or sorted(n for n in names if n.lower().endswith(".json"))[:4])


def _from_xml(said: Said, text: str, origin: str) -> Said:
    def value(tag: str) -> str | None:
        found = re.search(rf"<{tag}[^>]*>\s*([^<]*?)\s*<", text)
        return found[1] if found else None

    baseline, level, cloud = value("PROCESSING_BASELINE"), value("PROCESSING_LEVEL"), value("Cloud_Coverage_Assessment")
    offsets = {float(x) for x in _RASTER.findall(text)}
    quantification = _QUANTIFICATION.search(text)
    scale = 1 / float(quantification[1]) if quantification and float(quantification[1]) else None
    named = re.search(r"L1C|L2A", level or "") or re.search(r"Level-(1C|2A)", level or "")
    add = offsets.pop() if len(offsets) == 1 else None if offsets else 0.0
    orbit = (value("SENSING_ORBIT_DIRECTION") or "").lower()
    spacecraft = (value("SPACECRAFT_NAME") or "").lower()
    return said.add(
        origin, baseline=_baseline(baseline), modality=f"s2l{named[0][-2:].lower()}" if named else None,
        time=find_date(value("PRODUCT_START_TIME") or ""), cloud_cover=_real(cloud), scale=scale,
        offset=None if scale is None or add is None else add * scale,
        orbit=orbit if orbit in ("ascending", "descending") else None,
        platform=spacecraft if spacecraft.startswith("sentinel") else None,
    )  # fmt: skip


@lru_cache(256)
def _read_metadata(path: Path, owner: str) -> Said:
    """Reads a file of metadata: all of a product's, or an item's whose name its folder or file begins with."""
    origin = f"its metadata ({path.name})"
    text = read_text(path, 1 << (25 if path.suffix == ".xml" else 20))
    if path.suffix == ".xml":
        return _from_xml(Said(), text, origin)
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return Said()
    properties = item.get("properties") if isinstance(item, dict) else None
    if not isinstance(properties, dict) or not isinstance(name := item.get("id"), str) or len(name) < 4:
        return Said()
    return from_properties(Said(), properties, origin) if any(x.startswith(name) for x in owner.split("/")) else Said()


def from_properties(said: Said, properties: Mapping[str, Any], origin: str) -> Said:
    """Adds what the properties of a STAC item say.

    Args:
        said: Statements so far.
        properties: Of the item.
        origin: Its name, for messages.
    """
    text = {name: str(value) for name, value in properties.items() if isinstance(value, str | int | float)}
    uri = _PRODUCT.search(text.get("s2:product_uri", text.get("s2:product_name", "")))
    level = _LEVEL.search(text.get("processing:level", "").replace("Level-", "L").replace("L-", "L"))
    level = level or _LEVEL.search(text.get("product:type", "").replace("S02MSI", "").replace("S2MSI", "L"))
    return said.add(
        origin, baseline=told_baseline(properties)[0], offset_applied=told_applied(properties)[0],
        modality=f"s2{level[1].lower()}" if level else None, time=find_date(text.get("datetime", "")),
        cloud_cover=_real(text.get("eo:cloud_cover")), product=uri[0].rstrip("_") if uri else None,
        orbit=text.get("sat:orbit_state"), platform=text.get("platform"),
    )  # fmt: skip


def told_baseline(properties: Mapping[str, Any]) -> tuple[int | None, str]:
    """Finds the processing baseline of a STAC item, None where there is none, and the property that says it."""
    return next(
        ((found, key) for key in _BASELINES if (found := _baseline(properties.get(key))) is not None), (None, "")
    )


def told_applied(properties: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Finds whether +1000 is taken off of a STAC item's images, None where nothing says so, and the property."""
    return next(((properties[key], key) for key in _APPLIED if isinstance(properties.get(key), bool)), (None, ""))


def _baseline(told: object) -> int | None:
    """Reads a baseline such as ``05.09``, ``N0509`` or ``5.11``."""
    found = re.fullmatch(r"N?(\d{1,2})\.?(\d{2})", str(told or "").strip())
    return None if found is None else 100 * int(found[1]) + int(found[2])


def _real(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None

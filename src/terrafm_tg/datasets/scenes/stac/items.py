"""One STAC item as a scene: its images by band, and what it claims of them."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from affine import Affine

from terrafm_tg.datasets.scenes.names import OPTICAL, RADAR, read_name
from terrafm_tg.datasets.scenes.said import told_applied, told_baseline
from terrafm_tg.datasets.scenes.scene import BandSource, Scene
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.radiometry import UNKNOWN, Claims

_LEVELS = (
    ("s2l1c", re.compile(r"(?i)l1c|s2msi1c|level-?1c")),
    ("s2l2a", re.compile(r"(?i)l2a|s2msi2a|level-?2a|s2_sr")),
    ("s1rtc", re.compile(r"(?i)(^|[^a-z])(s1|sentinel-?1).*rtc|rtc.*(s1|sentinel-?1)|^rtc$")),
)
_GROUND_RANGE = re.compile(r"(?i)(^|[^a-z])(grd|slc|ocn)([^a-z]|$|h)")
_SENTINEL = re.compile(r"(?i)sentinel-?[12]|(^|[^a-z0-9])s[12][a-d]?([^a-z0-9]|$)")
_FROM_NAME = {"10": 10, "20": 20, "60": 60}
_SKIPPED = {"thumbnail", "overview", "visual", "metadata"}


@dataclass(frozen=True)
class Place:
    """The properties of an item by which it is chosen.

    Args:
        name: Its id.
        collection: Of the catalog; empty where it is not told.
        time: Of acquisition, UTC without a zone; None where it is not told.
        box: West, south, east, north in degrees; None where it is not told.
        cloud_cover: Percent, of optical items.
        tile: Of Sentinel-2's grid.
        baseline: Of the processing, such as 509; -1 where it is not told.
    """

    name: str
    collection: str
    time: pd.Timestamp | None
    box: tuple[float, ...] | None
    cloud_cover: float | None
    tile: str
    baseline: int

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> "Place":
        """Reads an item, in which anything may be missing."""
        told = _properties(item)
        moment = told.get("datetime") or told.get("start_datetime")
        try:
            time = pd.Timestamp(str(moment))
            time = None if pd.isna(time) else time.tz_convert(None) if time.tzinfo else time
        except ValueError:
            time = None
        box = _numbers(item.get("bbox"), (4, 6))
        box = None if box is None else (*box[:2], *box[len(box) // 2 :][:2])
        cloud = told.get("eo:cloud_cover")
        tile = str(told.get("s2:mgrs_tile") or told.get("grid:code") or "").removeprefix("MGRS-")
        return cls(
            str(item.get("id") or ""), str(item.get("collection") or ""), time, box,
            float(cloud) if isinstance(cloud, int | float) and math.isfinite(cloud) else None,
            tile, UNKNOWN if (baseline := told_baseline(told)[0]) is None else baseline,
        )  # fmt: skip


def item_scene(item: Mapping[str, Any], place: Place, modality: str | None = None) -> Scene:
    """Makes a scene of an item whose assets are images with complete addresses.

    Args:
        item: The item.
        place: Its place.
        modality: The item's, where it does not say it.

    Raises:
        TerraFMError: If it is of no such sensor, contradicts itself, or has no image of a band.
    """
    told = _properties(item)
    product = str(told.get("s2:product_uri") or place.name).removesuffix(".SAFE")
    bands, masks, claimed = _choose(item)
    found, origin = _modality(place, told, product, bands, modality)
    known = RADAR if found == "s1rtc" else OPTICAL
    bands = {band: bands[band] for band in known if band in bands}
    if not bands:
        raise TerraFMError(f"it has no GeoTIFF or JPEG 2000 of a band of {found}.")
    platform = str(told.get("platform") or "").lower() or None
    orbit = told.get("sat:orbit_state")
    claims = _claims(found, origin, place, product, told, [claimed[band] for band in bands])
    return Scene(
        found, product, place.time, bands, claims, masks, **_grid(item, bands, claimed),
        cloud_cover=place.cloud_cover if found != "s1rtc" else None,
        orbit_state=orbit if orbit in ("ascending", "descending") else None, platform=platform,
    )  # fmt: skip


def _properties(item: Mapping[str, Any]) -> dict[str, Any]:
    told = item.get("properties")
    return told if isinstance(told, dict) else {}


def _numbers(value: object, lengths: tuple[int, ...]) -> tuple[float, ...] | None:
    """Returns a list of finite numbers of one of some lengths, else None."""
    if not isinstance(value, list) or len(value) not in lengths:
        return None
    fits = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in value)
    return tuple(map(float, value)) if fits else None


def _modality(
    place: Place, told: Mapping[str, Any], product: str, bands: Mapping[str, BandSource], given: str | None
) -> tuple[str, str]:
    """Finds the sensor and level by everything that names them, and what did."""
    keys = ("s2:product_type", "processing:level", "product:type", "sar:product_type", "s1:product_type")
    names = {f"`{key}`": str(told[key]) for key in keys if told.get(key)}
    names |= {"its collection": place.collection, "its product": product, "its id": place.name}
    votes: dict[str, str] = {}
    for origin, text in names.items():
        for name, pattern in _LEVELS:
            if pattern.search(text):
                votes.setdefault(name, f"{origin} ({text[:80]})")
    if len(votes) > 1:
        (one, first), (two, second) = [*votes.items()][:2]
        raise TerraFMError(f"it is {one} by {first} and {two} by {second}, which contradict each other.")
    radar = not {*bands} & {*OPTICAL} and bool({*bands} & {*RADAR})
    ground = next((text for text in names.values() if _GROUND_RANGE.search(text)), None)
    if radar and "s1rtc" not in votes and ground:
        raise TerraFMError(
            f"it is radar in slant or ground range ({ground[:80]}), which is not terrain-corrected: take a collection "
            "of Sentinel-1 RTC, such as sentinel-1-rtc of the Planetary Computer."
        )
    if not votes and given is not None:
        return get_modality(given).name, "`modality`"
    if not votes and radar and any(_SENTINEL.search(text) for text in (*names.values(), str(told.get("platform")))):
        return "s1rtc", "its bands"
    if not votes:
        sensor = "optical bands" if {*bands} & {*OPTICAL} else "radar bands" if radar else "no band"
        raise TerraFMError(f"it has {sensor} of Sentinel, and nothing tells its sensor and level: set `modality`.")
    name, origin = next(iter(votes.items()))
    if bands and ((name == "s1rtc") != radar):
        raise TerraFMError(f"it is {name} by {origin} and has the bands {', '.join(bands)}.")
    return name, origin


@dataclass(frozen=True)
class _Claimed:
    """Statements of an asset on one band."""

    asset: Mapping[str, Any]
    band: Mapping[str, Any]
    meters: float | None

    def get(self, *names: str) -> Any:
        """Returns what the band says, else the asset, under the first of some names that is there."""
        places = [(place, name) for name in names for place in (self.band, self.asset)]
        return next((place[name] for place, name in places if place.get(name) is not None), None)


def _choose(item: Mapping[str, Any]) -> tuple[dict[str, BandSource], dict[str, BandSource], dict[str, _Claimed]]:
    """Chooses an image for each band and mask: of several the native resolution, GeoTIFF, and over HTTP."""
    best = dict[str, tuple[tuple[float, ...], BandSource, _Claimed]]()
    masks = set[str]()
    for key, asset in sorted(item.get("assets", {}).items()):
        roles = asset.get("roles")
        if _SKIPPED & {str(role) for role in (roles if isinstance(roles, list) else ())} or key in _SKIPPED:
            continue
        held = [*_bands_of(asset)]
        for index, band in enumerate(held, 1):
            told = (band.get("name"), band.get("eo:common_name") or band.get("common_name"))
            words = [str(text) for text in (key if len(held) == 1 else None, *told) if text]
            name = read_name(" ".join({word.lower(): word for word in words}.values()))
            if len(held) == 1 and not (name.band or name.mask or name.conflict):  # a key such as `data` says nothing
                name = read_name(" ".join(dict.fromkeys(str(text) for text in told if text)))
            if name.conflict:
                raise TerraFMError(f"its asset {key!r} is contradictory: {name.conflict}.")
            what = name.band or name.mask
            if not what:
                continue
            if name.mask:
                masks.add(what)
            claimed = _Claimed(asset, band, _meters(key, asset, band))
            href = str(asset["href"])
            native = _native(what)
            order = (
                abs(math.log((claimed.meters or native) / native)),
                float("jp2" in str(asset.get("type") or href).lower()),
                float(not href.startswith("http")),
                float(len(held)),
            )
            if what not in best or order < best[what][0]:
                best[what] = order, BandSource(href, index), claimed
    bands = {name: entry[1] for name, entry in best.items() if name not in masks}
    found = {name: entry[2] for name, entry in best.items() if name not in masks}
    return bands, {name: best[name][1] for name in masks}, found


def _bands_of(asset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields what an asset says of each of its bands, in STAC's old and new ways; one at least."""
    lists = [x for x in (asset.get(key) for key in ("bands", "eo:bands", "raster:bands")) if isinstance(x, list)]
    for place in range(max([1, *map(len, lists)])):
        said: dict[str, Any] = {}
        for bands in lists:
            if place < len(bands) and isinstance(bands[place], dict):
                said = bands[place] | said
        yield said


def _native(band: str) -> int:
    for modality in MODALITIES.values():
        if band in modality.bands:
            return modality.resolutions[modality.bands.index(band)]
    return 60 if band == "B10" else 20


def _meters(key: str, asset: Mapping[str, Any], band: Mapping[str, Any]) -> float | None:
    """Finds the size of an asset's pixels by what it says, else by its name (``B02_20m``)."""
    transform = _numbers(asset.get("proj:transform"), (6, 9))
    named = re.search(r"_(\d\d)m", key)
    for value in (
        transform and transform[0], band.get("spatial_resolution"), asset.get("raster:spatial_resolution"),
        asset.get("gsd"), _FROM_NAME.get(named[1]) if named else None,
    ):  # fmt: skip
        if isinstance(value, int | float) and math.isfinite(value) and value >= 1:
            return float(value)
    return None


def _claims(
    modality: str, origin: str, place: Place, product: str, told: Mapping[str, Any], bands: list[_Claimed]
) -> Claims:
    """Gathers what an item claims of its pixels, and where."""
    source = {"modality": origin, "product": "its name", "bands": "STAC's names of bands"}
    baseline, key = told_baseline(told) if modality != "s1rtc" else (None, "")
    applied, by = told_applied(told)
    source |= {name: f"STAC `{key}`" for name, key in (("baseline", key), ("offset_applied", by)) if key}
    if applied is None and "harmonized" in place.collection.lower():
        applied, source["offset_applied"] = True, f"its collection ({place.collection})"
    values: dict[str, float | None] = {}
    for name in ("scale", "offset", "nodata"):
        numbers = {_number(band.get(name, f"raster:{name}", f"file:{name}")) for band in bands}
        values[name] = next(iter(numbers)) if len(numbers) == 1 else None
        if len(numbers) > 1 and name != "nodata":
            raise TerraFMError(f"its bands have different values of `{name}` ({', '.join(map(str, numbers))}).")
        if values[name] is not None:
            source[name] = f"STAC `raster:bands` {name}"
    units = {str(unit).lower() for band in bands if (unit := band.get("unit", "raster:unit"))}
    unit = {"db": "dB", "decibel": "dB", "amplitude": "amplitude", "reflectance": "reflectance"}.get(
        units.pop() if len(units) == 1 else ""
    )
    if (
        modality == "s1rtc"
        and unit is None
        and "rtc" in place.collection.lower()
        and "sentinel-1-rtc" in place.collection
    ):
        unit, source["unit"] = "linear", f"its collection ({place.collection})"
    elif unit:
        source["unit"] = "STAC `unit`"
    return Claims(
        modality, product, baseline, applied, values["scale"], values["offset"], unit, values["nodata"], source
    )


def _number(value: object) -> float | None:
    if isinstance(value, str) and value.lower() == "nan":
        return math.nan
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _grid(item: Mapping[str, Any], bands: Mapping[str, BandSource], claimed: Mapping[str, _Claimed]) -> dict[str, Any]:
    """Finds the grid of the finest band where the item says it wholly."""
    told = _properties(item)
    for band in sorted(bands, key=lambda name: (claimed[name].meters or math.inf, -_native(name), name)):
        asset = {**told, **claimed[band].asset}
        code = re.fullmatch(r"(?:EPSG:)?(\d{4,5})", str(asset.get("proj:code") or asset.get("proj:epsg") or ""))
        shape, transform = _numbers(asset.get("proj:shape"), (2,)), _numbers(asset.get("proj:transform"), (6, 9))
        if code and shape and transform and min(shape) >= 1:
            place = Affine(*transform[:6])
            return {"epsg": int(code[1]), "transform": place, "height": int(shape[0]), "width": int(shape[1])}
        break
    return {}

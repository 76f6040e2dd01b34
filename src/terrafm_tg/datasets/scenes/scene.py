"""Scenes: images of one sensor at one place and time, with the files of their bands and what is said about them."""

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from affine import Affine
from rasterio.transform import array_bounds, from_bounds

from terrafm_tg.radiometry import Claims
from terrafm_tg.utils.trust import is_safe, zip_above

from .names import MASKS, OPTICAL, RADAR


@dataclass(frozen=True)
class BandSource:
    """Pixels of one band.

    Args:
        path: File below the root, parts divided by ``/`` (``x.zip/…`` for a member of a zipped product); or an
            address, where the user named the catalog that it comes from.
        index: Band of a raster, from 1; of a cube's dimension of bands.
        variable: Variable of a NetCDF file or Zarr store, with its groups (``measurements/reflectance/r10m/b02``).
        time: Place along a cube's dimension of time.
    """

    path: str
    index: int = 1
    variable: str = ""
    time: int | None = None


@dataclass(frozen=True)
class Scene:
    """One image of one sensor.

    Args:
        modality: ``s1rtc``, ``s2l1c`` or ``s2l2a``, as far as names and bands tell; the judge of radiometry decides.
        product: Its name: a product's, an item's, or the file's without its ending.
        time: Of acquisition; None where it is not known.
        bands: Sources by band (``B02``, ``VV``): any subset of the sensor's, B10 too.
        masks: Sources by mask: ``alpha``, ``SCL``, ``QA60``, ...
        claims: Everything that is said about its pixels apart from the pixels themselves.
        epsg: CRS of its finest band; None where it has no georeference.
        transform: Of the finest band's pixels; None likewise.
        height: Of the finest band.
        width: Of the finest band.
        cloud_cover: Percent, where it is told.
        orbit_state: ``ascending`` or ``descending``, where it is told.
        platform: ``sentinel-2a``, ..., where it is told.
        parts: Images that together are this one (bursts of one acquisition), each with sources and grid of its own;
            those of this scene are then of the first, its grid covers all.
        placed: Its files say where it lies; else ``epsg`` and ``transform`` are where it was put, or None.
        wanted: West, south, east, north in degrees of the part that is asked for; None for all.
        steps: By band, the width of its pixels in pixels of the finest band.
        number: Of its date among those of the place, where names count them; 0 where none does.
    """

    modality: str
    product: str
    time: pd.Timestamp | None
    bands: Mapping[str, BandSource]
    claims: Claims = field(default_factory=Claims)
    masks: Mapping[str, BandSource] = field(default_factory=dict)
    epsg: int | None = None
    transform: Affine | None = None
    height: int = 0
    width: int = 0
    cloud_cover: float | None = None
    orbit_state: str | None = None
    platform: str | None = None
    parts: tuple["Scene", ...] = ()
    placed: bool = True
    wanted: tuple[float, ...] | None = None
    steps: Mapping[str, int] = field(default_factory=dict)
    number: int = 0

    @property
    def images(self) -> tuple["Scene", ...]:
        """Its parts, or itself where it has none."""
        return self.parts or (self,)

    @property
    def files(self) -> tuple[str, ...]:
        """Files of all bands and masks."""
        sources = (source for image in self.images for group in (image.bands, image.masks) for source in group.values())
        return tuple(dict.fromkeys(source.path for source in sources))


@dataclass(frozen=True)
class Found:
    """The outcome of a search for scenes in a folder or a catalog.

    Args:
        scenes: By modality, time and name.
        refused: What looks like an image and is not understood or not usable: path and reason, one sentence each.
        said: Conclusions that a person should know, one sentence each (chips without a place, names overruled).
    """

    scenes: list[Scene]
    refused: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


_DEFAULTS: list[Any] = ["", 1, "", None]
_CUT = re.compile(r"[^A-Za-z0-9{}]")


def files_to_columns(scene: Scene) -> tuple[str, str]:
    """Writes the sources of a scene as two texts for the tile index, the second of which repeats over scenes.

    Returns:
        A pattern of the files, in which ``{}`` stands for what differs between bands, and JSON with the rest.
    """
    files = scene.files
    if len(files) == 1:
        pattern = files[0]
    else:
        start, stop = (os.path.commonprefix([f[::step] for f in files]) for step in (1, -1))  # noqa: RUF071  # by letters
        start = start[: max((m.end() for m in _CUT.finditer(start)), default=0)]
        stop = stop[: min(min(map(len, files)) - len(start), len(stop))]
        stop = stop[: max((m.end() for m in _CUT.finditer(stop)), default=0)][::-1]
        pattern = f"{start}{{}}{stop}"
        if any("{}" in file for file in files):
            pattern, start, stop = "{}", "", ""

    def record(source: BandSource) -> list[Any]:
        fill = "" if len(files) == 1 else source.path[len(start) : len(source.path) - len(stop)]
        fill = "{}" if len(files) == 1 and "{}" in pattern else fill
        values = [fill, source.index, source.variable, source.time]
        while values and values[-1] == _DEFAULTS[len(values) - 1]:
            values.pop()
        return values

    images = [
        [{name: record(source) for name, source in group.items()} for group in (image.bands, image.masks)]
        + ([] if image.placed else [_box(image)])
        for image in scene.images
    ]
    return pattern, json.dumps(images, separators=(",", ":"))


def files_from_columns(modality: str, pattern: str, text: str, sources: tuple[str, ...] = ()) -> Scene:
    """Reads the sources of a scene back, as a scene without anything else.

    Args:
        modality: Of the scene.
        pattern: As :func:`files_to_columns` wrote it.
        text: Likewise.
        sources: Addresses that the user named, below which files may lie, too.

    Raises:
        ValueError: If they are something else, or name a file outside of the root and the sources.
    """
    try:
        images = json.loads(text)
        groups = [
            [{name: _source(pattern, record, sources) for name, record in group.items()} for group in (bands, masks)]
            for bands, masks, *_ in images
        ]
        boxes = [_place(*place) if place else {} for _, _, *place in images]
    except (TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"it describes files as {text[:80]!r}") from error
    known = RADAR if modality == "s1rtc" else OPTICAL
    for bands, masks in groups:
        if not bands or not {*bands} <= {*known} or not {*masks} <= {*MASKS.values()}:
            raise ValueError(f"it names bands {', '.join([*bands, *masks])[:80]!r} of {modality}")
    parts = tuple(
        Scene(modality, pattern, None, bands, masks=masks, **place)
        for (bands, masks), place in zip(groups, boxes, strict=True)
    )
    if not parts:
        raise ValueError("it describes no file")
    return parts[0] if len(parts) == 1 else replace(parts[0], parts=parts)


def _box(image: Scene) -> list[float]:
    """Writes where an image without a place was put: EPSG code, left, bottom, right, top."""
    assert image.transform is not None
    assert image.epsg is not None
    return [image.epsg, *array_bounds(image.height, image.width, image.transform)]


def _place(box: Any) -> dict[str, Any]:
    """Reads it back, as the place of one pixel."""
    if not isinstance(box, list) or len(box) != 5 or not all(type(x) in (int, float) and abs(x) < 1e9 for x in box):
        raise ValueError(f"it describes a place as {str(box)[:80]!r}")
    return {"epsg": int(box[0]), "transform": from_bounds(*box[1:], 1, 1), "height": 1, "width": 1, "placed": False}


def _source(pattern: str, record: Any, sources: tuple[str, ...]) -> BandSource:
    """Reads one source; what it names must lie below the root or a source."""
    if not isinstance(record, list) or len(record) > len(_DEFAULTS):
        raise ValueError(f"it describes a band as {str(record)[:80]!r}")
    fill, index, variable, time = [*record, *_DEFAULTS[len(record) :]]
    fits = isinstance(fill, str) and isinstance(variable, str) and type(index) is int
    fits = fits and (time is None or type(time) is int)
    if not fits or not 1 <= index <= 65535 or not 0 <= (time or 0) < 1 << 31:
        raise ValueError(f"it describes a band as {str(record)[:80]!r}")
    path = pattern.replace("{}", fill)
    below = next((path[len(start) :] for start in sources if path.startswith(start)), path)
    if not is_safe(below) or (variable and not is_safe(variable)):
        raise ValueError(f"it names {path[:80]!r} {variable[:80]!r}, which is no file below its folder")
    return BandSource(path, index, variable, time)


def held_files(root: Path, pattern: str) -> list[Path]:
    """Lists the files that a pattern in a tile index stands for: ``{}`` for anything, a folder for all in it."""
    if (outer := zip_above(root / pattern)) is not None:
        return [outer]
    if (root / pattern).is_dir():
        return [file for file in sorted((root / pattern).rglob("*")) if file.is_file()]
    start, mark, stop = pattern.partition("{}")
    if not mark:
        return [root / pattern] if (root / pattern).is_file() else []
    deep = "**/*" if not start or start.endswith("/") else "*"
    return sorted(file for file in root.glob(f"{glob.escape(start)}{deep}{glob.escape(stop)}") if file.is_file())

"""Conditions of a search: collections, a box, dates, cloud."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.arguments import COUNT, checked

from .items import Place

_NAME = re.compile(r"[\w.:/ ~-]{1,200}")
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d)?)?)?)?Z?")


@checked(max_cloud=(0, 100), max_scenes=COUNT)
@dataclass(frozen=True)
class StacSearch:
    """Conditions that the items of a STAC catalog must all meet; those not given hold for every item.

    Args:
        collections: Names of collections of a STAC catalog, such as ``[sentinel-2-l2a,sentinel-1-rtc]``.
        bbox: West, south, east, north in degrees, such as ``[10.9,48.0,11.2,48.2]``; of scenes only what lies in the
            box is read. West may exceed east: the box then crosses the antimeridian.
        dates: A day, month or year of items, or the first and the last: ``2023-05``, ``2023-05-01/2023-06-15``.
        max_cloud: Leaves out optical scenes with more cloud than this, in percent.
        modality: Sensor and level of items that do not say theirs: ``s1rtc``, ``s2l1c`` or ``s2l2a``.
        max_scenes: Stop where more scenes than this are found, instead of reading them all.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    collections: list[str] | None = None
    bbox: list[float] | None = None
    dates: str | None = None
    max_cloud: float | None = None
    modality: str | None = None
    max_scenes: int = 1000

    def __post_init__(self) -> None:
        _ = self.interval
        if wrong := next((name for name in self.collections or () if not _NAME.fullmatch(name)), None):
            raise TerraFMError(
                f"`collections` has {wrong[:200]!r}, which is no name: give ones such as sentinel-2-l2a."
            )
        if self.modality is not None:
            get_modality(self.modality)
        if self.bbox is not None:
            check_bbox(self.bbox)

    @cached_property
    def interval(self) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
        """The first and the last moment; None where it is open."""
        if self.dates is None:
            return None, None
        parts = [text.strip() for text in self.dates.split("/")]
        try:
            if not all(text in ("", "..") or _DATE.fullmatch(text) for text in parts):
                raise ValueError
            periods = [None if text in ("", "..") else pd.Period(text) for text in parts]
        except ValueError:  # no such text, no such day
            periods = []
        if len(periods) not in (1, 2) or not any(periods):
            raise TerraFMError(
                f"`dates` is {self.dates!r}: give a day, month or year, or two with a slash between them, such as "
                "2023-05-01/2023-06-15."
            )
        first, last = periods[0], periods[-1]
        start, end = first and first.start_time, last and last.end_time
        if start is not None and end is not None and end < start:
            raise TerraFMError(f"`dates` is {self.dates!r}, which ends before it begins: exchange the two.")
        return start, end

    def fits(self, item: Mapping[str, Any], place: Place) -> bool:
        """Tells whether an item meets the conditions."""
        start, end = self.interval
        if self.collections and place.collection not in self.collections:
            return False
        if place.time is not None and ((start and place.time < start) or (end and place.time > end)):
            return False
        if self.max_cloud is not None and (place.cloud_cover or 0) > self.max_cloud:
            return False
        return self.bbox is None or boxes_meet(place.box, self.bbox)


def check_bbox(bbox: list[float]) -> None:
    """Refuses a box that is none on the globe.

    Raises:
        TerraFMError: If it is not.
    """
    if len(bbox) != 4:
        raise TerraFMError(f"`bbox` has {len(bbox)} numbers: give west, south, east, north.")
    west, south, east, north = bbox
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90) or west == east:
        raise TerraFMError(
            f"`bbox` [{west:g},{south:g},{east:g},{north:g}] is empty or not on the globe: give west, south, east, "
            "north in degrees, south below north."
        )


def boxes_meet(box: tuple[float, ...] | None, other: list[float]) -> bool:
    """Tells whether two boxes in degrees share a place, along any meridian; True where one is not known."""
    if box is None:
        return True
    (west, south, east, north), (w, s, e, n) = box, other
    width, wide = (east - west) % 360 or 360, (e - w) % 360 or 360
    return south <= n and s <= north and ((w - west) % 360 <= width or (west - w) % 360 <= wide)

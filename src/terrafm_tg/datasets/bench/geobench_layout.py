"""How each dataset of GEO-Bench v1 names and scales the bands in its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: The names of Sentinel-2's bands in GEO-Bench's files.
SENTINEL2 = {
    "B01": "01 - Coastal aerosol",
    "B02": "02 - Blue",
    "B03": "03 - Green",
    "B04": "04 - Red",
    "B05": "05 - Vegetation Red Edge",
    "B06": "06 - Vegetation Red Edge",
    "B07": "07 - Vegetation Red Edge",
    "B08": "08 - NIR",
    "B8A": "08A - Vegetation Red Edge",
    "B09": "09 - Water vapour",
    "B10": "10 - SWIR - Cirrus",
    "B11": "11 - SWIR",
    "B12": "12 - SWIR",
}
_RGB = ("Red", "Green", "Blue")

#: What the files hold: what the samples hold; reflectance of 0 to 1; reflectance of 0 to 1 as 0 to 255; linear power.
Unit = Literal["same", "reflectance", "byte", "power"]
#: What the files' numbers are multiplied by; power becomes decibels instead.
FACTORS: dict[Unit, float] = {"same": 1, "reflectance": 10_000, "byte": 10_000 / 255}


@dataclass(frozen=True)
class Layout:
    """One dataset's files.

    Args:
        names: Name in the files of each channel, by sensor.
        units: What the numbers are, by sensor, where not as in the samples.
        mislabelled: Whether the files' names are wrong: then channels are told by their position, and the true bands
            are a task's ``sensors``, which may be fewer.
    """

    names: Mapping[str, tuple[str, ...]]
    units: Mapping[str, Unit]
    mislabelled: bool = False


def _sentinel2(modality: str, *bands: str, unit: Unit = "same", mislabelled: bool = False) -> Layout:
    return Layout({modality: tuple(SENTINEL2[band] for band in bands)}, {modality: unit}, mislabelled)


_ALL = tuple(SENTINEL2)
_NO_CIRRUS = tuple(band for band in _ALL if band != "B10")

LAYOUTS: dict[str, Layout] = {
    "m-eurosat": _sentinel2("s2l1c", *_ALL, mislabelled=True),
    "m-bigearthnet": _sentinel2("s2l2a", *_NO_CIRRUS),
    "m-so2sat": Layout(
        {
            # The Lee-filtered power, in the order of our stem; the files have VH before VV.
            "s1rtc": ("06 - VV.LEE Filtered", "05 - VH.LEE Filtered"),
            # The files lack B01 and B09; an encoder may let B02 and B8A stand in, as published evaluations did.
            "s2l1c": tuple(SENTINEL2[band] for band in _NO_CIRRUS if band not in ("B01", "B09")),
        },
        {"s1rtc": "power", "s2l1c": "reflectance"},
    ),
    "m-brick-kiln": _sentinel2("s2l2a", *_ALL, mislabelled=True),
    "m-forestnet": Layout(
        {"landsat8": ("04 - Red", "03 - Green", "02 - Blue", "05 - NIR", "06 - SWIR1", "07 - SWIR2")}, {}
    ),
    "m-pv4ger": Layout({"rgb": _RGB}, {}),
    "m-cashew-plant": _sentinel2("s2l2a", *_NO_CIRRUS),
    "m-SA-crop-type": _sentinel2("s2l2a", *_NO_CIRRUS, unit="byte"),
    "m-chesapeake": Layout({"naip": (*_RGB, "NearInfrared")}, {}),
    "m-nz-cattle": Layout({"rgb": _RGB}, {}),
    # The canopy height and the 369 hyperspectral bands are left out: they have another size and no encoder here.
    "m-NeonTree": Layout({"rgb": _RGB}, {}),
    "m-pv4ger-seg": Layout({"rgb": _RGB}, {}),
}

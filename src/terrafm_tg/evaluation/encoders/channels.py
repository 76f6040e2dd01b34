"""Channels of a model's input: the Sentinel band nearest to each, unit and normalization, and their place in a task."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from terrafm_tg.datasets.bench import BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, Modality

#: Center and width of each band in nanometers, as Copernicus-Bench gives them to the models that take them. Radar has
#: none that would fit in: these are the numbers by which Copernicus-FM knows C-band.
WAVELENGTHS: dict[str, tuple[float, float]] = {
    "B01": (440, 20), "B02": (490, 65), "B03": (560, 35), "B04": (665, 30), "B05": (705, 15), "B06": (740, 15),
    "B07": (783, 20), "B08": (842, 115), "B8A": (860, 20), "B09": (940, 20), "B10": (1370, 30),
    "B11": (1610, 90), "B12": (2190, 180), "VV": (5e7, 1e9), "VH": (5e7, 1e9),
}  # fmt: skip

#: Red, green and blue by Sentinel-2's names, in the order of every RGB model.
RGB = ("B04", "B03", "B02")

#: The band that stands in for one that a Sentinel-2 product lacks (Galileo's protocol for So2Sat).
NEIGHBORS = {"B01": "B02", "B09": "B8A"}

#: Band names of other sensors, in lower case, and the Sentinel-2 band nearest in wavelength.
_COLORS = {
    "coastal": "B01", "coastal_aerosol": "B01", "ultra_blue": "B01",
    "blue": "B02", "b": "B02", "green": "B03", "g": "B03", "red": "B04", "r": "B04",
    "nir": "B08", "near-ir": "B08", "n": "B08",
    "swir1": "B11", "swir_1": "B11", "swir2": "B12", "swir_2": "B12",
}  # fmt: skip
#: Landsat-8's near infrared (851 to 879 nm) is Sentinel-2's narrow one; its bands also go by number.
_LANDSAT8 = _COLORS | {"nir": "B8A", "n": "B8A"}
_LANDSAT8 |= {"b1": "B01", "b2": "B02", "b3": "B03", "b4": "B04", "b5": "B8A", "b6": "B11", "b7": "B12"}
_LANDSAT8 |= {f"sr_{band}": known for band, known in _LANDSAT8.items() if band[-1].isdigit()}
#: Landsat 4 to 7 number their bands otherwise.
_LANDSAT7 = {"b1": "B02", "b2": "B03", "b3": "B04", "b4": "B8A", "b5": "B11", "b7": "B12"}
_LANDSAT7 |= {f"sr_{band}": known for band, known in _LANDSAT7.items()}

_SENSORS = {"landsat8": _LANDSAT8, "landsat7": _LANDSAT7, "landsat5": _LANDSAT7}


def is_radar(sensor: str) -> bool:
    """Returns True for a radar, whose values are decibels."""
    return sensor == S1RTC.name


def is_sentinel2(sensor: str) -> bool:
    """Returns True for Sentinel-2, whose values are digital numbers."""
    return sensor in MODALITIES and not is_radar(sensor)


def equivalent(sensor: str, band: str) -> str | None:
    """Returns the Sentinel band that a band is, or is nearest to.

    Args:
        sensor: Key of the task's ``sensors``: a modality, ``"landsat8"``, or any other (red, green, blue and infrared
            are then known by name).
        band: Its name in the task.

    Returns:
        "B02", "VV" and so on; None for a band that none resembles (a height model, a cloud mask, thermal infrared).
    """
    if sensor in MODALITIES:
        modality = MODALITIES[sensor]
        try:
            return modality.channel_names(modality.stem_columns((band,)))[0]
        except TerraFMError:
            return band.upper() if band.upper() in modality.extra else None
    return _SENSORS.get(sensor, _COLORS).get(band.lower())


#: Digital numbers (reflectance x 10,000), 8-bit colors, decibels.
Unit = Literal["DN", "8-bit", "dB"]

#: Statistics of ImageNet's red, green and blue, in 8 bits.
_IMAGENET = {
    "B04": (0.485 * 255, 0.229 * 255), "B03": (0.456 * 255, 0.224 * 255), "B02": (0.406 * 255, 0.225 * 255),
}  # fmt: skip


class Channel(NamedTuple):
    """One channel of a model's input: normalized as (x - offset) / scale, with x in ``unit``.

    Args:
        band: The Sentinel band that it is, or is nearest to.
        unit: Of the data that the model was trained on.
        mean: Of those data.
        std: Of those data.
        offset: Of the model's normalization.
        scale: Of the model's normalization.
        low: Normalized values below become this.
        high: Normalized values above become this.
    """

    band: str
    unit: Unit
    mean: float
    std: float
    offset: float
    scale: float
    low: float = float("-inf")
    high: float = float("inf")


class Source(NamedTuple):
    """Place of a band in a task: the sensor, and the channel of its image."""

    sensor: str
    channel: int


def unit_of(sensor: str) -> Unit:
    """Returns the unit of a task's images."""
    return "dB" if is_radar(sensor) else "DN" if is_sentinel2(sensor) else "8-bit"


def modality_channels(modality: Modality, bands: Sequence[str]) -> list[Channel]:
    """Returns the channels of a TerraFM stem: (x - (mean - 2 std)) / (4 std)."""
    unit: Unit = "dB" if modality.unit == "dB" else "DN"
    moments = [(modality.mean[i], modality.std[i]) for i in modality.band_indices(bands)]
    return [
        Channel(band, unit, mean, std, mean - 2 * std, 4 * std)
        for band, (mean, std) in zip(bands, moments, strict=True)
    ]


def rgb_channels(mean: Sequence[float], std: Sequence[float]) -> list[Channel]:
    """Returns the channels of a model of photographs, whose colors lie in [0, 1] before it normalizes them."""
    return [
        Channel(band, "8-bit", *_IMAGENET[band], 255 * m, 255 * s) for band, m, s in zip(RGB, mean, std, strict=True)
    ]


def z_score(band: str, unit: Unit, mean: float, std: float) -> Channel:
    """Returns a channel that is normalized to mean 0 and standard deviation 1."""
    return Channel(band, unit, mean, std, mean, std)


def photo_moments(band: str) -> tuple[float, float]:
    """Returns mean and standard deviation of 8-bit photographs of a color; of other bands, of their average."""
    return _IMAGENET.get(band, (0.449 * 255, 0.226 * 255))


def find(task: BenchTask, sensors: Sequence[str], bands: Sequence[str], absent: str) -> list[Source | None]:
    """Finds the place of each of ``bands``, in the first of ``sensors`` that has it.

    Args:
        task: The task as opened.
        sensors: Keys of its ``sensors``.
        bands: Sentinel bands.
        absent: "neighbour" also takes the band that stands in for one which Sentinel-2 data lack.
    """
    known: dict[str, Source] = {}
    for sensor in sensors:
        own: dict[str, Source] = {}
        for index, band in enumerate(task.sensors[sensor]):
            name = equivalent(sensor, band)
            if name is not None:
                own.setdefault(name, Source(sensor, index))
        if absent == "neighbour" and is_sentinel2(sensor):
            own = {band: own[near] for band, near in NEIGHBORS.items() if near in own} | own
        known = own | known
    return [known.get(band) for band in bands]

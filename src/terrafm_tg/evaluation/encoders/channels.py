"""What a model expects in each channel of its input, and where a task has it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from terrafm_tg.datasets.bench import BenchTask
from terrafm_tg.modalities import Modality

from .bands import NEIGHBOURS, RGB, equivalent, is_radar, is_sentinel2

#: Digital numbers (reflectance x 10,000), 8-bit colours, decibels.
Unit = Literal["DN", "8-bit", "dB"]

#: Statistics of ImageNet's red, green and blue, in 8 bits.
_IMAGENET = {
    "B04": (0.485 * 255, 0.229 * 255), "B03": (0.456 * 255, 0.224 * 255), "B02": (0.406 * 255, 0.225 * 255),
}  # fmt: skip


class Channel(NamedTuple):
    """One channel of a model's input: normalised as (x - offset) / scale, with x in ``unit``.

    Args:
        band: The Sentinel band that it is, or is nearest to.
        unit: Of the data that the model was trained on.
        mean: Of those data.
        std: Of those data.
        offset: Of the model's normalisation.
        scale: Of the model's normalisation.
        low: Normalised values below become this.
        high: Normalised values above become this.
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
    """Where a task has a band: the sensor, and the channel of its image."""

    sensor: str
    channel: int


def unit_of(sensor: str) -> Unit:
    """The unit of a task's images."""
    return "dB" if is_radar(sensor) else "DN" if is_sentinel2(sensor) else "8-bit"


def modality_channels(modality: Modality, bands: Sequence[str]) -> list[Channel]:
    """Channels of a TerraFM stem: (x - (mean - 2 std)) / (4 std)."""
    unit: Unit = "dB" if modality.unit == "dB" else "DN"
    moments = [(modality.mean[i], modality.std[i]) for i in modality.band_indices(bands)]
    return [
        Channel(band, unit, mean, std, mean - 2 * std, 4 * std)
        for band, (mean, std) in zip(bands, moments, strict=True)
    ]


def rgb_channels(mean: Sequence[float], std: Sequence[float]) -> list[Channel]:
    """Channels of a model of photographs, whose colours lie in [0, 1] before it normalises them."""
    return [
        Channel(band, "8-bit", *_IMAGENET[band], 255 * m, 255 * s)
        for band, m, s in zip(RGB, mean, std, strict=True)
    ]


def z_score(band: str, unit: Unit, mean: float, std: float) -> Channel:
    """A channel that is normalised to mean 0 and deviation 1."""
    return Channel(band, unit, mean, std, mean, std)


def photo_moments(band: str) -> tuple[float, float]:
    """Mean and deviation of 8-bit photographs in that colour; of any other band, those of their average."""
    return _IMAGENET.get(band, (0.449 * 255, 0.226 * 255))


def find(task: BenchTask, sensors: Sequence[str], bands: Sequence[str], absent: str) -> list[Source | None]:
    """Where the task has each of ``bands``, in the first of ``sensors`` that has it.

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
            own = {band: own[near] for band, near in NEIGHBOURS.items() if near in own} | own
        known = own | known
    return [known.get(band) for band in bands]

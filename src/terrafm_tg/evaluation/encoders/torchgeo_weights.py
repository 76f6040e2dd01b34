"""What TorchGeo says about a weight: its bands and its normalisation, as channels of our own."""

from collections.abc import Sequence

from torch import nn
from torchgeo.models import ViTSmall14_DINOv2_Weights
from torchvision.models._api import WeightsEnum
from torchvision.transforms import Normalize as NormalizeV1
from torchvision.transforms.v2 import Normalize as NormalizeV2

from .bands import RGB, equivalent
from .channels import Channel, Unit, photo_moments, z_score

#: Sensors by the start of a weight's name; Sentinel-2, and photographs by the names of colours, for all others.
_SENSORS = {
    "SENTINEL1": "s1rtc", "LANDSAT_TM": "landsat5", "LANDSAT_ETM": "landsat7", "LANDSAT": "landsat8", "NAIP": "naip",
}  # fmt: skip


def weight_sensor(weight: WeightsEnum) -> str:
    """The kind of sensor that a weight was trained on, as a key of a task's ``sensors``."""
    return next((sensor for start, sensor in _SENSORS.items() if weight.name.startswith(start)), "s2l1c")


def weight_channels(weight: WeightsEnum) -> list[Channel]:
    """The channels that a weight expects, by its ``meta["bands"]`` (RGB without them) and its transforms.

    A first deviation above 255 says digital numbers, one above 1 eight bits, one below colours in [0, 1]; of radar
    decibels. Where the transforms do not normalise to mean 0, the data's moments are those of SSL4EO-S12.
    """
    sensor = weight_sensor(weight)
    names = weight.meta.get("bands")
    bands = [equivalent(sensor, band) or str(band) for band in names] if names else list(RGB)
    steps = _normalize_steps(weight.transforms)
    channels = []
    for index, band in enumerate(bands):
        offset, scale, first = 0.0, 1.0, None
        for mean, std in ((at(m, index), at(s, index)) for m, s in steps):
            first = std if first is None else first
            offset, scale = offset + mean * scale, scale * std
        unit: Unit = "8-bit"
        if sensor == "s1rtc" and (first is None or first < 100):
            unit = "dB"
        elif first is not None and first > 255:
            unit = "DN"
        elif first is not None and first <= 1:  # colours in [0, 1]
            offset, scale = 255 * offset, 255 * scale
        moments = photo_moments(band) if unit == "8-bit" else ssl4eo_moments().get(band, (offset, scale))
        channels.append(Channel(band, unit, *moments, offset, scale))
    return channels


def sentinel_channels(bands: Sequence[str]) -> list[Channel]:
    """Channels that are z-scored with the statistics of SSL4EO-S12, for models whose weights state none."""
    moments = ssl4eo_moments()
    return [z_score(band, "dB" if band in ("VV", "VH") else "DN", *moments[band]) for band in bands]


def clipped_channels(bands: Sequence[str]) -> list[Channel]:
    """Channels of CROMA: mean - 2 std to mean + 2 std becomes 0 to 1, and what lies outside is clipped."""
    return [
        c._replace(offset=c.mean - 2 * c.std, scale=4 * c.std, low=0.0, high=1.0)
        for c in sentinel_channels(bands)
    ]


def ssl4eo_moments() -> dict[str, tuple[float, float]]:
    """Mean and deviation of each band in SSL4EO-S12 (L1C digital numbers, decibels), as TorchGeo holds them."""
    moments: dict[str | None, tuple[float, float]] = {}
    for weight in (
        ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON,
        ViTSmall14_DINOv2_Weights.SENTINEL1_GRD_SOFTCON,
    ):
        ((mean, std),) = _normalize_steps(weight.transforms)
        bands = [equivalent(weight_sensor(weight), band) for band in weight.meta["bands"]]
        moments |= dict(zip(bands, zip(mean, std, strict=True), strict=True))
    return {str(band): values for band, values in moments.items()}


def at(values: Sequence[float], index: int) -> float:
    """A channel's value, where one may stand for all."""
    return float(values[index if len(values) > 1 else 0])


def _normalize_steps(transforms: object) -> list[tuple[list[float], list[float]]]:
    """Means and deviations of the transforms that normalise, in order."""
    modules = transforms.modules() if isinstance(transforms, nn.Module) else [transforms]
    return [
        ([float(x) for x in m.mean], [float(x) for x in m.std])
        for m in modules
        if isinstance(m, NormalizeV1 | NormalizeV2)
    ]

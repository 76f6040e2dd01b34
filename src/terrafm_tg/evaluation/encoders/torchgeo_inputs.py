"""Inputs of TorchGeo's models: a weight's own bands and normalization, photographs, or bands of known wavelength."""

from collections.abc import Sequence

from torch import nn
from torchgeo.models import ViTSmall14_DINOv2_Weights
from torchvision.models._api import WeightsEnum
from torchvision.transforms import Normalize as NormalizeV1
from torchvision.transforms.v2 import Normalize as NormalizeV2

from terrafm_tg.modalities import S1RTC

from .channels import RGB, WAVELENGTHS, Channel, Source, Unit, equivalent, photo_moments, z_score
from .reader import Reader, Request

#: Sensors by the start of a weight's name; Sentinel-2, and photographs by the names of colors, for all others.
_SENSORS = {
    "SENTINEL1": "s1rtc", "LANDSAT_TM": "landsat5", "LANDSAT_ETM": "landsat7", "LANDSAT": "landsat8", "NAIP": "naip",
}  # fmt: skip


def weight_sensor(weight: WeightsEnum) -> str:
    """Returns the kind of sensor that a weight was trained on, as a key of a task's ``sensors``."""
    return next((sensor for start, sensor in _SENSORS.items() if weight.name.startswith(start)), "s2l1c")


def weight_channels(weight: WeightsEnum) -> list[Channel]:
    """Returns the channels that a weight expects, by its ``meta["bands"]`` (RGB without them) and its transforms.

    A first deviation above 255 says digital numbers, one above 1 eight bits, one below colors in [0, 1]; of radar
    decibels. Where the transforms do not normalize to mean 0, the data's moments are those of SSL4EO-S12.
    """
    sensor = weight_sensor(weight)
    names = weight.meta.get("bands")
    bands = [equivalent(sensor, band) or str(band) for band in names] if names else list(RGB)
    steps = _normalize_steps(weight.transforms)
    channels = []
    for index, band in enumerate(bands):
        offset, scale, first = 0.0, 1.0, None
        for means, stds in steps:  # one value may stand for all channels
            mean, std = (values[index if len(values) > 1 else 0] for values in (means, stds))
            first = std if first is None else first
            offset, scale = offset + mean * scale, scale * std
        unit: Unit = "8-bit"
        if sensor == "s1rtc" and (first is None or first < 100):
            unit = "dB"
        elif first is not None and first > 255:
            unit = "DN"
        elif first is not None and first <= 1:  # colors in [0, 1]
            offset, scale = 255 * offset, 255 * scale
        moments = photo_moments(band) if unit == "8-bit" else ssl4eo_moments().get(band, (offset, scale))
        channels.append(Channel(band, unit, *moments, offset, scale))
    return channels


def sentinel_channels(bands: Sequence[str]) -> list[Channel]:
    """Returns channels that are z-scored with the statistics of SSL4EO-S12, for models whose weights state none."""
    moments = ssl4eo_moments()
    return [z_score(band, "dB" if band in ("VV", "VH") else "DN", *moments[band]) for band in bands]


def clipped_channels(bands: Sequence[str]) -> list[Channel]:
    """Returns channels of CROMA: mean - 2 std to mean + 2 std becomes 0 to 1, and what lies outside is clipped."""
    return [c._replace(offset=c.mean - 2 * c.std, scale=4 * c.std, low=0.0, high=1.0) for c in sentinel_channels(bands)]


def ssl4eo_moments() -> dict[str, tuple[float, float]]:
    """Returns mean and standard deviation of each band in SSL4EO-S12 (L1C digital numbers, decibels)."""
    moments: dict[str | None, tuple[float, float]] = {}
    for weight in (ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON, ViTSmall14_DINOv2_Weights.SENTINEL1_GRD_SOFTCON):
        ((mean, std),) = _normalize_steps(weight.transforms)
        bands = [equivalent(weight_sensor(weight), band) for band in weight.meta["bands"]]
        moments |= dict(zip(bands, zip(mean, std, strict=True), strict=True))
    return {str(band): values for band, values in moments.items()}


def _normalize_steps(transforms: object) -> list[tuple[list[float], list[float]]]:
    """Returns means and standard deviations of the transforms that normalize, in order."""
    modules = transforms.modules() if isinstance(transforms, nn.Module) else [transforms]
    return [
        ([float(x) for x in m.mean], [float(x) for x in m.std])
        for m in modules
        if isinstance(m, NormalizeV1 | NormalizeV2)
    ]


def weight_reader(request: Request, weight: WeightsEnum | None, size: int) -> Reader:
    """Reads the bands that a weight was trained on; without one, the task's own bands.

    Raises:
        UnsupportedTaskError: If the task has no such sensor.
    """
    if weight is None:
        channels, sources = request.own_channels()
        return request.reader(channels, size, sources=sources)
    kind = weight_sensor(weight)
    if kind == S1RTC.name:
        sensors = request.radar
    else:
        sensors = tuple(s for s in request.optical if not kind.startswith("landsat") or s.startswith("landsat"))
    channels = weight_channels(weight)
    odd = next((c for c in channels if c.band not in WAVELENGTHS and not kind.startswith("landsat")), None)
    if odd:
        raise request.unsupported(f"{weight.name} wants {odd.band}, which is no band")
    coded = channels[0].unit == "8-bit" if kind == S1RTC.name else channels[0].unit == "DN"
    if coded and kind.startswith(("landsat", "s1")):
        raise request.unsupported(f"{weight.name} wants {kind} in units of its own")
    if not sensors:
        raise request.unsupported(f"{weight.name} reads {kind}, and the task has {', '.join(request.sensors)}")
    return request.reader(channels, size, sensors)


def photo_reader(request: Request, size: int) -> Reader:
    """Reads red, green and blue, for a model of three channels with random weights."""
    return request.reader([z_score(band, "8-bit", *photo_moments(band)) for band in RGB], size, request.optical)


def spectral_reader(request: Request, size: int, sensors: tuple[str, ...] | None = None) -> Reader:
    """Reads the task's bands whose wavelength is known, normalized with the statistics of SSL4EO-S12."""
    channels, sources = request.own_channels(sensors, resembling=True)
    return request.reader(sentinel_channels([c.band for c in channels]), size, sources=sources)


def first_sensor(reader: Reader) -> str:
    """Returns the sensor that a reader reads first."""
    return next(source for source in reader.sources if isinstance(source, Source)).sensor

"""What TorchGeo's models read: a weight's own bands, photographs, or all bands of known wavelength."""

from torchvision.models._api import WeightsEnum

from terrafm_tg.modalities import S1RTC

from .bands import RGB, WAVELENGTHS
from .channels import Source, photo_moments, z_score
from .reader import Reader
from .request import Request
from .torchgeo_weights import sentinel_channels, weight_channels, weight_sensor


def weight_reader(request: Request, weight: WeightsEnum | None, size: int) -> Reader:
    """Reads what a weight was trained on; without one, the task's own bands.

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
        sensors = tuple(
            s for s in request.optical if not kind.startswith("landsat") or s.startswith("landsat")
        )
    channels = weight_channels(weight)
    odd = next((c for c in channels if c.band not in WAVELENGTHS and not kind.startswith("landsat")), None)
    if odd:
        raise request.unsupported(f"{weight.name} wants {odd.band}, which is no band")
    coded = channels[0].unit == "8-bit" if kind == S1RTC.name else channels[0].unit == "DN"
    if coded and kind.startswith(("landsat", "s1")):
        raise request.unsupported(f"{weight.name} wants {kind} in units of its own")
    if not sensors:
        raise request.unsupported(
            f"{weight.name} reads {kind}, and the task has {', '.join(request.sensors)}"
        )
    return request.reader(channels, size, sensors)


def photo_reader(request: Request, size: int) -> Reader:
    """Red, green and blue, for a model of three channels with random weights."""
    return request.reader(
        [z_score(band, "8-bit", *photo_moments(band)) for band in RGB], size, request.optical
    )


def spectral_reader(request: Request, size: int, sensors: tuple[str, ...] | None = None) -> Reader:
    """The task's bands whose wavelength is known, normalised with the statistics of SSL4EO-S12."""
    channels, sources = request.own_channels(sensors, resembling=True)
    return request.reader(sentinel_channels([c.band for c in channels]), size, sources=sources)


def first_sensor(reader: Reader) -> str:
    """The sensor that a reader reads first."""
    return next(source for source in reader.sources if isinstance(source, Source)).sensor

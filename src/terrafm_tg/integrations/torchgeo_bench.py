"""TerraFM in torchgeo-bench, whose leaderboard compares frozen encoders: ``pip install "terrafm-tg[torchgeo-bench]"``.

``torchgeo-bench run --config-dir conf/torchgeo_bench model=terrafm_base dataset.bands=all`` runs it there.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models.interface import BenchModel, NormalizationStrategy

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders.channels import WAVELENGTHS, equivalent
from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A, get_modality
from terrafm_tg.models import build_encoder
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.transforms.normalize import MISSING
from terrafm_tg.transforms.statistics import Statistics, with_statistics

_log = logging.getLogger(__name__)

#: Optical bands whose centers are further apart than this share of the wavelength are different.
_TOLERANCE = 0.04
#: Strategies of torchgeo-bench that leave normalization to the model.
_OWN = ("model_native", "identity")


class _Channel(NamedTuple):
    """The normalization of one channel for its stem: scale * x + shift, of decibels if ``power``."""

    power: bool
    scale: float
    shift: float


class TerraFMBench(BenchModel):
    """TerraFM as torchgeo-bench's models: made for the bands of a dataset, it gives embeddings of raw images.

    Bands are recognized by name, else by wavelength: optical ones as Sentinel-2's (also those of other sensors), radar
    as Sentinel-1's VV and VH. Bands without counterpart (cirrus, height, the parts of complex radar) are left out. An
    image with both sensors is fused. torchgeo-bench uses band names as the files have them, which are wrong in
    m-eurosat and m-brick-kiln.

    Args:
        bands: The channels of the images, as torchgeo-bench states them.
        normalization: ``"bandspec_zscore"`` and ``"minmax_zscore"`` take the dataset's mean and deviation in the place
            of those that TerraFM was trained with, ``"minmax"`` the dataset's range. ``"model_native"`` and
            ``"identity"`` leave it to TerraFM: Sentinel-2 as digital numbers and radar in dB with the training's
            statistics; bands of other sensors, which have none, still with the dataset's.
        model: Such as ``"terrafm_base"``.
        weights: ``"default"`` for the registered ones, a file, a URL or a name; None for random ones.
        modality: What optical bands are, ``"s2l1c"`` or ``"s2l2a"``; by default the former where there is a cirrus
            band, which L2A products lack.
        pooling: ``"token"`` for the class token, ``"mean"`` for the mean of the patch tokens.
        settings: What else the YAML holds: ``depth`` goes to the encoder, all else is torchgeo-bench's own.

    Raises:
        TerraFMError: If no band can be read, or a setting is unknown.

    Example:
        >>> TerraFMBench([BandSpec("s2", "red", "B04", 950, 590, 0, 28000, 0.665)], weights=None).num_channels
        1
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        bands: list[BandSpec],
        normalization: str = "bandspec_zscore",
        model: str = "terrafm_base",
        weights: str | None = "default",
        modality: str | None = None,
        pooling: str = "token",
        **settings: object,
    ) -> None:
        super().__init__(bands, "bandspec_zscore" if normalization in _OWN else normalization)
        self.normalization = NormalizationStrategy(normalization)
        if pooling not in ("token", "mean"):
            raise TerraFMError(f"`pooling` is {pooling!r}: use token or mean.")
        self.pooling = pooling
        self.names, self.sources = _assign(bands, modality)
        known = True if weights == "default" else weights
        self.backbone = build_encoder(model, known, bands=self.names, depth=settings.get("depth"))
        channels = [_Channel(False, 0.0, MISSING)] * len(bands)
        for name, sources in self.sources.items():
            for source, band in zip(sources, self.names[name], strict=True):
                channels[source] = _channel(bands, source, name, band, normalization, self.backbone.statistics)
        self.power = [at for at, channel in enumerate(channels) if channel.power]
        for buffer, values in (("scale", [c.scale for c in channels]), ("shift", [c.shift for c in channels])):
            column = torch.tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(buffer, column, persistent=False)

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Returns raw images (B, C, H, W) as the stems expect them; missing pixels are at the mean."""
        if self.power:
            images = images.clone()
            images[:, self.power] = 10 * images[:, self.power].clamp(min=1e-10).log10()
        x = torch.addcmul(self.shift, images, self.scale)
        return torch.where(torch.isfinite(x), x, MISSING)

    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Returns embeddings (B, K) of normalized images; sizes that are no multiple of 16 are resized to the next."""
        size = [-(-side // PATCH_SIZE) * PATCH_SIZE for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = nn.functional.interpolate(images, size, mode="bilinear")
        tokens = self.backbone.forward_features({name: images[:, at] for name, at in self.sources.items()})
        return tokens[:, 0] if self.pooling == "token" else tokens[:, 1:].mean(1)


def _assign(bands: Sequence[BandSpec], modality: str | None) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """Returns modality -> band names, and modality -> their channels; of several channels for a band the first."""
    found = {at: name for at, spec in enumerate(bands) if (name := sentinel_band(spec)) is not None}
    optical = modality or (S2L1C.name if "B10" in found.values() else S2L2A.name)
    if optical not in (S2L1C.name, S2L2A.name):
        raise TerraFMError(f"`modality` is {modality!r}: use {S2L1C.name} or {S2L2A.name}.")
    names: dict[str, list[str]] = {}
    sources: dict[str, list[int]] = {}
    for sensor in (S1RTC, get_modality(optical)):
        for at, name in found.items():
            if name in sensor.bands and name not in names.get(sensor.name, ()):
                names.setdefault(sensor.name, []).append(name)
                sources.setdefault(sensor.name, []).append(at)
    if not names:
        given = ", ".join(f"{spec.sensor} {spec.name}" for spec in bands)
        raise TerraFMError(
            f"TerraFM reads none of the bands {given}: give Sentinel-2-like optical bands, or VV and VH."
        )
    used = {at for some in sources.values() for at in some}
    unread = [spec.name for at, spec in enumerate(bands) if at not in used]
    if unread:
        _log.info("TerraFM does not read %s.", ", ".join(unread))
    return names, sources


def sentinel_band(spec: BandSpec) -> str | None:
    """Returns the Sentinel band that a band is or comes nearest to.

    Args:
        spec: As torchgeo-bench states it.

    Returns:
        "B02", "VV" and so on; None where there is none, as for height or the parts of complex radar.
    """
    if spec.sensor.startswith(("s1", "sar")):
        name = spec.name.upper().split("_")
        usable = name[0] in S1RTC.bands and set(name[1:]) <= {"LEE", "ASC", "DESC"} and spec.mean != 0
        return name[0] if usable else None
    sensor = "landsat8" if spec.sensor == "landsat" else spec.sensor
    known = equivalent(sensor, spec.name)
    if known is not None or spec.wavelength_um is None:
        return known
    nanometers = 1000 * spec.wavelength_um
    near = min(S2L1C.bands + S2L1C.extra, key=lambda band: abs(WAVELENGTHS[band][0] - nanometers))
    return near if abs(WAVELENGTHS[near][0] - nanometers) <= _TOLERANCE * nanometers else None


def _channel(
    bands: Sequence[BandSpec], at: int, sensor: str, band: str, normalization: str, statistics: Statistics | None
) -> _Channel:
    """Returns the normalization of a channel for its stem."""
    spec, modality = bands[at], with_statistics(get_modality(sensor), statistics)
    index = modality.bands.index(band)
    if normalization == "minmax":
        span = max(spec.max - spec.min, 1e-8)
        return _Channel(False, 1 / span, -spec.min / span)
    power = sensor == S1RTC.name and spec.mean > 0
    factor = _unit_factor(bands, spec, sensor)
    if normalization in _OWN and factor is not None:
        mean, std = modality.mean[index], modality.std[index]
        return _Channel(power, factor / (4 * std), MISSING - mean / (4 * std))
    std = max(spec.std, 1e-8)
    return _Channel(False, 1 / (4 * std), MISSING - spec.mean / (4 * std))


def _unit_factor(bands: Sequence[BandSpec], spec: BandSpec, sensor: str) -> float | None:
    """Returns the factor from stored values to the unit of the training's statistics; None if there is none."""
    if sensor == S1RTC.name:
        return 1.0 if spec.max < 60_000 else None  # 16-bit pictures are stretched somehow
    if spec.sensor != "s2":
        return None
    highest = max(other.max for other in bands if other.sensor == spec.sensor)
    return 1.0 if highest > 1000 else 10_000.0 if highest <= 10 else None

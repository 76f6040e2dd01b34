"""From a task's raw images to a model's input: bands by name, units, normalization, missing pixels, size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from terrafm_tg.datasets.bench import BenchDataset, BenchTask

from .channels import Channel, Source, equivalent, find, is_radar, unit_of, z_score
from .spec import ModelSpec, UnsupportedTaskError

#: Digital number that an 8-bit picture of Sentinel-2 shows as 255 (ESA's true-color images, by product level).
_WHITE = {"s2l1c": 3558.0, "s2l2a": 2000.0}


class Reader(nn.Module):
    """One input of a model.

    A band in the unit that the model was trained with is normalized as in its training. In any other unit, and with
    ``match``, it is first brought from the dataset's mean and deviation to those of the training data. A missing
    pixel, and a band that the task has not, count as being at the training mean.

    Args:
        channels: What the model expects.
        sources: Where the task has each of them; None for a band that it lacks.
        data: Has the statistics of its images.
        size: Height and width that the model sees; None keeps the stored ones.
        match: Whether to use the dataset's statistics for bands of the model's own unit too.
    """

    scale: Tensor
    shift: Tensor
    fill: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        channels: Sequence[Channel],
        sources: Sequence[Source | None],
        data: BenchDataset,
        size: int | None,
        match: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.sources = tuple(channels), tuple(sources)
        self.size = size
        rows = []
        for channel, source in zip(self.channels, self.sources, strict=True):
            to_unit, at, low, high = _to_unit(channel, source, data, match)
            rows.append(
                (
                    to_unit / channel.scale,
                    (at - channel.offset) / channel.scale,
                    (channel.mean - channel.offset) / channel.scale,
                    max(channel.low, (low - channel.offset) / channel.scale),
                    min(channel.high, (high - channel.offset) / channel.scale),
                )
            )
        columns = torch.tensor(rows, dtype=torch.float64).float().T[..., None, None]
        for name, column in zip(("scale", "shift", "fill", "low", "high"), columns, strict=True):
            self.register_buffer(name, column.contiguous(), persistent=False)
        self.clips = bool(torch.isfinite(self.low).any() or torch.isfinite(self.high).any())

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns a batch's images, those of several dates one below the other.

        Args:
            batch: ``image_<sensor>`` (B, C, H, W), or (B, T, C, H, W).

        Returns:
            (B, channels, size, size), or (B T, channels, size, size).
        """
        planes = [
            None if source is None else batch[f"image_{source.sensor}"][..., source.channel, :, :]
            for source in self.sources
        ]
        some = next(plane for plane in planes if plane is not None)
        x = torch.stack([torch.full_like(some, torch.nan) if p is None else p for p in planes], dim=-3)
        x = torch.addcmul(self.shift, x, self.scale)
        x = torch.where(torch.isfinite(x), x, self.fill)
        if self.clips:
            x = x.clamp(self.low, self.high)
        x = x.flatten(0, -4)
        if self.size is None or x.shape[-2:] == (self.size, self.size):
            return x
        smaller = self.size < max(x.shape[-2:])  # antialiasing changes nothing in a larger image
        return interpolate(x, (self.size, self.size), mode="bilinear", antialias=smaller)


def _to_unit(
    channel: Channel, source: Source | None, data: BenchDataset, match: bool
) -> tuple[float, float, float, float]:
    """Returns factor and summand that take stored values to the model's unit, and the range that the unit has."""
    unbounded = float("-inf"), float("inf")
    if source is None:
        return 1.0, 0.0, *unbounded
    unit = unit_of(source.sensor)
    if not match and unit == channel.unit:
        return 1.0, 0.0, *unbounded
    if not match and (unit, channel.unit) == ("DN", "8-bit"):
        return 255 / _WHITE[source.sensor], 0.0, 0.0, 255.0
    mean, std = (float(x[source.sensor][source.channel]) for x in (data.mean, data.std))
    factor = channel.std / max(std, 1e-6)
    return factor, channel.mean - mean * factor, *unbounded


@dataclass(frozen=True)
class Request:
    """One model for one task.

    Args:
        spec: The model.
        task: The task as opened.
        data: Has its statistics.
    """

    spec: ModelSpec
    task: BenchTask
    data: BenchDataset

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the model may use, in the task's order.

        Raises:
            UnsupportedTaskError: If the task has none of those asked for.
        """
        chosen = tuple(s for s in self.task.sensors if self.spec.sensors is None or s in self.spec.sensors)
        if not chosen:
            raise self.unsupported(
                f"it was to read {_words(self.spec.sensors or ())}, and the task has {_words(self.task.sensors)}"
            )
        return chosen

    @property
    def radar(self) -> tuple[str, ...]:
        """Those of them that are radars."""
        return tuple(sensor for sensor in self.sensors if is_radar(sensor))

    @property
    def optical(self) -> tuple[str, ...]:
        """Those of them that are not."""
        return tuple(sensor for sensor in self.sensors if not is_radar(sensor))

    @property
    def default(self) -> tuple[str, ...]:
        """Sensors for a model with a single input: those asked for, else the first, optical before radar."""
        return self.sensors if self.spec.sensors is not None else (self.optical or self.radar)[:1]

    def size(self, patch: int, own: int | None = None) -> int:
        """Returns the pixels that the model sees, whole patches.

        Args:
            patch: Pixels of a patch.
            own: The size of a model that has but one.
        """
        pixels = (own or self.task.input_size) if self.spec.size is None else self.spec.size or self.task.size
        return -(-pixels // patch) * patch

    def reader(
        self,
        channels: Sequence[Channel],
        size: int | None,
        sensors: Sequence[str] | None = None,
        sources: Sequence[Source | None] | None = None,
    ) -> Reader:
        """Makes the reader of the channels that a model expects.

        Args:
            channels: The model's.
            size: Pixels that it sees.
            sensors: Which to read; all by default.
            sources: Places of the channels, if they are known already.

        Raises:
            UnsupportedTaskError: If the task has fewer than half of the bands.
        """
        if sources is None:
            bands = [channel.band for channel in channels]
            sources = find(self.task, sensors or self.sensors, bands, self.spec.absent)
            found = sum(source is not None for source in sources)
            if 2 * found < len(bands):
                raise self.unsupported(f"the model reads {', '.join(bands)}, of which the task has {found or 'none'}")
        return Reader(channels, sources, self.data, size, self.spec.normalization == "dataset")

    def own_channels(
        self, sensors: Sequence[str] | None = None, resembling: bool = False
    ) -> tuple[list[Channel], list[Source]]:
        """Returns the task's bands as they are, normalized by its statistics; those of ``channels`` if given.

        Args:
            sensors: Which sensors; :attr:`default` by default.
            resembling: Leave out bands that no Sentinel band resembles.

        Raises:
            UnsupportedTaskError: If none is left.
        """
        channels, sources = [], []
        wanted = None if self.spec.channels in (None, ("all",)) else self.spec.channels
        for sensor in sensors or self.default:
            for index, band in enumerate(self.task.sensors[sensor]):
                name = equivalent(sensor, band)
                if (wanted is not None and not {band, name} & set(wanted)) or (resembling and name is None):
                    continue
                moments = float(self.data.mean[sensor][index]), float(self.data.std[sensor][index])
                channels.append(z_score(name or band, unit_of(sensor), moments[0], max(moments[1], 1e-6)))
                sources.append(Source(sensor, index))
        if not channels:
            raise self.unsupported(f"the task has none of the bands {_words(wanted or ())}")
        return channels, sources

    def unsupported(self, reason: str) -> UnsupportedTaskError:
        """Returns the error that names model, task and reason."""
        return UnsupportedTaskError(f"{self.spec.model} cannot read {self.task.name}: {reason}.")


def _words(names: Iterable[str]) -> str:
    return ", ".join(str(name) for name in names) or "none"

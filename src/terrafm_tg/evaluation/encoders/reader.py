"""From a task's raw images to a model's input: bands by name, units, normalisation, missing pixels, size."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from terrafm_tg.datasets.bench import BenchDataset

from .channels import Channel, Source, unit_of

#: Digital number that an 8-bit picture of Sentinel-2 shows as 255 (ESA's true-colour images, by product level).
_WHITE = {"s2l1c": 3558.0, "s2l2a": 2000.0}


class Reader(nn.Module):
    """One input of a model.

    A band in the unit that the model was trained with is normalised as in its training. In any other unit, and with
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
        """A batch's images, those of several dates one below the other.

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
    """Factor and summand that take stored values to the model's unit, and the range that the unit has."""
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

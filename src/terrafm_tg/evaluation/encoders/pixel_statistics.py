"""The baseline that needs no encoder: mean and deviation of each band; for masks the pixels themselves."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from terrafm_tg.models.inputs import PATCH_SIZE

from .backbone import IMAGE, Backbone, Features, Inputs
from .encoder import Encoder
from .request import Request


class PixelStatistics(Backbone):
    """Mean and standard deviation per band (n, 2 C), means first; patches are their own C x 16 x 16 values.

    Args:
        channels: Number C of bands.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Identity(), 2 * channels, channels * PATCH_SIZE**2, patch_size=PATCH_SIZE, has_mean=False
        )

    def forward(self, inputs: Inputs) -> Features:
        """Statistics, and pixels by patch."""
        x = inputs[IMAGE]
        deviation, mean = torch.std_mean(x, dim=(2, 3), correction=0)
        return Features(torch.cat([mean, deviation], dim=1), self._pixels(x))

    def levels(self, inputs: Inputs) -> list[Tensor]:
        """The same pixels four times: there is no depth."""
        return [self._pixels(inputs[IMAGE])] * 4

    def _pixels(self, x: Tensor) -> Tensor:
        height, width = (side // PATCH_SIZE * PATCH_SIZE for side in x.shape[-2:])
        return pixel_unshuffle(x[..., :height, :width], PATCH_SIZE)


def load_pixel_statistics(request: Request) -> Encoder:
    """All bands of all sensors as z-scores of the dataset; of the stored pixels, not resized ones, but for masks.

    Raises:
        UnsupportedTaskError: If the task has none of the bands asked for.
    """
    size = request.size(PATCH_SIZE)
    channels, sources = request.own_channels(request.sensors)
    resized = size if request.task.kind == "segmentation" else None
    reader = request.reader(channels, resized, sources=sources)
    return Encoder(request, {IMAGE: reader}, PixelStatistics(len(channels)), size)

"""What learns on an encoder's features: a linear classifier, a linear layer per patch, UPerNet."""

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders.spec import BenchEncoder
from terrafm_tg.models.smp_encoder import pyramid

_LARGEST_SIDE = 128  # px


class Head(nn.Module, abc.ABC):
    """Reads an encoder's features, and makes logits of them.

    Attributes:
        align_corners: How logits per pixel are resized to the mask.
    """

    align_corners = False

    @abc.abstractmethod
    def read(self, encoder: BenchEncoder, batch: Mapping[str, Tensor]) -> Any:
        """The features of a raw batch."""

    @abc.abstractmethod
    def forward(self, features: Any) -> list[Tensor]:
        """Logits (B, C), or (B, C, h, w) at any size; after the first, those of auxiliary heads."""


def pooled(embedded: Mapping[str, Tensor], pooling: str) -> Tensor:
    """The embedding of an image (B, D) that ``pooling`` names, or the one that the model has."""
    return embedded[pooling] if pooling in embedded else next(iter(embedded.values()))


class LinearHead(Head):
    """One linear layer on an image's embedding.

    Args:
        dim: Width of the embedding.
        classes: Number of classes or labels.
        pooling: Which embedding: "token" or "mean", or the one that there is.
    """

    def __init__(self, dim: int, classes: int, pooling: str = "token") -> None:
        super().__init__()
        self.pooling = pooling
        self.linear = nn.Linear(dim, classes)

    def read(self, encoder: BenchEncoder, batch: Mapping[str, Tensor]) -> Tensor:
        """The embedding, (B, D)."""
        return pooled(encoder.embed(batch), self.pooling)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (B, C)."""
        return [self.linear(features)]


class PatchHead(Head):
    """Galileo's linear segmentation: each patch's features give the logits of its ``side`` x ``side`` pixels.

    Args:
        dim: Width of the features.
        classes: Number of classes.
        side: Pixels of the mask per side of a patch, rounded up: maps that come out larger are resized.

    Raises:
        TerraFMError: If it is more than 128, which would need billions of weights.
    """

    align_corners = True  # as Galileo resizes

    def __init__(self, dim: int, classes: int, side: int) -> None:
        super().__init__()
        if side > _LARGEST_SIDE:
            raise TerraFMError(
                f"Each patch of the model shows {side}x{side} px of the mask, expected at most {_LARGEST_SIDE}: set a "
                "larger `size` of the model."
            )
        self.side = side
        self.linear = nn.Conv2d(dim, classes * side * side, 1)

    def read(self, encoder: BenchEncoder, batch: Mapping[str, Tensor]) -> Tensor:
        """The last block's features, (B, D, h, w)."""
        return encoder.patches(batch)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (B, C, h side, w side)."""
        return [nn.functional.pixel_shuffle(self.linear(features), self.side)]


class UPerNetHead(Head):
    """smp's UPerNet on four blocks, as the paper probes: maps of 4, 2, 1 and 1/2 times the patch grid.

    Args:
        dim: Width of the features.
        classes: Number of classes.
        width: Channels of the decoder.
        dropout: Rate before the last layer.
    """

    def __init__(self, dim: int, classes: int, width: int = 256, dropout: float = 0.0) -> None:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        self.decoder = UPerNetDecoder([0, 0, dim, dim, dim, dim], decoder_channels=width)
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Conv2d(width, classes, 1)

    def read(self, encoder: BenchEncoder, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Four blocks' features, (B, D, h, w) each."""
        return encoder.pyramid_inputs(batch)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, C, 4 h, 4 w)."""
        maps = pyramid(features)
        # The decoder skips the maps of full and half size.
        return [self.linear(self.dropout(self.decoder([maps[0], maps[0], *maps])))]


@torch.no_grad()
def linear_head[T: LinearHead](encoder: BenchEncoder, data: BenchDataset, kind: type[T] = LinearHead) -> T:
    """A head ``kind(width, classes, pooling)`` for the embedding; class token and mean may differ in width."""
    pooling = encoder.spec.pooling
    width = pooled(encoder.embed(default_collate([data[0]])), pooling).shape[1]
    return kind(width, len(encoder.task.classes), pooling)


def patch_head(encoder: BenchEncoder, data: BenchDataset) -> PatchHead:
    """A linear layer per patch, for masks of the size that the data's first sample has."""
    pixels, grid = data[0]["mask"].shape[-1], encoder.size / encoder.patch_size
    return PatchHead(encoder.dim, len(encoder.task.classes), math.ceil(pixels / grid))

"""Heads that learn on an encoder's features: a linear classifier, a linear layer per patch, UPerNet."""

import abc
from collections.abc import Mapping
from typing import Any

import torch
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn.functional import interpolate

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.smp_encoder import pyramid

_LARGEST_SIDE = 128  # px
#: Maps of more channels than any usual encoder has, such as pixels by patch, are first taken to ``NARROWED``.
WIDEST, NARROWED = 1536, 768


class FeatureEncoder(nn.Module, abc.ABC):
    """Any model that gives features of a batch of images."""

    @abc.abstractmethod
    def embed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{"token": (B, D), "mean": (B, D)}`` of one forward; a model with one of them has one key."""

    @abc.abstractmethod
    def patches(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Patch features of the last block, (B, D, h, w)."""

    @abc.abstractmethod
    def pyramid_inputs(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps (B, D, h, w) of four blocks of increasing depth."""


class LoneBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm that takes its running statistics where a batch has one value per channel, which has no variance.

    So it is in UPerNet where a last batch has one sample: its pyramid pools to one pixel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes (B, C) and (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def allow_lone_samples[T: nn.Module](model: T) -> T:
    """The model with each of its batch norms as :class:`LoneBatchNorm`, in place; tensors keep their names."""
    for parent in [*model.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                own = LoneBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                own.load_state_dict(child.state_dict())
                setattr(parent, name, own.train(child.training))
    return model


def resized(logits: Tensor, size: torch.Size | tuple[int, int], align_corners: bool) -> Tensor:
    """Logits (B, C, h, w) at another size, bilinear, in float32."""
    if logits.shape[-2:] == size:
        return logits.float()
    return interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)


class Head(nn.Module, abc.ABC):
    """Reads an encoder's features, and makes logits of them.

    Attributes:
        align_corners: How logits per pixel are resized to the mask.
    """

    align_corners = False

    @abc.abstractmethod
    def read(self, encoder: FeatureEncoder, batch: Mapping[str, Tensor]) -> Any:
        """The features of a raw batch."""

    @abc.abstractmethod
    def forward(self, features: Any) -> list[Tensor]:
        """Logits (B, C), or (B, C, h, w) at any size; after the first, those of auxiliary heads."""

    def logits(self, features: Any, target: Tensor) -> list[Tensor]:
        """The same in float32, those per pixel at the size of the target (B, H, W)."""
        found = self(features)
        if found[0].ndim == 2:
            return [logits.float() for logits in found]
        return [resized(logits, target.shape[-2:], self.align_corners) for logits in found]


def pooled(embedded: Mapping[str, Tensor], pooling: str) -> Tensor:
    """The embedding of an image (B, D) that ``pooling`` names, or the one that the model has."""
    return embedded[pooling] if pooling in embedded else next(iter(embedded.values()))


class LinearHead(Head):
    """One linear layer on an image's embedding.

    Args:
        dim: Width of the embedding.
        classes: Number of classes or labels.
        pooling: Which embedding: "token" or "mean", or the one that there is.
        norm: Before the layer; nothing where None.
    """

    def __init__(self, dim: int, classes: int, pooling: str = "token", norm: nn.Module | None = None) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = nn.Identity() if norm is None else norm
        self.linear = nn.Linear(dim, classes)

    def read(self, encoder: FeatureEncoder, batch: Mapping[str, Tensor]) -> Tensor:
        """The embedding, (B, D)."""
        return pooled(encoder.embed(batch), self.pooling)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits (B, C)."""
        return [self.linear(self.norm(features))]


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

    def read(self, encoder: FeatureEncoder, batch: Mapping[str, Tensor]) -> Tensor:
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
        super().__init__()
        self.decoder = allow_lone_samples(UPerNetDecoder([0, 0, dim, dim, dim, dim], decoder_channels=width))
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Conv2d(width, classes, 1)

    def read(self, encoder: FeatureEncoder, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Four blocks' features, (B, D, h, w) each."""
        return encoder.pyramid_inputs(batch)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, C, 4 h, 4 w)."""
        maps = pyramid(features)
        # The decoder skips the maps of full and half size.
        return [self.linear(self.dropout(self.decoder([maps[0], maps[0], *maps])))]


class PyramidHead(Head):
    """UPerNet on a learnt pyramid of four blocks' maps, and an auxiliary convolution on the third of them.

    The maps are taken to 4, 2, 1 and 1/2 times the patch grid. Of two dates the head sees the later features less the
    earlier ones, as the benchmark does for floods. The decoder is smp's, which normalizes each map first.

    Args:
        dim: Width of the encoder's maps, those of all dates together.
        classes: Number of classes.
        dates: Images per sample.
        width: Channels of the decoder.
        auxiliary_width: Channels of the auxiliary head.
        dropout: Rate before the last layer of either.
    """

    def __init__(self, dim: int, classes: int, dates: int, width: int, auxiliary_width: int, dropout: float) -> None:
        super().__init__()
        self.dates = dates
        dim //= dates
        self.narrow: nn.Module = nn.Identity()
        if dim > WIDEST:
            self.narrow, dim = nn.Conv2d(dim, NARROWED, 1), NARROWED
        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(_twice(dim), nn.BatchNorm2d(dim), nn.GELU(), _twice(dim)),
                _twice(dim),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.decoder = UPerNetDecoder([0, 0, dim, dim, dim, dim], decoder_channels=width)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))
        self.auxiliary = nn.Sequential(
            nn.Conv2d(dim, auxiliary_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(auxiliary_width),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(auxiliary_width, classes, 1),
        )
        allow_lone_samples(self)

    def read(self, encoder: FeatureEncoder, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Four blocks' maps (B, D, h, w) of the one date, or of the change from the first date to the last."""
        maps = encoder.pyramid_inputs(batch)
        if self.dates == 1:
            return maps
        dates = [x.unflatten(1, (self.dates, -1)) for x in maps]
        return [x[:, -1] - x[:, 0] for x in dates]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, C, 4 h, 4 w), and the auxiliary ones (B, C, h, w)."""
        maps = [scale(self.narrow(x)) for scale, x in zip(self.pyramid, features, strict=True)]
        # The decoder skips the maps of full and half size.
        return [self.classify(self.decoder([maps[0], maps[0], *maps])), self.auxiliary(maps[2])]


def _twice(dim: int) -> nn.Module:
    """A learnt enlargement by 2."""
    return nn.ConvTranspose2d(dim, dim, 2, stride=2)

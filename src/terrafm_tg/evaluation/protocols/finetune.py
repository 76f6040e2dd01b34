"""Heads trained on images: full fine-tuning by Galileo's protocol, and the paper's dense probing by UPerNet."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.utils.data import default_collate

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder
from terrafm_tg.tasks.finetune.heads import Head, LinearHead, PatchHead, UPerNetHead, pooled

from .sweep import CosineSweep, ImageSweep


@dataclass(frozen=True)
class FineTune(CosineSweep, ImageSweep):
    """Trains all of the encoder with a linear layer on its embedding, or on each patch for a class per pixel.

    Galileo's settings: AdamW with 9 learning rates, 5 of 50 epochs of warm-up, cosine, batch 256, gradients clipped to
    norm 1, turns and mirrorings; the best learning rate on the validation split counts. Other than there, of each
    learning rate the best epoch counts, not the last.

    Args:
        effective_batch: Samples per optimizer step.
        batch_size: Samples per forward, at most; a divisor of ``effective_batch``.
        decoder: For a class per pixel: "linear" per patch, or "upernet" on four blocks.

    Raises:
        TerraFMError: If ``batch_size`` does not divide ``effective_batch``.
    """

    name: ClassVar[str] = "finetune"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel", "segmentation"})
    train_encoder: ClassVar[bool] = True

    rates: tuple[float, ...] = (1e-5, 3e-5, 6e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 6e-3)
    effective_batch: int = 256
    batch_size: int = 32
    decoder: Literal["linear", "upernet"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effective_batch % self.batch_size:
            raise TerraFMError(
                f"`batch_size` is {self.batch_size} and `effective_batch` {self.effective_batch}: gradients of "
                "whole batches are added up, so set a divisor."
            )

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""
        return self.effective_batch // self.batch_size

    def head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        """A linear layer, or UPerNet."""
        if encoder.task.kind != "segmentation":
            return linear_head(encoder, data)
        if self.decoder == "upernet":
            return UPerNetHead(encoder.dim, len(encoder.task.classes), self.width)
        return patch_head(encoder, data)


@dataclass(frozen=True)
class FrozenUPerNet(CosineSweep, ImageSweep):
    """UPerNet on the features of four blocks (1/3, 1/2, 2/3 and all of the depth: 4, 6, 8 and 12 of 12).

    The paper states the blocks and no more; the rest are common values.

    Args:
        batch_size: Samples per step.
        dropout: Rate before the decoder's last layer.
    """

    name: ClassVar[str] = "upernet"
    kinds: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    rates: tuple[float, ...] = (1e-3,)
    batch_size: int = 16
    dropout: float = 0.1

    def head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        """UPerNet."""
        return UPerNetHead(encoder.dim, len(encoder.task.classes), self.width, self.dropout)


@torch.no_grad()
def linear_head(encoder: BenchEncoder, data: BenchDataset) -> LinearHead:
    """A linear layer for the embedding; class token and mean may differ in width."""
    pooling = encoder.spec.pooling
    width = pooled(encoder.embed(default_collate([data[0]])), pooling).shape[1]
    return LinearHead(width, len(encoder.task.classes), pooling)


def patch_head(encoder: BenchEncoder, data: BenchDataset) -> PatchHead:
    """A linear layer per patch, for masks of the size that the data's first sample has."""
    pixels, grid = data[0]["mask"].shape[-1], encoder.size / encoder.patch_size
    return PatchHead(encoder.dim, len(encoder.task.classes), math.ceil(pixels / grid))

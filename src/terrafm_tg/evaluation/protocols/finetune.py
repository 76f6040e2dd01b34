"""Heads trained on images: full fine-tuning by Galileo's protocol, and the paper's dense probing by UPerNet."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.utils.data import default_collate

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.tasks.finetune.head_task import HeadTask
from terrafm_tg.tasks.finetune.heads import Head, LinearHead, PatchHead, UPerNetHead, pooled
from terrafm_tg.tasks.finetune.metrics import Score

from .base import Context, Splits
from .sweep import Swept, Training, run_identity, sweep


@dataclass(frozen=True)
class FineTune(Swept):
    """Trains all of the encoder with a linear layer on its embedding, or on each patch for a class per pixel.

    Galileo's settings: AdamW with 9 learning rates, 5 of 50 epochs of warm-up, cosine, batch 256, gradients clipped to
    norm 1, turns and mirrorings; the best learning rate on the validation split counts. Other than there, of each
    learning rate the best epoch counts, not the last.

    Args:
        effective_batch: Samples per optimizer step.
        batch_size: Samples per forward, at most; a divisor of ``effective_batch``.
        clip: Norm that the gradients are scaled down to.
        decoder: For a class per pixel: "linear" per patch, or "upernet" on four blocks.
        width: Channels of UPerNet.
        augment: Of training samples: "none", "flips" or "turns".
        precision: Of Lightning's Trainer, such as "bf16-mixed" on a GPU.

    Raises:
        TerraFMError: If ``batch_size`` does not divide ``effective_batch``.
    """

    name: ClassVar[str] = "finetune"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel", "segmentation"})

    rates: tuple[float, ...] = (1e-5, 3e-5, 6e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 6e-3)
    effective_batch: int = 256
    batch_size: int = 32
    clip: float | None = 1.0
    decoder: Literal["linear", "upernet"] = "linear"
    width: int = 256
    augment: Literal["none", "flips", "turns"] = "turns"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.effective_batch % self.batch_size:
            raise TerraFMError(
                f"`batch_size` is {self.batch_size} and `effective_batch` {self.effective_batch}: gradients of "
                "whole batches are added up, so set a divisor."
            )

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains with each learning rate from the same start, and tests the best."""
        self.check(splits.train.task)
        encoder = load_encoder(spec, splits.train.task, splits.train)
        encoder.trainable()  # complains where there is nothing to train
        start = {name: value.clone() for name, value in encoder.state_dict().items()}

        def make(rate: float) -> HeadTask:
            encoder.load_state_dict(start)
            return HeadTask(
                encoder,
                self._head(encoder.eval(), splits.train),
                encoder.task,
                self.schedule(rate),
                train_encoder=True,
                augment=self.augment,
                seed=context.seed,
            )

        accumulate = self.effective_batch // self.batch_size
        training = Training(self.epochs, self.batch_size, accumulate, self.clip, self.precision)
        return sweep(self.rates, make, splits, training, context, run_identity(self, encoder, splits, context))

    def _head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        if encoder.task.kind != "segmentation":
            return linear_head(encoder, data)
        if self.decoder == "upernet":
            return UPerNetHead(encoder.dim, len(encoder.task.classes), self.width)
        return patch_head(encoder, data)


@dataclass(frozen=True)
class FrozenUPerNet(Swept):
    """UPerNet on the features of four blocks (1/3, 1/2, 2/3 and all of the depth: 4, 6, 8 and 12 of 12).

    The paper states the blocks and no more; the rest are common values. Of several learning rates the best on the
    validation split counts, and of each the best epoch.

    Args:
        batch_size: Samples per step.
        width: Channels of the decoder.
        dropout: Rate before its last layer.
        clip: Norm that the gradients are scaled down to.
        augment: Of training samples: "none", "flips" or "turns".
        precision: Of Lightning's Trainer, such as "bf16-mixed" on a GPU.
    """

    name: ClassVar[str] = "upernet"
    kinds: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    rates: tuple[float, ...] = (1e-3,)
    batch_size: int = 16
    width: int = 256
    dropout: float = 0.1
    clip: float | None = 1.0
    augment: Literal["none", "flips", "turns"] = "turns"
    precision: str = "32-true"

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains the decoder with each learning rate, and tests the best."""
        self.check(splits.train.task)
        encoder = load_encoder(spec, splits.train.task, splits.train)

        def make(rate: float) -> HeadTask:
            return HeadTask(
                encoder,
                UPerNetHead(encoder.dim, len(encoder.task.classes), self.width, self.dropout),
                encoder.task,
                self.schedule(rate),
                augment=self.augment,
                seed=context.seed,
            )

        training = Training(self.epochs, self.batch_size, clip=self.clip, precision=self.precision)
        return sweep(self.rates, make, splits, training, context, run_identity(self, encoder, splits, context))


@torch.no_grad()
def linear_head(encoder: BenchEncoder, data: BenchDataset, kind: type[LinearHead] = LinearHead) -> LinearHead:
    """A head ``kind(width, classes, pooling)`` for the embedding; class token and mean may differ in width."""
    pooling = encoder.spec.pooling
    width = pooled(encoder.embed(default_collate([data[0]])), pooling).shape[1]
    return kind(width, len(encoder.task.classes), pooling)


def patch_head(encoder: BenchEncoder, data: BenchDataset) -> PatchHead:
    """A linear layer per patch, for masks of the size that the data's first sample has."""
    pixels, grid = data[0]["mask"].shape[-1], encoder.size / encoder.patch_size
    return PatchHead(encoder.dim, len(encoder.task.classes), math.ceil(pixels / grid))

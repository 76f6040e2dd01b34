"""Galileo's probes: heads on frozen features, one per learning rate, all trained together on the same batches."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from terrafm_tg.datasets.bench import BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.tasks.finetune.head_task import loss_of
from terrafm_tg.tasks.finetune.heads import Head, LinearHead, PatchHead
from terrafm_tg.tasks.finetune.metrics import Metrics, NotFiniteError, Score
from terrafm_tg.tasks.finetune.optimization import warmup_cosine
from terrafm_tg.utils.progress import with_bar

from .base import Context, Splits
from .embedded import Labelled, embed_splits
from .patch_features import patch_features
from .sweep import CosineSweep, all_diverged, seeded

#: Datasets of GEO-Bench that Galileo cuts into tiles, pixels per side; and the size at which a model sees a tile.
TILES = {"m-cashew-plant": 64, "m-SA-crop-type": 64}
TILE_INPUT = 224


@dataclass(frozen=True)
class Probe(CosineSweep):
    """AdamW with 16 learning rates, 5 of 50 epochs of warm-up, cosine, batch 128.

    The features are computed once. All heads start alike and see the same batches; after the last epoch the best
    learning rate on the validation split counts, the lowest of equals.
    """

    rates: tuple[float, ...] = (
        1e-4, 3e-4, 5e-4, 8e-4, 1e-3, 3e-3, 5e-3, 8e-3, 1e-2, 3e-2, 5e-2, 8e-2, 0.1, 0.3, 0.5, 0.8,
    )  # fmt: skip
    min_lr: float = 1e-5
    batch_size: int = 128

    def order(self, n: int) -> Sequence[Tensor]:
        """The samples of an epoch, batch by batch."""
        return torch.randperm(n).split(self.batch_size)

    def fit(self, task: BenchTask, start: Head, train: Labelled, context: Context) -> dict[float, Head]:
        """One head per learning rate; without those that diverge.

        Raises:
            NotFiniteError: If all do.
        """
        steps = self.epochs * math.ceil(len(train.x) / self.batch_size)
        heads = {rate: copy.deepcopy(start).to(context.device).train() for rate in self.rates}
        how = {rate: self.optimize(task, rate, [*head.parameters()], steps) for rate, head in heads.items()}
        for _ in with_bar(range(self.epochs), f"Probing {task.name}", shown=context.progress):
            for chosen in self.order(len(train.x)):
                x, y = train.take(chosen, context.device)
                for rate, head in list(heads.items()):
                    optimizer, schedule = how[rate]
                    loss = loss_of(task, head.logits(x, y)[0], y)
                    if not loss.isfinite():
                        del heads[rate]
                        continue
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        if not heads:
            raise all_diverged(self.rates)
        return heads

    def count(self, task: BenchTask, head: Head, data: Labelled, context: Context) -> Metrics:
        """Counts a head's predictions.

        Raises:
            NotFiniteError: If a logit is not finite.
        """
        metrics = Metrics.of(task)
        for chosen in torch.arange(len(data.x)).split(self.batch_size):
            x, y = data.take(chosen, context.device)
            with torch.inference_mode():
                metrics.update(head.eval().logits(x, y)[0], y)
        return metrics

    def score(
        self, task: BenchTask, heads: dict[float, Head], val: Labelled, test: Labelled, context: Context, **noted: int
    ) -> list[Score]:
        """Scores the best learning rate on the test split.

        Raises:
            NotFiniteError: If no head gives finite numbers.
        """
        values: dict[float, float] = {}
        for rate, head in heads.items():
            with suppress(NotFiniteError):
                values[rate] = self.count(task, head, val, context).value()
        if not values:
            raise all_diverged(self.rates)
        best = max(values, key=lambda rate: values[rate])
        tried = {repr(rate): values.get(rate) for rate in self.rates}
        tested = self.count(task, heads[best], test, context)
        return tested.compute(lr=best, val=values[best], tried=tried, **noted)


@dataclass(frozen=True)
class LinearProbe(Probe):
    """Galileo's linear probe: BatchNorm1d and Linear on the embedding. Several runs are several seeds.

    ``batch_size`` is also that of the per-batch averages.
    """

    name: ClassVar[str] = "linear-probe"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel"})

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task = splits.train.task
        train, val, test = embed_splits(self, spec, splits, context, "train", "val", "test")
        if len(train.x) < 2:
            raise TerraFMError(
                f"A linear probe needs at least 2 train samples to norm them, got {len(train.x)}: take a larger "
                "fraction."
            )
        with seeded(context):
            dim = train.x.shape[1]
            start = LinearHead(dim, len(task.classes), norm=nn.BatchNorm1d(dim))
        with seeded(context):
            heads = self.fit(task, start, train, context)
        return self.score(task, heads, val, test, context)

    def order(self, n: int) -> Sequence[Tensor]:
        """The samples of an epoch, batch by batch; one alone cannot be normed, so batches are of equal size."""
        return torch.randperm(n).tensor_split(math.ceil(n / self.batch_size))

    def optimize(
        self, task: BenchTask, rate: float, parameters: list[nn.Parameter], steps: int
    ) -> tuple[Optimizer, LRScheduler]:
        """AdamW and a schedule that, as Galileo's, begins at 0 and ends one step before its end."""
        optimizer = AdamW(parameters, rate, weight_decay=self.weight_decay)
        warmup = int(self.epochs * self.warmup) * steps // self.epochs

        def factor(step: int) -> float:
            return step / warmup if step < warmup else warmup_cosine(step, steps + 1, rate, self.min_lr, warmup) / rate

        return optimizer, LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class SegmentationProbe(Probe):
    """Galileo's probe of pixels: a linear layer gives the logits of a patch's pixels, resized to the mask.

    Args:
        tile: Cut images into squares of so many pixels, which the model then sees at 224 px (a model's ``size``: 0 for
            as they are); 0 for whole images. None for Galileo's choice: 64 for m-cashew-plant and m-SA-crop-type.
        dtype: What features are kept in: "float16", or "float32" for models with large features.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    name: ClassVar[str] = "segmentation-probe"
    kinds: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    tile: int | None = None
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("float16", "float32"):
            raise TerraFMError(f"`dtype` is {self.dtype!r}: use float16 or float32.")
        if self.tile is not None and self.tile < 0:
            raise TerraFMError(f"`tile` is {self.tile}: use pixels, or 0 for whole images.")

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task = splits.train.task
        self.check(task)
        tile = TILES.get(task.name, 0) if self.tile is None else self.tile
        seen = dataclasses.replace(task, size=tile, input_size=TILE_INPUT) if tile else task
        encoder = load_encoder(spec, seen, splits.train)
        train, val, test = (patch_features(encoder, split, context, tile or None, self.dtype) for split in splits)
        with seeded(context):
            dim, rows = train.x.shape[1:3]
            start = PatchHead(dim, len(task.classes), math.ceil(train.y.shape[-2] / rows))
            heads = self.fit(task, start, train, context)
        return self.score(task, heads, val, test, context, tile=tile)

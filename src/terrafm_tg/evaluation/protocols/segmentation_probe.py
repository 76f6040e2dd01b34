"""Segmentation by one linear layer per patch on frozen features, by Galileo's protocol."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from rich.progress import track
from torch import Tensor

from terrafm_tg.datasets.bench import BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.tasks.finetune.head_task import loss_of
from terrafm_tg.tasks.finetune.heads import PatchHead, resized
from terrafm_tg.tasks.finetune.metrics import Metrics, Score

from .base import Context, Splits
from .patch_features import PatchFeatures, patch_features
from .sweep import Swept, all_diverged, seeded

#: Datasets of GEO-Bench that Galileo cuts into tiles, pixels per side; and the size at which a model sees a tile.
TILES = {"m-cashew-plant": 64, "m-SA-crop-type": 64}
TILE_INPUT = 224


@dataclass(frozen=True)
class SegmentationProbe(Swept):
    """A linear layer gives the logits of a patch's pixels; maps of another size than the mask are resized.

    Galileo's settings: AdamW with 16 learning rates, 5 of 50 epochs of warm-up, cosine, batch 128; after the last epoch
    the best learning rate on the validation split counts. The features are computed once, and all learning rates are
    trained together on the same batches.

    Args:
        batch_size: Samples per step.
        tile: Cut images into squares of so many pixels, which the model then sees at 224 px (a model's ``size``: 0 for
            as they are); 0 for whole images. None for Galileo's choice: 64 for m-cashew-plant and m-SA-crop-type.
        dtype: What features are kept in: "float16", or "float32" for models with large features.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    name: ClassVar[str] = "segmentation-probe"
    kinds: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    rates: tuple[float, ...] = (
        1e-4, 3e-4, 5e-4, 8e-4, 1e-3, 3e-3, 5e-3, 8e-3, 1e-2, 3e-2, 5e-2, 8e-2, 1e-1, 3e-1, 5e-1, 8e-1,
    )  # fmt: skip
    min_lr: float = 1e-5
    batch_size: int = 128
    tile: int | None = None
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("float16", "float32"):
            raise TerraFMError(f"`dtype` is {self.dtype!r}: use float16 or float32.")
        if self.tile is not None and self.tile < 0:
            raise TerraFMError(f"`tile` is {self.tile}: use pixels, or 0 for whole images.")

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains one layer per learning rate, and tests the best."""
        task = splits.train.task
        self.check(task)
        tile = TILES.get(task.name, 0) if self.tile is None else self.tile
        seen = dataclasses.replace(task, size=tile, input_size=TILE_INPUT) if tile else task
        encoder = load_encoder(spec, seen, splits.train)
        train, val, test = (
            patch_features(encoder, split, context, tile or None, getattr(torch, self.dtype)) for split in splits
        )
        with seeded(context):
            heads = self._trained(task, train, context)
        counts = self._counted(task, heads, val, context)
        values = {rate: found.value() for rate, found in counts.items()}
        winner = max(values, key=lambda rate: values[rate])  # the first of equals
        (tested,) = self._counted(task, {winner: heads[winner]}, test, context).values()
        tried = {repr(rate): values.get(rate) for rate in self.rates}
        return tested.compute(lr=winner, val=values[winner], tried=tried, tile=tile)

    def _trained(self, task: BenchTask, data: PatchFeatures, context: Context) -> dict[float, PatchHead]:
        """One layer per learning rate, from the same start; without those that diverge."""
        n, dim, rows, _ = data.features.shape
        start = PatchHead(dim, len(task.classes), math.ceil(data.mask.shape[-2] / rows)).to(context.device)
        steps = self.epochs * math.ceil(n / self.batch_size)
        heads = {rate: copy.deepcopy(start) for rate in self.rates}
        how = {rate: self.schedule(rate)([*head.parameters()], steps) for rate, head in heads.items()}
        title = f"Probing {task.name}"
        for _ in track(range(self.epochs), title, disable=not context.progress):
            for chosen in torch.randperm(n).split(self.batch_size):
                features, mask = _take(data, chosen, context)
                for rate, head in list(heads.items()):
                    optimizer, schedule = how[rate]
                    loss = loss_of(task, resized(head(features)[0], mask.shape[-2:], head.align_corners), mask)
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

    def _counted(
        self, task: BenchTask, heads: dict[float, PatchHead], data: PatchFeatures, context: Context
    ) -> dict[float, Metrics]:
        """Counts the predictions of each layer."""
        counts = {rate: Metrics.of(task) for rate in heads}
        for chosen in torch.arange(len(data.features)).split(self.batch_size):
            features, mask = _take(data, chosen, context)
            for rate, head in heads.items():
                with torch.inference_mode():
                    logits = resized(head(features)[0], mask.shape[-2:], head.align_corners)
                counts[rate].update(logits, mask)
        return counts


def _take(data: PatchFeatures, chosen: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Features (B, D, h, w) in float32 and classes int64 (B, H, W) of some samples."""
    return data.features[chosen].to(context.device).float(), data.mask[chosen].to(context.device).long()

"""Shared parts of the protocols on frozen embeddings: splits embedded once, labels checked, the test split scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from terrafm_tg.evaluation.encoders import load_encoder
from terrafm_tg.evaluation.encoders.embeddings import embeddings
from terrafm_tg.tasks.finetune.metrics import Metrics
from terrafm_tg.tasks.finetune.rates import check_target

from .base import Context, Protocol, Splits

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchTask
    from terrafm_tg.evaluation.encoders import ModelSpec


class Labelled(NamedTuple):
    """Features and labels of one split.

    Args:
        x: Embeddings float32 (n, D), or maps (n, D, h, w) in float16 or float32.
        y: Classes (n,), zeros and ones (n, L), or masks (n, H, W).
    """

    x: Tensor
    y: Tensor

    def take(self, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Features in float32 and labels in int64 of some samples, on a device."""
        return self.x[chosen].to(device).float(), self.y[chosen].to(device).long()


def embed_splits(protocol: Protocol, spec: ModelSpec, splits: Splits, context: Context, *names: str) -> list[Labelled]:
    """The splits of those names as the frozen model sees them, on the context's device.

    Raises:
        UnsupportedTaskError: If the protocol does not take such a task, or the model cannot read it.
        TerraFMError: If a label is no class, or a file is damaged.
    """
    task = splits.train.task
    protocol.check(task)
    encoder = load_encoder(spec, task, splits.train)
    parts = []
    for name in names:
        data = getattr(splits, name)
        embedded = embeddings(
            encoder,
            data,
            cache=context.cache,
            batch_size=context.batch_size,
            num_workers=context.num_workers,
            device=context.device,
            progress=context.progress,
        )
        check_target(embedded.target, task.kind, len(task.classes), task.ignore_index)
        data.warn_of_empty_classes(embedded.target)
        x = embedded.pooled(spec.pooling)
        parts.append(Labelled(x.to(context.device), embedded.target.to(context.device)))
    return parts


def counted(task: BenchTask, logits: Tensor, target: Tensor) -> Metrics:
    """Counts of a split, with means over batches of 64; logits above 0 are a label."""
    metrics = Metrics.of(task)
    for part, true in zip(logits.split(64), target.split(64), strict=True):
        metrics.update(part.cpu(), true.cpu())
    return metrics

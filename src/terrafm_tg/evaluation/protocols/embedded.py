"""Shared parts of the protocols on frozen embeddings: splits embedded once, labels checked, the test split scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import load_encoder
from terrafm_tg.evaluation.encoders.embeddings import embeddings
from terrafm_tg.tasks.finetune.metrics import Metrics, Score
from terrafm_tg.tasks.finetune.rates import check_target

from .base import Context, Protocol, Splits

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchTask
    from terrafm_tg.evaluation.encoders import ModelSpec


class Labelled(NamedTuple):
    """Embeddings of one split.

    Args:
        x: Float32 (n, D).
        y: Classes int64 (n,), or zeros and ones (n, L).
    """

    x: Tensor
    y: Tensor


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


def score_test(task: BenchTask, logits: Tensor, target: Tensor, batch: int, **settings: Any) -> list[Score]:
    """Returns all scores of the test split, with means over batches of so many; logits above 0 are a label."""
    metrics = Metrics.of(task)
    for part, true in zip(logits.cpu().split(batch), target.cpu().split(batch), strict=True):
        metrics.update(part, true)
    return metrics.compute(**settings)


def headline(task: BenchTask, logits: Tensor, target: Tensor) -> float:
    """Returns the task's own metric, by which settings are chosen on the validation split."""
    metrics = Metrics.of(task)
    metrics.update(logits.cpu(), target.cpu())
    return metrics.value()


def check_positive(protocol: str, **settings: float) -> None:
    """Stops at a setting that is not above 0.

    Raises:
        TerraFMError: Naming it.
    """
    for name, value in settings.items():
        if not value > 0:
            raise TerraFMError(f"`{name}` of the protocol {protocol} is {value}: give a number above 0.")


def to_labels(target: Tensor, kind: str, classes: int) -> Tensor:
    """Zeros and ones (n, L) of classes (n,), or of several labels as they are."""
    return target if kind == "multilabel" else torch.nn.functional.one_hot(target, classes)

"""Scores of a test set by torchmetrics: over all of it at once, and as the mean of its batches' own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .metric_values import Value, of_classes, of_labels, of_ranks
from .protocols.base import Score

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchTask

#: The two ways to average, as ``Score.average`` names them.
TRUE, PER_BATCH = "true", "per-batch"


class NotFiniteError(TerraFMError):
    """Something computed is NaN or infinite; a sweep goes on with the next learning rate."""


def check_target(target: Tensor, kind: str, num_classes: int, ignore_index: int | None) -> None:
    """Stop at a label that is no class.

    Args:
        target: Classes; or zeros and ones of several labels.
        kind: "multiclass", "multilabel" or "segmentation".
        num_classes: Number of classes.
        ignore_index: Target that does not count.

    Raises:
        TerraFMError: Naming the value.
    """
    counted = target if ignore_index is None else target[target != ignore_index]
    if not counted.numel():
        return
    most = 1 if kind == "multilabel" else num_classes - 1
    smallest, largest = (int(x) for x in counted.aminmax())
    if smallest < 0 or largest > most:
        wrong = smallest if smallest < 0 else largest
        raise TerraFMError(
            f"A target has the value {wrong}, expected 0 to {most}: correct the labels, "
            "or set `ignore_index` to the value of what does not count."
        )


class Metrics:
    """Counts batch by batch; of segmentation it keeps a confusion matrix, never the pixels.

    Classes that occur neither in the target nor in the prediction are left out of every mean over classes (as
    torchmetrics does; scikit-learn does so where it is not given ``labels``), and have the score NaN. ``per-batch`` is
    the mean over batches, weighted by their samples, which is what Lightning logs of a value that is computed in every
    step, and so what Copernicus-Bench reports; of such a mean the batch size is a part.

    Gives ``accuracy`` (or ``oa``; of pixels in segmentation), ``balanced-accuracy`` (mean over the classes in the
    target) and ``macro-f1``; for segmentation also ``miou``, ``miou-present`` (over the classes in the target alone),
    and of two classes ``iou_<second>``; for several labels ``f1`` and ``map`` (micro) and ``macro-f1`` and
    ``macro-map``. The micro-F1 of one class per sample is its accuracy.

    Args:
        kind: "multiclass", "multilabel" or "segmentation".
        num_classes: Number of classes or labels.
        ignore_index: Target that does not count.
        headline: Which metric is to be put beside the published one.
        classes: Their names.

    Raises:
        TerraFMError: If the headline is no metric of this kind.
    """

    def __init__(
        self,
        kind: str,
        num_classes: int,
        ignore_index: int | None = None,
        headline: str | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.kind, self.num_classes, self.ignore_index = kind, num_classes, ignore_index
        self.headline, self.classes = headline, tuple(classes)
        shape = (num_classes, 2, 2) if kind == "multilabel" else (num_classes, num_classes)
        self.confusion = torch.zeros(shape, dtype=torch.long)
        self.ranked: list[tuple[Tensor, Tensor]] = []
        self.batches: list[tuple[int, dict[str, Value]]] = []
        names = list(self._values(self.confusion, self.ranked)) + (["map"] if kind == "multilabel" else [])
        if headline is not None and headline not in names:
            raise TerraFMError(f"The metric {headline!r} is none of {kind}: use one of {', '.join(names)}.")

    @classmethod
    def of(cls, task: BenchTask) -> Metrics:
        """The metrics of a benchmark's task."""
        return cls(task.kind, len(task.classes), task.ignore_index, task.metric, task.classes)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one batch.

        Args:
            prediction: Logits (B, C, ...), of which the largest is the class; of several labels those above 0 are
                there (so of probabilities give what exceeds 0.5). Or whole numbers of the target's shape: classes, or
                zeros and ones, which have no ``map``.
            target: Classes (B,) or (B, H, W); zeros and ones (B, L).

        Raises:
            NotFiniteError: If a logit is NaN or infinite.
        TerraFMError: If the shapes or classes are not the task's.
        """
        prediction, target = self._checked(prediction.detach(), target)
        ranked: list[tuple[Tensor, Tensor]] = []
        if self.kind == "multilabel":
            if prediction.is_floating_point():
                # Any increasing function gives the same average precision; this one does not saturate as a sigmoid.
                x = prediction.double().cpu()
                ranked = [((1 + x / (1 + x.abs())) / 2, target.cpu())]
                prediction = (prediction > 0).long()
        elif prediction.is_floating_point():
            prediction = prediction.argmax(1)
        counts = self._count(prediction, target)
        self.confusion += counts
        self.ranked += ranked
        if counts.any():  # a batch of ignored pixels alone has no score
            self.batches.append((len(target), self._values(counts, ranked)))

    def compute(self, per_batch: bool = True, **settings: Any) -> list[Score]:
        """All scores of what was counted, in percent.

        Args:
            per_batch: Whether to give the means over batches, too.
            **settings: What to note in each score, such as the learning rate.

        Raises:
            TerraFMError: If nothing was, or not what the headline needs.
        """
        if not self.batches:
            raise TerraFMError("No sample has a class that counts: give a split with labels.")
        values = self._values(self.confusion, self.ranked)
        if self.headline is not None and self.headline not in values:
            raise TerraFMError(
                f"There is no {self.headline!r}: it needs scores, not labels, and one positive label at least."
            )
        table = None if self.kind == "multilabel" else self.confusion.tolist()
        found = [
            Score(
                name,
                100 * overall,
                TRUE,
                name == self.headline,
                None if classes is None else tuple((100 * classes).tolist()),
                table if name in ("accuracy", "oa", "miou") else None,
                settings,
            )
            for name, (overall, classes) in values.items()
        ]
        return found + [
            Score(name, 100 * self._mean(name), PER_BATCH, settings=settings) for name in values if per_batch
        ]

    def value(self) -> float:
        """The headline over all samples, in percent: what settings are chosen by."""
        return next(score.score for score in self.compute(per_batch=False) if score.headline)

    def _mean(self, name: str) -> float:
        """The mean over the batches that have this metric, weighted by their samples."""
        parts = [(n, values[name].overall) for n, values in self.batches if name in values]
        weight, value = torch.tensor(parts, dtype=torch.float64).T
        known = ~value.isnan()
        return float((weight * value)[known].sum() / weight[known].sum())

    def _checked(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        shape = tuple(prediction.shape)
        if prediction.is_floating_point():
            if not prediction.isfinite().all():
                wrong = int((~prediction.isfinite()).sum())
                raise NotFiniteError(
                    f"{wrong} of {prediction.numel()} logits are NaN or infinite: lower the learning rate, or look for "
                    "values in the images that are not finite."
                )
            if self.kind != "multilabel" and prediction.ndim > 1:
                shape = (shape[0], *shape[2:]) if shape[1] == self.num_classes else shape
        if shape != tuple(target.shape):
            raise TerraFMError(
                f"The predictions have the shape {tuple(prediction.shape)} and the targets {tuple(target.shape)}: for "
                f"{self.num_classes} classes give logits or classes that fit the targets."
            )
        check_target(target, self.kind, self.num_classes, self.ignore_index)
        return prediction, target.long()

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The confusion matrix of a batch, (C, C) with the true class first; (L, 2, 2) of several labels."""
        from torchmetrics.functional import classification as functional

        if self.kind == "multilabel":
            count = functional.multilabel_confusion_matrix(
                prediction, target, self.num_classes, validate_args=False
            )
        else:
            known = torch.ones_like(target, dtype=torch.bool)
            known = known if self.ignore_index is None else target != self.ignore_index
            count = functional.multiclass_confusion_matrix(
                prediction[known], target[known], self.num_classes, validate_args=False
            )
        return count.long().cpu()

    def _values(self, confusion: Tensor, ranked: list[tuple[Tensor, Tensor]]) -> dict[str, Value]:
        if self.kind == "multilabel":
            return of_labels(confusion) | of_ranks(ranked, self.num_classes)
        accuracy = "oa" if self.headline == "oa" else "accuracy"
        values = of_classes(confusion, self.ignore_index, accuracy, self.kind == "segmentation")
        if self.kind == "segmentation" and len(self.classes) == 2 and values["miou"].per_class is not None:
            values[f"iou_{self.classes[1]}"] = Value(float(values["miou"].per_class[1]))
        return values


def scores(
    kind: str,
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int | None = None,
    batch: int | None = None,
    headline: str | None = None,
    classes: Sequence[str] = (),
    **settings: Any,
) -> list[Score]:
    """All scores of a whole test set's predictions; see :class:`Metrics`.

    Args:
        kind: "multiclass", "multilabel" or "segmentation".
        prediction: Logits, classes, or zeros and ones.
        target: What is right.
        num_classes: Number of classes or labels.
        ignore_index: Target that does not count.
        batch: Samples per batch of the ``per-batch`` means; only true averages where None.
        headline: Which metric is to be put beside the published one.
        classes: Their names.
        **settings: What to note in each score.

    Raises:
        NotFiniteError: If a logit is NaN or infinite.
        TerraFMError: If the shapes or classes are not the task's.
    """
    metrics = Metrics(kind, num_classes, ignore_index, headline, classes)
    size = batch or max(len(target), 1)
    for part, true in zip(prediction.split(size), target.split(size), strict=True):
        metrics.update(part, true)
    return metrics.compute(batch is not None, **settings)

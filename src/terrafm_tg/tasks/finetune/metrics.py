"""Scores of classes, pixels and labels: of a benchmark's test set, and of the epochs of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from terrafm_tg.errors import TerraFMError

from .rates import Value, average_precision, check_target, confusion_of, rank, rates

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchTask

#: The two ways to average, as ``Score.average`` names them.
TRUE, PER_BATCH = "true", "per-batch"


class NotFiniteError(TerraFMError):
    """Something computed is NaN or infinite; a sweep continues with the next learning rate."""


class Score(NamedTuple):
    """One number of one run.

    Args:
        metric: Its name: "accuracy", "balanced-accuracy", "f1" (micro), "macro-f1", "map" (micro), "macro-map",
            "oa", "miou".
        score: In percent, 0 to 100.
        average: "true" over all samples or pixels at once; "per-batch" as the mean of the batches' own values.
        headline: Whether this is the number to put beside the published one.
        per_class: The metric of each class, in percent, NaN for a class that does not occur; where it has them.
        confusion: Counts, ``confusion[true][predicted]``, where the metric has them.
        settings: What the protocol chose on the way (learning rate, C) and from what.
    """

    metric: str
    score: float
    average: str = "true"
    headline: bool = False
    per_class: tuple[float, ...] | None = None
    confusion: list[list[int]] | None = None
    settings: Mapping[str, Any] = {}


class Metrics:
    """Counts batch by batch; of segmentation it keeps a confusion matrix, never the pixels.

    ``per-batch`` is the mean over batches, weighted by their samples, which is what Lightning logs of a value that is
    computed in every step, and so what Copernicus-Bench reports; of such a mean the batch size is a part.

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
        average: Which average of it, ``TRUE`` or ``PER_BATCH``.

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
        average: str = TRUE,
    ) -> None:
        self.kind, self.num_classes, self.ignore_index = kind, num_classes, ignore_index
        self.headline, self.classes, self.average = headline, tuple(classes), average
        shape = (num_classes, 2, 2) if kind == "multilabel" else (num_classes, num_classes)
        self.confusion = torch.zeros(shape, dtype=torch.long)
        self.ranked: list[tuple[Tensor, Tensor]] = []
        self.batches: list[tuple[int, dict[str, Value]]] = []
        names = list(self._values(self.confusion, self.ranked)) + (["map"] if kind == "multilabel" else [])
        if headline is not None and headline not in names:
            raise TerraFMError(f"The metric {headline!r} is none of {kind}: use one of {', '.join(names)}.")

    @classmethod
    def of(cls, task: BenchTask, average: str = TRUE) -> Metrics:
        """The metrics of a benchmark's task."""
        return cls(task.kind, len(task.classes), task.ignore_index, task.metric, task.classes, average)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Counts one batch.

        Args:
            logits: (B, C, ...), of which the largest is the class; of several labels those above 0 are there (so of
                probabilities give what exceeds 0.5).
            target: Classes (B,) or (B, H, W); zeros and ones (B, L).

        Raises:
            NotFiniteError: If a logit is NaN or infinite.
            TerraFMError: If the shapes or classes are not the task's.
        """
        logits = logits.detach()
        if not logits.isfinite().all():
            wrong = int((~logits.isfinite()).sum())
            raise NotFiniteError(
                f"{wrong} of {logits.numel()} logits are NaN or infinite: lower the learning rate, or look for values "
                "in the images that are not finite."
            )
        several = self.kind == "multilabel"
        expected = (len(target), self.num_classes, *target.shape[2 if several else 1 :])
        if tuple(logits.shape) != expected:
            raise TerraFMError(
                f"The predictions have the shape {tuple(logits.shape)} and the targets {tuple(target.shape)}: for "
                f"{self.num_classes} classes give logits that fit the targets."
            )
        check_target(target, self.kind, self.num_classes, self.ignore_index)
        target = target.long()
        ranked = [(rank(logits).cpu(), target.cpu())] if several else []
        counts = confusion_of(self.kind, logits, target, self.num_classes, self.ignore_index).cpu()
        self.confusion += counts
        self.ranked += ranked
        if counts.any():  # a batch of ignored pixels alone has no score
            self.batches.append((len(target), self._values(counts, ranked)))

    def compute(self, **settings: Any) -> list[Score]:
        """All scores of what was counted, in percent: true averages, then means over batches.

        Args:
            **settings: What to note in each score, such as the learning rate.

        Raises:
            TerraFMError: If nothing was, or not what the headline needs.
        """
        if not self.batches:
            raise TerraFMError("No sample has a class that counts: give a split with labels.")
        values = self._values(self.confusion, self.ranked)
        if self.headline is not None and self.headline not in values:
            raise TerraFMError(f"There is no {self.headline!r}: it needs one positive label at least.")
        table = None if self.kind == "multilabel" else self.confusion.tolist()
        found = []
        for name, (overall, classes) in values.items():
            per_class = tuple((100 * classes).tolist()) or None
            counts = table if name in ("accuracy", "oa", "miou") else None
            found.append(Score(name, 100 * overall, TRUE, False, per_class, counts, settings))
        found += [Score(name, 100 * self._mean(name), PER_BATCH, settings=settings) for name in values]
        return [s._replace(headline=(s.metric, s.average) == (self.headline, self.average)) for s in found]

    def value(self) -> float:
        """The headline over all samples, in percent: what settings are chosen by."""
        return next(score.score for score in self.compute() if score.headline)

    def _mean(self, name: str) -> float:
        """The mean over the batches that have this metric, weighted by their samples."""
        parts = [(n, values[name].overall) for n, values in self.batches if name in values]
        weight, value = torch.tensor(parts, dtype=torch.float64).T
        known = ~value.isnan()
        return float((weight * value)[known].sum() / weight[known].sum())

    def _values(self, confusion: Tensor, ranked: list[tuple[Tensor, Tensor]]) -> dict[str, Value]:
        found = rates(confusion, self.ignore_index)
        macro = {name: Value(value.mean, value.per_class) for name, value in found.items()}
        if self.kind == "multilabel":
            values = {"f1": found["f1"], "macro-f1": macro["f1"]}
            if precision := average_precision(ranked, self.num_classes, self.ignore_index):
                values |= {"map": precision, "macro-map": Value(precision.mean, precision.per_class)}
            return values
        values = {
            "oa" if self.headline == "oa" else "accuracy": found["accuracy"],
            "balanced-accuracy": macro["recall"],
            "macro-f1": macro["f1"],
        }
        if self.kind == "segmentation":
            iou = found["iou"].per_class
            values |= {"miou": macro["iou"], "miou-present": Value(float(iou[confusion.sum(1) > 0].mean()))}
            if len(self.classes) == 2:
                values[f"iou_{self.classes[1]}"] = Value(float(iou[1]))
        return values


#: TorchGeo's names of the rates.
_TORCHGEO = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1Score",
    "iou": "JaccardIndex",
}


class EpochScores(Metric):
    """TorchGeo's metrics of an epoch by the rules of :mod:`.rates`, all from one confusion matrix.

    Accuracy, Precision, Recall, F1Score and JaccardIndex: ``Overall`` (micro), ``Average`` (macro) and, unless binary,
    ``Classwise<metric>_<class>``; with ``ranks`` also ``OverallAveragePrecision`` and ``AverageAveragePrecision``.

    Args:
        task: ``binary``, ``multiclass`` or ``multilabel``.
        num_classes: Number of classes or labels; 1 for ``binary``.
        ignore_index: Target that does not count.
        labels: Names of the classes; their numbers where None.
        prefix: What each name begins with.
        ranks: Whether to keep the scores of ``multilabel`` for the average precision.
    """

    full_state_update = False
    confusion: Tensor
    logits: list[Tensor]
    target: list[Tensor]

    def __init__(
        self,
        task: str,
        num_classes: int,
        ignore_index: int | None = None,
        labels: Sequence[str] | None = None,
        prefix: str = "",
        ranks: bool = False,
    ) -> None:
        super().__init__()
        self.task, self.num_classes, self.ignore_index = task, num_classes, ignore_index
        self.names = [str(i) for i in range(num_classes)] if labels is None else list(labels)
        self.prefix, self.ranks = prefix, ranks
        shape = (num_classes, num_classes) if task == "multiclass" else (num_classes, 2, 2)
        self.add_state("confusion", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        if ranks:
            self.add_state("logits", [], dist_reduce_fx="cat")
            self.add_state("target", [], dist_reduce_fx="cat")

    def forward(self, logits: Tensor, target: Tensor) -> None:
        """Counts a batch; nothing is computed of it alone."""
        self.update(logits, target)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (B, C, ...); of ``binary`` of the target's shape.
            target: Classes (B, ...), or zeros and ones of the logits' shape.
        """
        logits, target = logits.detach(), target.long()
        if self.task == "binary":
            logits, target = logits.reshape(-1, 1), target.reshape(-1, 1)
        kind = "multiclass" if self.task == "multiclass" else "multilabel"
        counts = confusion_of(kind, logits, target, self.num_classes, self.ignore_index)
        self.confusion = self.confusion + counts  # out of place: a test run leaves inference tensors
        if self.ranks:
            self.logits.append(logits.float())
            self.target.append(target)

    def compute(self) -> dict[str, Tensor]:
        """The metrics as shares of 1 by name; none where nothing counted."""
        count = self.confusion.cpu()
        if not count.any():
            return {}
        values = {
            _TORCHGEO[name]: value for name, value in rates(count, self.ignore_index).items() if name in _TORCHGEO
        }
        found: dict[str, float] = {}
        if self.ranks:
            # Lists here, tensors once they are gathered from other ranks
            logits, target = (torch.cat([*x]) if isinstance(x, list) else x for x in (self.logits, self.target))
            ranked = [(rank(logits.cpu()), target.cpu())]
            if precision := average_precision(ranked, self.num_classes, self.ignore_index):
                found = {"OverallAveragePrecision": precision.overall, "AverageAveragePrecision": precision.mean}
        for name, value in values.items():
            found |= {f"Overall{name}": value.overall, f"Average{name}": value.mean}
            if self.task != "binary":
                each = zip(self.names, value.per_class, strict=True)
                found |= {f"Classwise{name}_{label}": float(share) for label, share in each}
        return {f"{self.prefix}{name}": torch.tensor(value) for name, value in found.items()}

"""Rules by which classes, pixels and labels are scored, for fine-tuning, validation and benchmarks alike.

What is ignored is in no count. A class that occurs neither in the target nor in the prediction has the score NaN and is
left out of every mean over classes, as in torchmetrics and scikit-learn; a recall, and so the balanced accuracy, is of
the classes in the target alone. A class that is itself ignored (``ignore_index: 0``) has no score of its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError


class Value(NamedTuple):
    """One metric as shares of 1: of everything, and of each class; empty where it is not made of those."""

    overall: float
    per_class: Tensor = torch.empty(0)

    @property
    def mean(self) -> float:
        """The mean over the classes that have a score."""
        return float(self.per_class.nanmean())


def rates(confusion: Tensor, ignore_index: int | None = None) -> dict[str, Value]:
    """Accuracy, recall, precision, F1 and IoU of all together and of each class or label; NaN over nothing.

    The precision of a class that is in the target and never predicted is 0. The accuracy of a class is its recall, that
    of a label the share of right answers, yes or no.

    Args:
        confusion: (C, C), ``confusion[true][predicted]``, without what is ignored; or one of each label, (L, 2, 2).
        ignore_index: Class that has no score of its own.
    """
    count = confusion.double()
    if count.ndim == 3:
        right, true, predicted = count[:, 1, 1], count[:, 1].sum(1), count[:, :, 1].sum(1)
        agreed = right + count[:, 0, 0]
        accuracy = agreed / count.sum((1, 2)), agreed.sum() / count.sum()
    else:
        right, true, predicted = count.diagonal(), count.sum(1), count.sum(0)
        if ignore_index is not None and 0 <= ignore_index < len(count):
            predicted[ignore_index] = 0
        accuracy = right / true, right.sum() / true.sum()
    each = _shares(right, true, predicted) | {"accuracy": accuracy[0]}
    together = _shares(right.sum(), true.sum(), predicted.sum()) | {"accuracy": accuracy[1]}
    if count.ndim == 2:  # of one answer per sample they are the same
        together |= {"precision": accuracy[1], "f1": accuracy[1]}
    return {name: Value(float(together[name]), share) for name, share in each.items()}


def _shares(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    nothing_found = (predicted == 0) & (true > 0)
    return {
        "recall": right / true,
        "precision": torch.where(nothing_found, 0.0, right / predicted),
        "f1": 2 * right / (true + predicted),
        "iou": right / (true + predicted - right),
    }


def average_precision(
    ranked: Sequence[tuple[Tensor, Tensor]], labels: int, ignore_index: int | None = None
) -> Value | None:
    """Average precision: micro, and of each label with a positive; None without scores or without a positive.

    Args:
        ranked: Scores (n, L) between 0 and 1, and zeros and ones (n, L), batch by batch.
        labels: Their number L.
        ignore_index: Target that does not count.
    """
    from torchmetrics.functional.classification import multilabel_average_precision as precision

    if not ranked:
        return None
    score, target = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    some = (target == 1).any(0)
    if not some.any():
        return None
    how: Any = {"ignore_index": ignore_index, "validate_args": False}
    each = torch.full((labels,), torch.nan, dtype=torch.float64)
    each[some] = precision(score[:, some], target[:, some], int(some.sum()), average="none", **how).double()
    return Value(float(precision(score, target, labels, average="micro", **how)), each)


def rank(logits: Tensor) -> Tensor:
    """Logits as float64 scores between 0 and 1, which keep their order where a sigmoid would saturate."""
    x = logits.double()
    return (1 + x / (1 + x.abs())) / 2


def confusion_of(kind: str, logits: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """The confusion matrix of a batch, int64: (C, C) with the true class first; (L, 2, 2) of several labels.

    Args:
        kind: ``multilabel``, where logits above 0 are there, or else one class per sample or pixel, the largest.
        logits: (B, C, ...).
        target: Classes (B, ...), or zeros and ones (B, L, ...).
        num_classes: Number of classes or labels.
        ignore_index: Target that does not count.
    """
    from torchmetrics.functional import classification as functional

    if kind == "multilabel":
        found = (logits > 0).long()
        return functional.multilabel_confusion_matrix(
            found, target, num_classes, ignore_index=ignore_index, validate_args=False
        ).long()
    known = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    return functional.multiclass_confusion_matrix(
        logits.argmax(1)[known], target[known], num_classes, validate_args=False
    ).long()


def check_target(target: Tensor, kind: str, num_classes: int, ignore_index: int | None, key: str = "target") -> None:
    """Stops at a label that is no class.

    Args:
        target: Classes; or zeros and ones of several labels.
        kind: "multilabel", or else one class per sample or pixel.
        num_classes: Number of classes.
        ignore_index: Target that does not count.
        key: What to call it.

    Raises:
        TerraFMError: Naming the value.
    """
    counted = target if ignore_index is None else target[target != ignore_index]
    if not counted.numel():
        return
    most = 1 if kind == "multilabel" else num_classes - 1
    smallest, largest = (int(x) for x in counted.aminmax())
    if smallest < 0 or largest > most:
        raise TerraFMError(
            f"A {key} has the value {smallest if smallest < 0 else largest}, expected 0 to {most}: correct the labels "
            "or the number of classes, or set `ignore_index` to the value of what does not count."
        )

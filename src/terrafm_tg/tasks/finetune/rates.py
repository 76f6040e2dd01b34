"""Rules by which classes, pixels and labels are scored, for fine-tuning, validation and benchmarks alike.

What is ignored is in no count. A class that occurs neither in the target nor in the prediction has the score NaN and is
left out of every mean over classes, as in torchmetrics and scikit-learn; a recall, and so the balanced accuracy, is of
the classes in the target alone. A class that is itself ignored (``ignore_index: 0``) has no score of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError


class Value(NamedTuple):
    """One metric as shares of 1: of everything, and of each class where it is made of those."""

    overall: float
    per_class: Tensor | None = None


class Rates(NamedTuple):
    """Shares of each class or label, float64 (C,), and of all together; NaN where there is nothing to divide by.

    Args:
        recall: Of what is true, of classes in the target.
        precision: Of what is predicted; 0 for a class in the target that is never predicted.
        f1: Their harmonic mean.
        iou: Intersection over union.
        accuracy: Of classes their recall; of labels the share of right answers, yes or no.
        overall: The same over all classes at once, by name.
    """

    recall: Tensor
    precision: Tensor
    f1: Tensor
    iou: Tensor
    accuracy: Tensor
    overall: dict[str, float]


def class_rates(confusion: Tensor, ignore_index: int | None = None) -> Rates:
    """Rates of a confusion matrix (C, C), ``confusion[true][predicted]``, without what is ignored."""
    count = confusion.double()
    right, true, predicted = count.diagonal(), count.sum(1), count.sum(0)
    if ignore_index is not None and 0 <= ignore_index < len(count):
        predicted = predicted.clone()
        predicted[ignore_index] = 0  # a class that does not count has no score of its own
    recall, union = right / true, true + predicted - right
    share = float(right.sum() / count.sum())  # of one answer per sample, micro precision, recall and F1 are the same
    overall = dict.fromkeys(("accuracy", "recall", "precision", "f1"), share)
    overall["iou"] = float(right.sum() / union.sum())
    return Rates(
        recall, _precision(right, true, predicted), 2 * right / (true + predicted), right / union, recall, overall
    )


def label_rates(confusion: Tensor) -> Rates:
    """Rates of the positives of labels, of one confusion matrix per label, (L, 2, 2)."""
    each, together = _yes_or_no(confusion.double()), _yes_or_no(confusion.double().sum(0, keepdim=True))
    return Rates(*each, {name: float(value) for name, value in zip(Rates._fields, together, strict=False)})


def _yes_or_no(count: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Recall, precision, F1, IoU and accuracy, (L,) each."""
    right, true, predicted = count[:, 1, 1], count[:, 1].sum(1), count[:, :, 1].sum(1)
    wrong = count[:, 0, 1] + count[:, 1, 0]
    accuracy = (count[:, 0, 0] + right) / count.sum((1, 2))
    f1, iou = 2 * right / (2 * right + wrong), right / (right + wrong)
    return right / true, _precision(right, true, predicted), f1, iou, accuracy


def _precision(right: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    """Share of what is predicted that is right; 0 where something is true and nothing predicted."""
    return torch.where((predicted == 0) & (true > 0), 0.0, right / predicted)


def average_precision(
    ranked: Sequence[tuple[Tensor, Tensor]], labels: int, ignore_index: int | None = None
) -> Value | None:
    """Average precision: micro, and of each label with a positive; None without scores or without a positive.

    Args:
        ranked: Scores (n, L) between 0 and 1, and zeros and ones (n, L), batch by batch.
        labels: Their number L.
        ignore_index: Target that does not count.
    """
    from torchmetrics.functional.classification import binary_average_precision

    if not ranked:
        return None
    score, target = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    known = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    found = torch.full((labels,), torch.nan, dtype=torch.float64)
    for label in (target == 1).logical_and(known).any(0).nonzero()[:, 0].tolist():
        some = known[:, label]
        found[label] = binary_average_precision(score[some, label], target[some, label], validate_args=False)
    if found.isnan().all():
        return None
    return Value(float(binary_average_precision(score[known], target[known], validate_args=False)), found)


def rank(logits: Tensor) -> Tensor:
    """Logits as float64 scores between 0 and 1, which keep their order where a sigmoid would saturate."""
    x = logits.double()
    return (1 + x / (1 + x.abs())) / 2


def confusion_of(kind: str, prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """The confusion matrix of a batch, int64: (C, C) with the true class first; (L, 2, 2) of several labels.

    Args:
        kind: ``multilabel``, or else one class per sample or pixel.
        prediction: Whole numbers of the target's shape: classes, or zeros and ones.
        target: Classes (B, ...), or zeros and ones (B, L, ...).
        num_classes: Number of classes or labels.
        ignore_index: Target that does not count.
    """
    from torchmetrics.functional import classification as functional

    if kind == "multilabel":
        count = functional.multilabel_confusion_matrix(
            prediction, target, num_classes, ignore_index=ignore_index, validate_args=False
        )
        return count.long()
    known = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    return functional.multiclass_confusion_matrix(
        prediction[known], target[known], num_classes, validate_args=False
    ).long()


def check_target(target: Tensor, kind: str, num_classes: int, ignore_index: int | None, key: str | None = None) -> None:
    """Stops at a label that is no class.

    Args:
        target: Classes; or zeros and ones of several labels.
        kind: "multiclass", "multilabel" or "segmentation".
        num_classes: Number of classes.
        ignore_index: Target that does not count.
        key: Key of a user's batch, for a sentence that names the task's settings.

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
        if key is not None and kind != "multilabel":
            raise TerraFMError(
                f"The batch's {key} holds the class {wrong}, but `num_classes: {num_classes}` are 0 to {most}: set "
                "`num_classes`, or `ignore_index` for a value that means no class."
            )
        raise TerraFMError(
            f"A target has the value {wrong}, expected 0 to {most}: correct the labels, "
            "or set `ignore_index` to the value of what does not count."
        )

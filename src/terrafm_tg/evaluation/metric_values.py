"""Metrics as functions of what was counted: confusion matrices, and ranks of scores."""

from typing import NamedTuple

import torch
from torch import Tensor


class Value(NamedTuple):
    """One metric as shares of 1: of everything, and of each class where it is made of those."""

    overall: float
    per_class: Tensor | None = None


def of_classes(
    confusion: Tensor, ignore_index: int | None, accuracy: str, segmentation: bool
) -> dict[str, Value]:
    """Metrics of a confusion matrix (C, C)."""
    count = confusion.double()
    right, true, predicted = count.diagonal(), count.sum(1), count.sum(0)
    if ignore_index is not None and 0 <= ignore_index < len(count):
        predicted = predicted.clone()
        predicted[ignore_index] = 0  # a class that does not count has no score of its own
    recall, f1, iou = right / true, 2 * right / (true + predicted), right / (true + predicted - right)
    values = {
        accuracy: Value(float(right.sum() / count.sum()), recall),
        "balanced-accuracy": Value(float(recall.nanmean()), recall),
        "macro-f1": Value(float(f1.nanmean()), f1),
    }
    if segmentation:
        values["miou"] = Value(float(iou.nanmean()), iou)
        values["miou-present"] = Value(float(iou[true > 0].mean()))
    return values


def of_labels(confusion: Tensor) -> dict[str, Value]:
    """Metrics of one confusion matrix per label, (L, 2, 2)."""
    count = confusion.double()
    right, wrong = 2 * count[:, 1, 1], count[:, 0, 1] + count[:, 1, 0]
    f1 = right / (right + wrong)
    micro = right.sum() / (right + wrong).sum()
    return {"f1": Value(float(micro), f1), "macro-f1": Value(float(f1.nanmean()), f1)}


def of_ranks(ranked: list[tuple[Tensor, Tensor]], labels: int) -> dict[str, Value]:
    """Average precision of scores (n, L) between 0 and 1; none without scores or without a positive."""
    from torchmetrics.functional.classification import binary_average_precision

    if not ranked:
        return {}
    score, target = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    found = torch.full((labels,), torch.nan, dtype=torch.float64)
    for label in target.any(0).nonzero()[:, 0].tolist():
        found[label] = binary_average_precision(score[:, label], target[:, label], validate_args=False)
    if found.isnan().all():
        return {}
    micro = binary_average_precision(score.flatten(), target.flatten(), validate_args=False)
    return {"map": Value(float(micro), found), "macro-map": Value(float(found.nanmean()), found)}

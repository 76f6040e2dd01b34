"""Logistic regression on frozen embeddings by scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.tasks.finetune.metrics import Score

from .base import Context, Protocol, Splits
from .embedded import Labelled, counted, embed_splits

if TYPE_CHECKING:
    from terrafm_tg.evaluation.encoders import ModelSpec

#: Logit of a class that the train split lacks: below any other.
_ABSENT = -1e6


@dataclass(frozen=True)
class Logistic(Protocol):
    """L-BFGS logistic regression, its C the best of some on the validation split; of several labels one per label.

    The values of C are 10^start to 10^stop; the defaults are torchgeo-bench's. It is scikit-learn's, on the CPU.

    Args:
        start: Exponent of the smallest C.
        stop: Exponent of the largest.
        count: How many, at equal steps of the exponent.
    """

    name: ClassVar[str] = "logistic"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel"})
    seeded: ClassVar[bool] = False

    start: float = -6.0
    stop: float = 4.0
    count: int = 40

    def __post_init__(self) -> None:
        self.check_positive("count")

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task, classes = splits.train.task, len(splits.train.task.classes)
        train, val, test = embed_splits(self, spec, splits, context, "train", "val", "test")
        tried: dict[float, tuple[float, Tensor]] = {}
        for c in np.logspace(self.start, self.stop, self.count).tolist():
            logits = fit_logistic(train, classes, c, torch.cat([val.x, test.x]))
            value = counted(task, logits[: len(val.x)], val.y).value()
            tried[c] = value, logits[len(val.x) :]
        best = max(tried, key=lambda c: tried[c][0])  # the smallest of equals
        value, logits = tried[best]
        return counted(task, logits, test.y).compute(C=best, val=value)


def fit_logistic(train: Labelled, classes: int, c: float, query: Tensor) -> Tensor:
    """Logits of a logistic regression, float64 (n, C); of several labels one regression each.

    Args:
        train: Embeddings (m, D), and classes (m,) or labels (m, L).
        classes: Number of classes or labels.
        c: The inverse strength C of the penalty.
        query: Embeddings (n, D).
    """
    x, y, query_x = (part.cpu().numpy() for part in (train.x.double(), train.y, query.double()))
    if y.ndim == 1:
        return torch.from_numpy(_class_logits(x, y, classes, c, query_x))
    labels = [_class_logits(x, label, 2, c, query_x) for label in y.T]
    return torch.from_numpy(np.stack([yes - no for no, yes in (each.T for each in labels)], 1))


def _class_logits(x: np.ndarray, y: np.ndarray, classes: int, c: float, query: np.ndarray) -> np.ndarray:
    """Logits (n, classes); a class that does not occur in ``y`` is never chosen."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    there = np.unique(y)
    logits = np.full((len(query), classes), _ABSENT)
    logits[:, there] = 0.0
    if len(there) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after 1000 steps, as torchgeo-bench's does
            model = LogisticRegression(C=c, max_iter=1000).fit(x, y)
        found = model.decision_function(query)
        logits[:, there if found.ndim == 2 else there[1]] = found  # of two, one number tells them apart
    return logits

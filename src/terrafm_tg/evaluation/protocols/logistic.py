"""Logistic regression on frozen embeddings: scikit-learn's objective, solved by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from terrafm_tg.tasks.finetune.metrics import Score

from .base import Context, Protocol, Splits
from .embedded import Labelled, check_positive, embed_splits, headline, score_test

if TYPE_CHECKING:
    from terrafm_tg.evaluation.encoders import ModelSpec


@dataclass(frozen=True)
class Logistic(Protocol):
    """L-BFGS logistic regression, its C the best of some on the validation split; of several labels one per label.

    The values of C are 10^start to 10^stop; the defaults are torchgeo-bench's.

    Args:
        start: Exponent of the smallest C.
        stop: Exponent of the largest.
        count: How many, at equal steps of the exponent.
        tolerance: The largest element of the gradient at which a fit is done.
        iterations: Steps after which it stops anyhow.
        standardize: Whether to bring each dimension of the embeddings to mean 0 and deviation 1 in the train split.
        batch: Samples per batch of the per-batch averages.
    """

    name: ClassVar[str] = "logistic"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel"})
    seeded: ClassVar[bool] = False

    start: float = -6.0
    stop: float = 4.0
    count: int = 40
    tolerance: float = 1e-4
    iterations: int = 1000
    standardize: bool = False
    batch: int = 64

    def __post_init__(self) -> None:
        check_positive(
            self.name, count=self.count, tolerance=self.tolerance, iterations=self.iterations, batch=self.batch
        )

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task = splits.train.task
        train, val, test = embed_splits(self, spec, splits, context, "train", "val", "test")
        if self.standardize:
            deviation, mean = torch.std_mean(train.x, dim=0, correction=0)
            deviation[deviation == 0] = 1
            train, val, test = (Labelled((x - mean) / deviation, y) for x, y in (train, val, test))
        model, best = None, (-1.0, 0, Linear.zeros(train, len(task.classes)))
        for number, c in enumerate(self.values()):
            model = fit_logistic(train, len(task.classes), c, model, self.tolerance, self.iterations)
            score = headline(task, model(val.x), val.y)
            if score > best[0]:  # the smallest C of equally good ones
                best = score, number, model
        score, number, model = best
        return score_test(
            task,
            model(test.x),
            test.y,
            self.batch,
            C=self.values()[number],
            val=score,
            C_at_edge=number in (0, self.count - 1),
        )

    def values(self) -> list[float]:
        """The values of C, smallest first."""
        return np.logspace(self.start, self.stop, self.count).tolist()


class Linear(NamedTuple):
    """A linear classifier in float64.

    Args:
        weight: (C, D).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (n, C) of embeddings (n, D)."""
        return x.double() @ self.weight.T + self.bias

    @classmethod
    def zeros(cls, train: Labelled, classes: int) -> Linear:
        """Returns the start of a fit."""
        weight = train.x.new_zeros(classes, train.x.shape[1], dtype=torch.float64)
        return cls(weight, weight.new_zeros(classes))


def fit_logistic(
    train: Labelled,
    classes: int,
    c: float,
    start: Linear | None = None,
    tolerance: float = 1e-4,
    iterations: int = 1000,
) -> Linear:
    """Minimises the mean loss plus |weight|^2 / (2 C n), as scikit-learn does; the bias is not penalised.

    Of one class the loss is the softmax's cross-entropy, of several labels the sum of each label's own. Of two
    classes one vector tells them apart, as in scikit-learn: a softmax of two would be penalised half as much.

    Args:
        train: Embeddings (n, D), and classes (n,) or labels (n, L).
        classes: Number of classes or labels.
        c: The inverse strength C of the penalty.
        start: Where to start, such as the solution of another C; zeros where None.
        tolerance: The largest element of the gradient at which it is done.
        iterations: Steps after which it stops anyhow.
    """
    from scipy.optimize import minimize

    if classes == 2 and train.y.ndim == 1:
        kept = None if start is None else Linear(start.weight[1:], start.bias[1:])
        one = fit_logistic(Labelled(train.x, train.y[:, None]), 1, c, kept, tolerance, iterations)
        return Linear(*(torch.cat([torch.zeros_like(part), part]) for part in one))
    x = train.x.double()
    target = train.y.double() if train.y.ndim == 2 else train.y
    first = start or Linear.zeros(train, classes)
    shape = first.weight.shape

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).to(x.device).requires_grad_()
        model = _unflatten(parameters, shape)
        logits = x @ model.weight.T + model.bias
        if target.ndim == 2:
            loss = binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(x)
        else:
            loss = cross_entropy(logits, target)
        loss = loss + model.weight.square().sum() / (2 * c * len(x))
        (gradient,) = torch.autograd.grad(loss, parameters)
        return loss.item(), gradient.cpu().numpy()

    found = minimize(
        loss_and_gradient,
        torch.cat([first.weight.flatten(), first.bias]).cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 10 * iterations, "gtol": tolerance, "ftol": 64 * 2.2e-16},
    )
    return _unflatten(torch.from_numpy(found.x).to(x.device), shape)


def _unflatten(flat: Tensor, shape: torch.Size) -> Linear:
    return Linear(flat[: shape.numel()].view(shape), flat[shape.numel() :])

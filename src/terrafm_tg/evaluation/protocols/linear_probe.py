"""A linear layer trained on frozen embeddings, for many learning rates at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders.backbone import with_seed
from terrafm_tg.tasks.finetune.metrics import NotFiniteError, Score

from .base import Context, Protocol, Splits
from .embedded import Labelled, check_positive, embed_splits, headline, score_test

if TYPE_CHECKING:
    from terrafm_tg.evaluation.encoders import ModelSpec

#: Galileo's sweep.
RATES = (
    1e-4, 3e-4, 5e-4, 8e-4, 1e-3, 3e-3, 5e-3, 8e-3, 1e-2, 3e-2, 5e-2, 8e-2, 0.1, 0.3, 0.5, 0.8,
)  # fmt: skip


@dataclass(frozen=True)
class LinearProbe(Protocol):
    """Galileo's linear probe: BatchNorm1d and Linear, AdamW; the learning rate that is best on the validation split.

    All rates see the same batches and start from the same weights. Several runs are several seeds.

    Args:
        rates: Learning rates to try.
        epochs: Passes over the train split.
        warmup: Share of them in which the rate rises from 0; it then falls as a cosine.
        last_rate: To which it falls.
        weight_decay: Of AdamW.
        batch: Samples per step, and per batch of the per-batch averages.
    """

    name: ClassVar[str] = "linear-probe"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel"})

    rates: tuple[float, ...] = RATES
    epochs: int = 50
    warmup: float = 0.1
    last_rate: float = 1e-5
    weight_decay: float = 0.01
    batch: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", tuple(self.rates))  # YAML gives a list, which would not be hashable
        check_positive(self.name, rates=min(self.rates, default=0.0), epochs=self.epochs, batch=self.batch)
        if not 0 <= self.warmup < 1:
            raise TerraFMError(f"`warmup` is a share of the epochs, got {self.warmup}: give 0 to below 1.")

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task = splits.train.task
        train, val, test = embed_splits(self, spec, splits, context, "train", "val", "test")
        probes = self.fit(train, len(task.classes), context.seed)
        found: list[tuple[float, int]] = []
        for number, logits in enumerate(probes(val.x)):
            if logits.isfinite().all():
                found.append((headline(task, logits, val.y), number))
        if not found:
            raise NotFiniteError(
                f"No learning rate of {', '.join(f'{rate:g}' for rate in self.rates)} gave finite numbers: lower them."
            )
        best, number = max(found, key=lambda pair: pair[0])  # the lowest rate of equally good ones
        return score_test(
            task,
            probes(test.x)[number],
            test.y,
            self.batch,
            lr=self.rates[number],
            val=best,
            lr_at_edge=number in (0, len(self.rates) - 1),
        )

    def fit(self, train: Labelled, classes: int, seed: int) -> Probes:
        """Trains a probe per rate.

        Args:
            train: Embeddings and labels.
            classes: Their number.
            seed: Of the start and of the order of samples.

        Raises:
            TerraFMError: If there are fewer than two samples.
        """
        count = len(train.x)
        if count < 2:
            raise TerraFMError(
                f"A linear probe needs at least 2 train samples to norm them, got {count}: take a larger fraction."
            )
        multilabel = train.y.ndim == 2
        y = train.y.float() if multilabel else train.y
        probes = with_seed(seed, lambda: Probes(train.x.shape[1], classes, len(self.rates))).to(train.x.device)
        groups = [{"params": probes.of(number), "lr": rate} for number, rate in enumerate(self.rates)]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, foreach=True)
        generator = torch.Generator().manual_seed(seed)
        batches = math.ceil(count / self.batch)
        probes.train()
        for epoch in range(self.epochs):
            # One sample alone cannot be normed: it joins the batch before it.
            order = torch.randperm(count, generator=generator).tensor_split(batches)
            for number, rows in enumerate(order):
                for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = self.rate_at(epoch + number / batches, rate)
                rows = rows.to(train.x.device)
                logits, target = probes(train.x[rows]), y[rows].expand(len(self.rates), *y[rows].shape)
                loss = binary_cross_entropy_with_logits if multilabel else cross_entropy
                each = loss(logits.flatten(0, 1), target.flatten(0, 1), reduction="sum")
                optimizer.zero_grad()
                # The sum of the rates' own mean losses: none of them has a part in another's gradient.
                (each / (len(rows) * (classes if multilabel else 1))).backward()
                optimizer.step()
        return probes.eval()

    def rate_at(self, epoch: float, rate: float) -> float:
        """The learning rate after so many epochs, whose peak is ``rate``."""
        warmup = int(self.epochs * self.warmup)
        if epoch < warmup:
            return rate * epoch / warmup
        done = (epoch - warmup) / (self.epochs - warmup)
        return self.last_rate + (rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


class Probes(nn.Module):
    """Some probes of BatchNorm1d and Linear each, on the same input, as one product of matrices.

    Args:
        dim: Width D of the embeddings.
        classes: Number C of classes.
        count: Number R of probes, which start alike.
    """

    def __init__(self, dim: int, classes: int, count: int) -> None:
        super().__init__()
        linear = nn.Linear(dim, classes)
        # What batches have in common, and their running statistics, are the same for all.
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.scale = _copies(torch.ones(dim), count)
        self.shift = _copies(torch.zeros(dim), count)
        self.weight = _copies(linear.weight.detach(), count)
        self.bias = _copies(linear.bias.detach(), count)

    def of(self, number: int) -> list[Tensor]:
        """The parameters of one probe."""
        return [part[number] for part in (self.scale, self.shift, self.weight, self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) -> logits (R, n, C)."""
        scale, shift, weight, bias = (
            torch.stack(list(part)) for part in (self.scale, self.shift, self.weight, self.bias)
        )
        kernel = weight * scale[:, None]
        offset = torch.einsum("rcd,rd->rc", weight, shift) + bias
        return torch.einsum("nd,rcd->rnc", self.norm(x), kernel) + offset[:, None]


def _copies(tensor: Tensor, count: int) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(tensor.clone()) for _ in range(count)])

"""Copernicus-Bench's own protocol: a head on a frozen encoder, scored by the means over the test batches."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from terrafm_tg.datasets.bench import BenchDataset, BenchTask
from terrafm_tg.evaluation.encoders import BenchEncoder
from terrafm_tg.tasks.finetune.head_task import HeadTask
from terrafm_tg.tasks.finetune.heads import Head, LoneBatchNorm, PyramidHead
from terrafm_tg.tasks.finetune.metrics import PER_BATCH

from .base import Context
from .finetune import linear_head
from .sweep import ImageSweep

#: Peak learning rate and batch size by kind of task, which are those of every task of the benchmark.
RATES = {"multiclass": (0.1, 64), "multilabel": (1.0, 64), "segmentation": (1e-3, 16)}


@dataclass(frozen=True)
class CopernicusFrozen(ImageSweep):
    """The frozen protocol of Copernicus-Bench; the published scores are means of three seeds.

    Classification: batch norm without parameters and a linear layer, SGD. Segmentation: a learnt pyramid under UPerNet
    with an auxiliary head, AdamW. Both without warm-up, a cosine to the end, the epoch that is best on the validation
    split. The headline is the mean of the test batches' own values, as the benchmark reports it; the true averages
    stand beside it.

    The benchmark's code calls SGD without momentum, but its one-cycle schedule sets the momentum of each step, from
    0.85 rising to 0.95, and so it is here. What differs: it rotates training samples of segmentation by
    any angle up to 90 degrees and so labels the empty corners as class 0, here they are turned by quarters; it drops
    an incomplete last training batch; it normalizes every model with the statistics of SSL4EO-S12, which the model's
    setting ``normalization="dataset"`` does here.

    Args:
        rates: Peak learning rates; one by the kind of task where empty: 0.1 for classes, 1 for labels, 0.001 for
            pixels.
        epochs: Times that the training split is seen.
        batch_size: Samples per step; where 0 64, or 16 for pixels. The headline depends on it.
        weight_decay: Of SGD.
        width: Channels of UPerNet.
        auxiliary_width: Channels of the auxiliary head.
        auxiliary: Weight of its loss.
        dropout: Rate before the last layer of both.
    """

    name: ClassVar[str] = "copernicus-frozen"
    kinds: ClassVar[frozenset[str]] = frozenset(RATES)

    rates: tuple[float, ...] = ()
    batch_size: int = 0
    weight_decay: float = 1e-4
    clip: float | None = None
    width: int = 512
    auxiliary_width: int = 256
    auxiliary: float = 0.4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.rates and self.batch_size:
            super().__post_init__()
        else:
            self.of_kind("multiclass")  # checks what is given

    def of_kind(self, kind: str) -> Self:
        """The settings with the benchmark's learning rate and batch size where none are given."""
        rate, batch_size = RATES[kind]
        return dataclasses.replace(self, rates=self.rates or (rate,), batch_size=self.batch_size or batch_size)

    def head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        """The linear head, or the pyramid."""
        task = encoder.task
        if task.kind != "segmentation":
            head = linear_head(encoder, data)
            head.norm = LoneBatchNorm(head.linear.in_features, affine=False, eps=1e-6)
            nn.init.trunc_normal_(head.linear.weight, std=0.01)
            return head
        widths = (self.width, self.auxiliary_width)
        return PyramidHead(encoder.dim, len(task.classes), task.dates, *widths, self.dropout)

    def make(self, encoder: BenchEncoder, data: BenchDataset, rate: float, context: Context, **more: Any) -> HeadTask:
        """The training with a learning rate, of which the mean over batches counts."""
        more |= {"augment": "turns" if encoder.task.kind == "segmentation" else "flips"}
        return super().make(encoder, data, rate, context, auxiliary=self.auxiliary, average=PER_BATCH, **more)

    def optimize(
        self, task: BenchTask, rate: float, parameters: list[nn.Parameter], steps: int
    ) -> tuple[Optimizer, LRScheduler]:
        """SGD, or AdamW of pixels, under a cosine to almost nothing; it moves momentum (AdamW: the first beta), too."""
        optimizer: Optimizer
        if task.kind == "segmentation":
            optimizer = AdamW(parameters, rate)
        else:
            optimizer = SGD(parameters, rate, weight_decay=self.weight_decay)
        return optimizer, OneCycleLR(optimizer, rate, total_steps=max(steps, 1), pct_start=0.0)

"""Copernicus-Bench's own protocol: a head on a frozen encoder, scored by the means over the test batches."""

from dataclasses import dataclass
from typing import Any, ClassVar

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.tasks.finetune.head_task import HeadTask
from terrafm_tg.tasks.finetune.heads import Head, NormedLinearHead, PyramidHead
from terrafm_tg.tasks.finetune.metrics import PER_BATCH, Metrics, Score
from terrafm_tg.tasks.finetune.optimization import OneCycle

from .base import Context, Protocol, Splits
from .finetune import linear_head
from .sweep import Training, checked_rates, run_identity, sweep

#: Peak learning rate and batch size by kind of task, which are those of every task of the benchmark.
RATES = {"multiclass": (0.1, 64), "multilabel": (1.0, 64), "segmentation": (1e-3, 16)}


class PerBatchMetrics(Metrics):
    """Metrics whose headline is the mean over batches, which is what the benchmark chooses by and reports."""

    def compute(self, per_batch: bool = True, **settings: Any) -> list[Score]:
        """All scores of what was counted, in percent, true averages and means over batches.

        Args:
            per_batch: Has no effect.
            **settings: What to note in each score.

        Raises:
            TerraFMError: If nothing was counted, or not what the headline needs.
        """
        return [
            score._replace(headline=score.average == PER_BATCH and score.metric == self.headline)
            for score in super().compute(**settings)
        ]


@dataclass(frozen=True)
class CopernicusFrozen(Protocol):
    """The frozen protocol of Copernicus-Bench; the published scores are means of three seeds.

    Classification: batch norm without parameters and a linear layer, SGD. Segmentation: a learnt pyramid under UPerNet
    with an auxiliary head, AdamW. Both without warm-up, a cosine to the end, the epoch that is best on the validation
    split. The headline is the mean of the test batches' own values, as the benchmark reports it; the true averages
    stand beside it.

    The benchmark's code calls SGD without momentum, but its one-cycle schedule sets the momentum of each step, from
    0.85 rising to 0.95: ``cycle_momentum`` does the same. What differs: it rotates training samples of segmentation by
    any angle up to 90 degrees and so labels the empty corners as class 0, here they are turned by quarters; it drops
    an incomplete last training batch; it normalizes every model with the statistics of SSL4EO-S12, which the model's
    setting ``normalization="dataset"`` does here.

    Args:
        epochs: Times that the training split is seen.
        rates: Peak learning rates; one by the kind of task where None: 0.1 for classes, 1 for labels, 0.001 for pixels.
        batch_size: Samples per step; where None 64, or 16 for pixels. The headline depends on it.
        weight_decay: Of SGD.
        cycle_momentum: Whether the schedule moves the momentum, too.
        width: Channels of UPerNet.
        auxiliary_width: Channels of the auxiliary head.
        auxiliary: Weight of its loss.
        dropout: Rate before the last layer of both.
        precision: Of Lightning's Trainer, such as "bf16-mixed" on a GPU.
    """

    name: ClassVar[str] = "copernicus-frozen"
    kinds: ClassVar[frozenset[str]] = frozenset(RATES)

    epochs: int = 50
    rates: tuple[float, ...] | None = None
    batch_size: int | None = None
    weight_decay: float = 1e-4
    cycle_momentum: bool = True
    width: int = 512
    auxiliary_width: int = 256
    auxiliary: float = 0.4
    dropout: float = 0.1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.rates is not None:
            object.__setattr__(self, "rates", checked_rates(self.rates))

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains a head on the frozen encoder, and scores its best epoch on the test split.

        Args:
            spec: The model.
            splits: The dataset.
            context: Where and with which seed.

        Raises:
            UnsupportedTaskError: If the model cannot read the dataset.
            NotFiniteError: If training diverges.
        """
        encoder = load_encoder(spec, splits.train.task, splits.train)
        rate, batch_size = RATES[encoder.task.kind]
        rates = (rate,) if self.rates is None else self.rates
        batch_size = batch_size if self.batch_size is None else self.batch_size

        def make(rate: float) -> HeadTask:
            dense = encoder.task.kind == "segmentation"
            return HeadTask(
                encoder,
                self._head(encoder, splits.train),
                encoder.task,
                OneCycle(rate, self.weight_decay, dense, self.cycle_momentum),
                augment="turns" if dense else "flips",
                auxiliary=self.auxiliary,
                seed=context.seed,
                metrics=PerBatchMetrics.of,
            )

        training = Training(self.epochs, batch_size, precision=self.precision)
        return sweep(rates, make, splits, training, context, run_identity(self, encoder, splits, context))

    def _head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        task = encoder.task
        if task.kind != "segmentation":
            return linear_head(encoder, data, NormedLinearHead)
        widths = (self.width, self.auxiliary_width)
        return PyramidHead(encoder.dim, len(task.classes), task.dates, *widths, self.dropout)

"""Training of a head by Lightning."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.tasks.finetune.optimization import LearningRate

from .base import Context, Splits
from .head_task import HeadTask


@dataclass(frozen=True)
class Training:
    """How long and in which portions to train.

    Args:
        epochs: Times that the training split is seen.
        batch_size: Samples per forward.
        accumulate: Batches per optimiser step.
        clip: Norm that all gradients together are scaled down to; None for no clipping.
        precision: Of Lightning's Trainer: "32-true", "bf16-mixed", ...
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    clip: float | None = None
    precision: Any = "32-true"


@dataclass(frozen=True)
class CosineAdamW:
    """AdamW with a linear warm-up from 0 and a cosine, per step.

    Args:
        lr: Peak learning rate.
        min_lr: Its value in the last step.
        warmup: Share of the steps.
        weight_decay: Of all parameters.
    """

    lr: float
    min_lr: float
    warmup: float = 0.1
    weight_decay: float = 0.01

    def __call__(self, parameters: list[nn.Parameter], steps: int) -> tuple[AdamW, LambdaLR]:
        """The optimiser, and its schedule over so many steps."""
        rate = LearningRate(self.lr, min(self.min_lr, self.lr), steps, int(self.warmup * steps))
        optimizer = AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, lambda step: rate.at(step) / self.lr)


def fit(task: HeadTask, splits: Splits, training: Training, context: Context) -> None:
    """Train and validate after every epoch; the task remembers its best one.

    Raises:
        NotFiniteError: If the loss or a logit becomes NaN or infinite.
    """
    size, n = training.batch_size, len(splits.train)
    train = DataLoader(
        splits.train,
        size,
        shuffle=True,
        drop_last=n > size and n % size == 1,  # batch norm cannot learn from one sample
        generator=torch.Generator().manual_seed(context.seed),
        **_reading(context),
    )
    with _trainer(training, context) as trainer:
        trainer.fit(task, train, DataLoader(splits.val, size, **_reading(context)))


def test(task: HeadTask, dataset: BenchDataset, training: Training, context: Context) -> None:
    """Count the predictions of a split in ``task.metrics``."""
    with _trainer(training, context) as trainer:
        trainer.test(task, DataLoader(dataset, training.batch_size, **_reading(context)), verbose=False)


@contextmanager
def seeded(context: Context) -> Iterator[None]:
    """Random numbers by the seed, for as long as this lasts."""
    with isolate_rng(include_cuda=context.device.type == "cuda"):
        torch.manual_seed(context.seed)
        yield


def _reading(context: Context) -> dict[str, Any]:
    """How a loader reads."""
    return {
        "num_workers": context.num_workers,
        "persistent_workers": context.num_workers > 0,
        "pin_memory": context.device.type == "cuda",
    }


@contextmanager
def _trainer(training: Training, context: Context) -> Iterator[Trainer]:
    """A Trainer on the context's device that writes nothing and says no more than its progress."""
    device = context.device
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)  # advice on workers and on how often to log
            warnings.filterwarnings(
                "ignore", ".*LeafSpec", FutureWarning
            )  # of torch, about Lightning's own code
            yield Trainer(
                accelerator="gpu" if device.type == "cuda" else device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                plugins=[LightningEnvironment()],  # one process, also inside a SLURM job
                precision=training.precision,
                max_epochs=training.epochs,
                accumulate_grad_batches=training.accumulate,
                gradient_clip_val=training.clip,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=context.progress,
                num_sanity_val_steps=0,
                inference_mode=False,
            )
    finally:
        log.setLevel(level)

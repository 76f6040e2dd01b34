"""Sweeps over learning rates by Lightning, which continue where they were interrupted."""

import abc
import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from terrafm_tg.datasets.bench import BenchDataset, BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.tasks.finetune.head_task import HeadTask
from terrafm_tg.tasks.finetune.heads import Head
from terrafm_tg.tasks.finetune.metrics import NotFiniteError, Score
from terrafm_tg.tasks.finetune.optimization import warmup_cosine
from terrafm_tg.utils.files import atomic_write, write_text

from .base import Context, Protocol, Splits


@dataclass(frozen=True)
class Sweep(Protocol):
    """A protocol that trains with several learning rates, of which the best on the validation split counts.

    Args:
        rates: Peak learning rates.
        epochs: Times that the training split is seen.
        batch_size: Samples per forward.
        weight_decay: Of the optimizer.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    rates: tuple[float, ...]
    epochs: int = 50
    batch_size: int = 64
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        try:
            numbers = tuple(float(rate) for rate in self.rates)  # YAML takes `1e-5` for text
        except (TypeError, ValueError) as error:
            raise TerraFMError(f"`rates` is {self.rates!r}: give a list of numbers above 0.") from error
        if not numbers or min(numbers) <= 0:
            raise TerraFMError(f"`rates` is {self.rates!r}: give one learning rate above 0 at least.")
        object.__setattr__(self, "rates", numbers)
        self.check_positive("epochs", "batch_size")

    @abc.abstractmethod
    def optimize(
        self, task: BenchTask, rate: float, parameters: list[nn.Parameter], steps: int
    ) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of these parameters with a peak learning rate, and its schedule over so many steps."""


@dataclass(frozen=True)
class CosineSweep(Sweep):
    """A sweep by AdamW with a linear warm-up from 0 and a cosine.

    Args:
        min_lr: The rate in the last step.
        warmup: Share of the steps in which the rate rises.
    """

    min_lr: float = 1e-6
    warmup: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup < 1:
            raise TerraFMError(f"`warmup` is a share of the epochs, got {self.warmup}: give 0 to below 1.")

    def optimize(
        self, task: BenchTask, rate: float, parameters: list[nn.Parameter], steps: int
    ) -> tuple[Optimizer, LRScheduler]:
        """AdamW and its schedule."""
        optimizer = AdamW(parameters, rate, weight_decay=self.weight_decay)
        end, warmup = min(self.min_lr, rate), int(self.warmup * steps)
        return optimizer, LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, rate, end, warmup) / rate)


@dataclass(frozen=True)
class ImageSweep(Sweep):
    """A sweep that trains a head on images, and the encoder with it or frozen; of each rate the best epoch counts.

    What a finished learning rate reached is kept in ``context.folder``, with the weights of the best so far: a run that
    was interrupted goes on with the next, and the test split is looked at once. One that diverges is left out.

    Args:
        width: Channels of UPerNet.
        clip: Norm that all gradients together are scaled down to; None for no clipping.
        precision: Of Lightning's Trainer, such as "bf16-mixed" on a GPU.

    Attributes:
        train_encoder: Whether the encoder is trained with the head.
    """

    train_encoder: ClassVar[bool] = False

    width: int = 256
    clip: float | None = 1.0
    precision: str = "32-true"

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""
        return 1

    def of_kind(self, kind: str) -> Self:
        """The settings for a kind of task, on which some may depend."""
        return self

    @abc.abstractmethod
    def head(self, encoder: BenchEncoder, data: BenchDataset) -> Head:
        """The head at its start."""

    def make(self, encoder: BenchEncoder, data: BenchDataset, rate: float, context: Context, **more: Any) -> HeadTask:
        """The training with a learning rate; ``more`` are settings of :class:`HeadTask`."""
        optimization = partial(self.optimize, encoder.task, rate)
        more |= {"train_encoder": self.train_encoder, "seed": context.seed}
        return HeadTask(encoder, self.head(encoder, data), encoder.task, optimization, **more)

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains with each learning rate from the same start, and tests the best on the validation split.

        Args:
            spec: The model.
            splits: The dataset.
            context: Where and with which seed.

        Raises:
            UnsupportedTaskError: If the model cannot read the dataset, or has nothing to train.
            NotFiniteError: If all rates diverge.
        """
        task = splits.train.task
        self.check(task)
        encoder = load_encoder(spec, task, splits.train)
        if self.train_encoder:
            encoder.trainable()  # complains where there is nothing to train
        if task.kind != "segmentation":
            splits.train.targets()  # names the classes that have no sample
        return self.of_kind(task.kind)._sweep(encoder, splits, context)

    def _sweep(self, encoder: BenchEncoder, splits: Splits, context: Context) -> list[Score]:
        data = [split.fingerprint for split in splits]
        identity = hashlib.sha256(repr((self, encoder.identity, data, context.seed)).encode()).hexdigest()[:16]
        folder = context.folder / f"sweep_{identity}"
        best = folder / "best.safetensors"
        start = copy.deepcopy(encoder.state_dict())

        def make(rate: float) -> HeadTask:
            encoder.load_state_dict(start)
            return self.make(encoder.eval(), splits.train, rate, context)

        def trained(rate: float) -> HeadTask:
            with seeded(context):
                task = make(rate)
                try:
                    self.fit(task, splits, context)
                except NotFiniteError as error:
                    warnings.warn(f"Learning rate {rate:g} is left out: {error}", stacklevel=2)
                    task.best, task.learnt = float("-inf"), {}
            return task

        tried: dict[float, float] = {}
        epochs: dict[float, int] = {}
        for rate in self.rates:
            record = folder / f"lr_{rate!r}.json"
            if not record.exists():
                task = trained(rate)
                if task.learnt and task.best > max(tried.values(), default=float("-inf")):
                    _save(best, task, rate)
                write_text(record, json.dumps((task.best, task.best_epoch + 1) if task.learnt else None))
            if (reached := json.loads(record.read_text())) is not None:
                tried[rate], epochs[rate] = reached
        if not tried:
            raise all_diverged(self.rates)
        winner = max(tried, key=lambda rate: tried[rate])  # the first of equals
        if _saved_rate(best) != winner:  # the file was lost
            _save(best, trained(winner), winner)
        with seeded(context):
            task = make(winner)
        task.load_learnt(load_file(best))
        with _trainer(self, context) as trainer:
            trainer.test(task, _loader(splits.test, self.batch_size, context), verbose=False)
        by_rate = {repr(rate): tried.get(rate) for rate in self.rates}
        return task.metrics.compute(lr=winner, val=tried[winner], epoch=epochs[winner], tried=by_rate)

    def fit(self, task: HeadTask, splits: Splits, context: Context) -> None:
        """Trains, and validates after every epoch; the task remembers its best one.

        Raises:
            NotFiniteError: If the loss or a logit becomes NaN or infinite.
        """
        size, n = self.batch_size, len(splits.train)
        order = torch.Generator().manual_seed(context.seed)
        lone = n > size and n % size == 1  # batch norm cannot learn from one sample
        train = _loader(splits.train, size, context, shuffle=True, drop_last=lone, generator=order)
        with _trainer(self, context) as trainer:
            trainer.fit(task, train, _loader(splits.val, size, context))


def all_diverged(rates: tuple[float, ...]) -> NotFiniteError:
    """Returns the error where no learning rate is left."""
    return NotFiniteError(
        f"Training diverged with every learning rate ({', '.join(f'{rate:g}' for rate in rates)}): lower them, or look "
        "for values in the images that are not finite."
    )


def _save(path: Path, task: HeadTask, rate: float) -> None:
    with atomic_write(path, sole_writer=True) as beside:
        save_file(task.learnt, beside, {"lr": repr(rate)})


def _saved_rate(path: Path) -> float | None:
    """The learning rate of the weights in a file; None where it is not there or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return float(file.metadata()["lr"])
    except (FileNotFoundError, SafetensorError):
        return None


@contextmanager
def seeded(context: Context) -> Iterator[None]:
    """Random numbers by the seed, for as long as this lasts."""
    with isolate_rng(include_cuda=context.device.type == "cuda"):
        torch.manual_seed(context.seed)
        yield


def _loader(data: BenchDataset, batch_size: int, context: Context, **settings: Any) -> DataLoader[Any]:
    workers, pin = context.num_workers, context.device.type == "cuda"
    return DataLoader(data, batch_size, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin, **settings)


@contextmanager
def _trainer(protocol: ImageSweep, context: Context) -> Iterator[Trainer]:
    """A Trainer on the context's device that writes nothing and says no more than its progress."""
    device = context.device
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)  # advice on workers and on how often to log
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch, about Lightning's own code
            yield Trainer(
                accelerator="gpu" if device.type == "cuda" else device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                plugins=[LightningEnvironment()],  # one process, also inside a SLURM job
                precision=cast("Any", protocol.precision),
                max_epochs=protocol.epochs,
                accumulate_grad_batches=protocol.accumulate,
                gradient_clip_val=protocol.clip,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=context.progress,
                num_sanity_val_steps=0,
                inference_mode=False,
            )
    finally:
        log.setLevel(level)

"""Sweeps over learning rates by Lightning, which continue where they were interrupted."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder
from terrafm_tg.tasks.finetune.head_task import HeadTask
from terrafm_tg.tasks.finetune.metrics import NotFiniteError, Score
from terrafm_tg.tasks.finetune.optimization import CosineAdamW
from terrafm_tg.utils.files import atomic_write, write_text

from .base import Context, Protocol, Splits

#: The validation score of a run that diverged.
DIVERGED = float("-inf")


@dataclass(frozen=True)
class Training:
    """Length and portions of a training.

    Args:
        epochs: Times that the training split is seen.
        batch_size: Samples per forward.
        accumulate: Batches per optimizer step.
        clip: Norm that all gradients together are scaled down to; None for no clipping.
        precision: Of Lightning's Trainer: "32-true", "bf16-mixed", ...
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    clip: float | None = None
    precision: Any = "32-true"


def checked_rates(rates: Sequence[float | str]) -> tuple[float, ...]:
    """Learning rates as numbers: YAML takes ``1e-5`` for text.

    Raises:
        TerraFMError: If one is no number above 0, or there is none.
    """
    try:
        numbers = tuple(float(rate) for rate in rates)
    except (TypeError, ValueError) as error:
        raise TerraFMError(f"`rates` is {rates!r}: give a list of numbers above 0.") from error
    if not numbers or min(numbers) <= 0:
        raise TerraFMError(f"`rates` is {rates!r}: give one learning rate above 0 at least.")
    return numbers


@dataclass(frozen=True)
class Swept(Protocol):
    """Settings of a protocol that trains with AdamW and several learning rates; the best on validation counts.

    Args:
        rates: Peak learning rates.
        min_lr: The rate in the last step.
        warmup: Share of the steps in which the rate rises.
        weight_decay: Of AdamW, on all parameters.
        epochs: Times that the training split is seen.

    Raises:
        TerraFMError: If ``rates`` are no learning rates.
    """

    rates: tuple[float, ...]
    min_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.01
    epochs: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", checked_rates(self.rates))

    def schedule(self, rate: float) -> CosineAdamW:
        """AdamW and its schedule with one of the rates."""
        return CosineAdamW(rate, self.min_lr, self.warmup, self.weight_decay)


def run_identity(protocol: Protocol, encoder: BenchEncoder, splits: Splits, context: Context) -> str:
    """A short digest of everything that a protocol's result depends on."""
    data = [split.fingerprint for split in splits]
    return hashlib.sha256(repr((protocol, encoder.identity, data, context.seed)).encode()).hexdigest()[:16]


def sweep(
    rates: Sequence[float],
    make: Callable[[float], HeadTask],
    splits: Splits,
    training: Training,
    context: Context,
    identity: str,
) -> list[Score]:
    """Train with each learning rate, and test what was best on the validation split, the first of equals.

    What a finished learning rate reached is kept in ``context.folder``, with the weights of the best so far: a run that
    was interrupted goes on with the next, and the test split is looked at once. One that diverges is left out.

    Args:
        rates: Peak learning rates.
        make: The task to train with a rate; called under the seed.
        splits: The dataset.
        training: Length and portions.
        context: Where and with which seed.
        identity: What else the results depend on, of :func:`run_identity`; it names the folder.

    Raises:
        NotFiniteError: If all rates diverge.
    """
    if splits.train.task.kind != "segmentation":
        splits.train.targets()  # names the classes that have no sample
    folder = context.folder / f"sweep_{identity}"
    best = folder / "best.safetensors"
    tried: dict[float, tuple[float | None, int | None]] = {}
    for rate in rates:
        record = folder / f"lr_{rate!r}.json"
        if not record.exists():
            task = _trained(rate, make, splits, training, context)
            if task.best > max((value for value, _ in tried.values() if value is not None), default=DIVERGED):
                _save(best, task, rate)
            reached = (task.best, task.best_epoch + 1) if task.learnt else (None, None)
            write_text(record, json.dumps(reached))
        tried[rate] = tuple(json.loads(record.read_text()))
    values = {rate: value for rate, (value, _) in tried.items() if value is not None}
    if not values:
        raise all_diverged(rates)
    winner = max(values, key=lambda rate: values[rate])  # the first of equals
    if _saved_rate(best) != winner:  # the file was lost
        _save(best, _trained(winner, make, splits, training, context), winner)
    with seeded(context):
        task = make(winner)
    task.load_learnt(load_file(best))
    test(task, splits.test, training, context)
    value, epoch = tried[winner]
    reached_by = {repr(rate): value for rate, (value, _) in tried.items()}
    return task.metrics.compute(lr=winner, val=value, epoch=epoch, tried=reached_by)


def all_diverged(rates: Sequence[float]) -> NotFiniteError:
    """Returns the error where no learning rate is left."""
    return NotFiniteError(
        f"Training diverged with every learning rate ({', '.join(f'{rate:g}' for rate in rates)}): lower them, or look "
        "for values in the images that are not finite."
    )


def _trained(
    rate: float, make: Callable[[float], HeadTask], splits: Splits, training: Training, context: Context
) -> HeadTask:
    """The task after training; where it diverged, with its best epoch forgotten."""
    with seeded(context):
        task = make(rate)
        try:
            fit(task, splits, training, context)
        except NotFiniteError as error:
            warnings.warn(f"Learning rate {rate:g} is left out: {error}", stacklevel=2)
            task.best, task.learnt = DIVERGED, {}
    return task


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
    """Returns a loader's settings."""
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
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch, about Lightning's own code
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

"""The contract of a protocol: its splits, its context, its scores."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders.spec import ModelSpec, UnsupportedTaskError
from terrafm_tg.tasks.finetune.metrics import Score

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchDataset, BenchTask


class Splits(NamedTuple):
    """The three parts of one benchmark dataset, opened with the same settings.

    Args:
        train: What is learnt from: the bank of a k-NN; a fraction of the published one where so asked.
        val: What settings are chosen on.
        test: What is scored, once.
    """

    train: BenchDataset
    val: BenchDataset
    test: BenchDataset


class Context(NamedTuple):
    """Place and seed of a run.

    Args:
        device: Where the encoder computes.
        seed: Of everything the protocol draws; the encoder's own random weights have ``ModelSpec.seed``.
        cache: Folder of embeddings kept between runs; none are kept where None.
        batch_size: Images per forward of a frozen encoder; protocols that train have their own.
        num_workers: Processes that decode images; 0 decodes in this one.
        folder: For checkpoints of unfinished work.
        progress: Whether to show a progress bar.
    """

    device: torch.device = torch.device("cpu")
    seed: int = 0
    cache: Path | None = None
    batch_size: int = 64
    num_workers: int = 0
    folder: Path = Path()
    progress: bool = False


@dataclasses.dataclass(frozen=True)
class Protocol(abc.ABC):
    """One way to judge an encoder on one dataset. A subclass is a frozen dataclass whose fields are its settings.

    Attributes:
        name: What configurations and results call it.
        kinds: The kinds of task (``BenchTask.kind``) that it takes.
        seeded: Whether ``Context.seed`` changes its scores; one that draws nothing runs once, not once per seed.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    seeded: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name, as the results table states them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def check(self, task: BenchTask) -> None:
        """Stop where this protocol does not take such a task.

        Raises:
            UnsupportedTaskError: Naming both.
        """
        if task.kind not in self.kinds:
            raise UnsupportedTaskError(
                f"The protocol {self.name} takes {' and '.join(sorted(self.kinds))}, and {task.name} is of kind "
                f"{task.kind}."
            )

    def check_positive(self, *names: str) -> None:
        """Stop at a setting that is not above 0.

        Raises:
            TerraFMError: Naming it.
        """
        for name in names:
            if not getattr(self, name) > 0:
                raise TerraFMError(
                    f"`{name}` of the protocol {self.name} is {getattr(self, name)}: give a number above 0."
                )

    @abc.abstractmethod
    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Judge one model on one dataset.

        Args:
            spec: The model; the protocol loads it, frozen or to be trained.
            splits: The dataset.
            context: Where and with which seed.

        Returns:
            All scores of the test split, of which one is the headline.

        Raises:
            UnsupportedTaskError: If the model cannot read the dataset, or the protocol not such a task.
        """

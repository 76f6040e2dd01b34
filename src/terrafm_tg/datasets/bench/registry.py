"""All tasks by name, opening a split of one, and seeded parts of a train split."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .copernicus import COPERNICUS_BENCH
from .geobench_tasks import GEO_BENCH
from .landslide4sense import LANDSLIDE4SENSE
from .task import Bands, BenchDataset, BenchTask, Split

#: Every benchmark dataset by its name in the published tables.
TASKS: dict[str, BenchTask] = {task.name: task for task in (*GEO_BENCH, *COPERNICUS_BENCH, LANDSLIDE4SENSE)}


def open_bench(
    name: str, root: Path, split: Split, *, fraction: float = 1.0, seed: int = 0, bands: Bands = "corrected"
) -> BenchDataset:
    """Opens one split of a benchmark dataset.

    Args:
        name: A name of :data:`TASKS`.
        root: The folder that holds the benchmarks.
        split: ``"train"``, ``"val"`` or ``"test"``.
        fraction: Share of the train split: the benchmark's own partition where the files have it, else a seeded
            class-stratified part, nested in every larger one. Validation and test never shrink.
        seed: Which part, where the benchmark has no partition.
        bands: ``"corrected"`` or ``"labelled"``: which band names are believed where the files' are wrong.

    Raises:
        MissingDatasetError: If the dataset is not under ``root``.
        TerraFMError: If a setting is unknown, or a file is damaged.
    """
    if name not in TASKS:
        raise TerraFMError(f"Benchmark dataset {name!r} is unknown: use one of {', '.join(TASKS)}.")
    task = TASKS[name]
    if split not in ("train", "val", "test"):
        raise TerraFMError(f"Split {split!r} is unknown: use train, val or test.")
    if bands not in ("corrected", "labelled"):
        raise TerraFMError(f"`bands` must be corrected or labelled, got {bands!r}.")
    if not 0 < fraction <= 1:
        raise TerraFMError(f"`fraction` must be above 0 and at most 1, got {fraction}.")
    partition = f"{fraction:.2f}x_train" if fraction == round(fraction, 2) else ""
    if bands == "labelled" and task.labelled is not None:
        task = replace(task, sensors=task.labelled)
    dataset = task.opener(task, Path(root), split, partition)
    if split == "train" and fraction < 1 and dataset.partition != partition:
        return take_fraction(dataset, fraction, seed)
    return dataset


class BenchSubset(BenchDataset):
    """Some samples of a benchmark dataset.

    Args:
        dataset: The whole.
        indices: Which of its samples, in order.
    """

    def __init__(self, dataset: BenchDataset, indices: list[int]) -> None:
        paths = [dataset.paths[index] for index in indices]
        super().__init__(
            dataset.task, dataset.split, paths, dataset.mean, dataset.std, dataset.partition, dataset.source
        )
        self.dataset, self.indices = dataset, indices

    def read(self, index: int) -> dict[str, Tensor]:
        """Reads a sample of the whole."""
        return self.dataset.read(self.indices[index])

    def targets(self) -> Tensor:
        """Labels of the chosen samples."""
        return self.dataset.targets()[self.indices]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole's fingerprint and the chosen samples."""
        return hashlib.sha256(f"{self.dataset.fingerprint}{self.indices}".encode()).hexdigest()


def take_fraction(dataset: BenchDataset, fraction: float, seed: int) -> BenchSubset:
    """Draws a seeded random part of ``dataset``; a smaller fraction is contained in a larger one of the same seed.

    Of single-label data it takes the same share of each class, and at least one sample; of multi-label data and
    masks, of all samples.

    Args:
        dataset: A train split.
        fraction: Share of the samples, above 0 and below 1.
        seed: Which part.
    """
    groups = dataset.targets() if dataset.task.kind == "multiclass" else torch.zeros(len(dataset))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    chosen: list[int] = []
    for group in groups.unique():
        members = order[groups[order] == group]
        chosen += members[: max(1, round(fraction * len(members)))].tolist()
    return BenchSubset(dataset, sorted(chosen))

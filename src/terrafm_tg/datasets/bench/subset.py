"""A seeded part of a train split, for benchmarks that publish no partitions of their own."""

import hashlib

import torch
from torch import Tensor

from .task import BenchDataset


class BenchSubset(BenchDataset):
    """Some samples of a benchmark dataset.

    Args:
        dataset: The whole.
        indices: Which of its samples, in order.
    """

    def __init__(self, dataset: BenchDataset, indices: list[int]) -> None:
        super().__init__(
            dataset.task,
            dataset.split,
            dataset.files,
            dataset.mean,
            dataset.std,
            partition=dataset.partition,
            source=dataset.source,
        )
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.dataset[self.indices[index]]

    def targets(self) -> Tensor:
        """Labels of the chosen samples."""
        return self.dataset.targets()[self.indices]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole's fingerprint and the chosen samples."""
        return hashlib.sha256(f"{self.dataset.fingerprint}{self.indices}".encode()).hexdigest()


def take_fraction(dataset: BenchDataset, fraction: float, seed: int) -> BenchSubset:
    """A seeded random part of ``dataset``; a smaller fraction is contained in a larger one of the same seed.

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

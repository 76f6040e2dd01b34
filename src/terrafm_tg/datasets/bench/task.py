"""A dataset of a benchmark: its description, and the interface of all."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from terrafm_tg.errors import TerraFMError

Kind = Literal["multiclass", "multilabel", "segmentation"]
Split = Literal["train", "val", "test"]
Bands = Literal["corrected", "labelled"]


class MissingDatasetError(TerraFMError):
    """A benchmark dataset is not on this disk; whoever runs many skips it and names it.

    Args:
        task: The task whose files are missing.
        looked_for: The path that was looked for.
    """

    def __init__(self, task: "BenchTask", looked_for: Path) -> None:
        super().__init__(f"{task.name} is not there: {looked_for} was looked for; {task.where}")
        self.task = task
        self.looked_for = looked_for

    def __reduce__(self) -> "tuple[type, tuple[BenchTask, Path]]":
        return type(self), (self.task, self.looked_for)


class Opener(Protocol):
    """Opens one split of a task.

    ``partition`` names a train subset of the benchmark (``"0.01x_train"``); an opener that has none of that name opens
    the whole train split, and the dataset's ``partition`` says which it opened.
    """

    def __call__(self, task: "BenchTask", root: Path, split: Split, *, partition: str, bands: Bands) -> "BenchDataset":
        """The split of ``task`` under ``root``, with band names as corrected or as labelled."""
        ...


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """One dataset of a benchmark.

    Args:
        name: Its name in the published tables, such as ``"m-eurosat"`` or ``"Flood-S1"``.
        benchmark: ``"GEO-Bench"``, ``"Copernicus-Bench"`` or ``"Landslide4Sense"``.
        kind: What is predicted: one class, several labels, or a class per pixel.
        classes: Class names, by index.
        metric: The headline metric of the published tables: ``"accuracy"``, ``"f1"``, ``"map"``, ``"oa"``, ``"miou"``.
        sensors: Band names per image in channel order; the key is a modality's name, or that of a sensor which
            TerraFM has no stem for (``"rgb"``, ``"landsat8"``, ``"naip"``).
        labelled: ``sensors`` by the names that the files carry, where those are wrong; None where they are right.
        size: Height and width of the stored images in pixels.
        input_size: Height and width that a protocol resizes to unless told otherwise.
        counts: Published numbers of train, validation and test samples.
        dates: Images per sample; above 1, an image is (T, C, H, W).
        ignore_index: The mask value that loss and metrics leave out.
        where: Where to get the files: one sentence.
        opener: Opens a split.
    """

    name: str
    benchmark: str
    kind: Kind
    classes: tuple[str, ...]
    metric: str
    sensors: Mapping[str, tuple[str, ...]] = field(hash=False)
    size: int
    input_size: int
    counts: tuple[int, int, int]
    opener: Opener = field(repr=False, compare=False)
    labelled: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)
    dates: int = 1
    ignore_index: int | None = None
    where: str = ""


class BenchDataset(NonGeoDataset, ABC):
    """One split of a task.

    A sample is ``{"image_<sensor>": float32 (C, H, W)}`` per sensor of ``task.sensors``, ``(T, C, H, W)`` where
    ``task.dates`` is above 1, with ``"label"`` int64 ``()`` or ``(L,)``, or ``"mask"`` int64 ``(H, W)``.
    Radar is in dB, Sentinel-2 in digital numbers without offset, other sensors as stored; missing pixels are NaN.

    Args:
        task: The task as it was opened: ``sensors`` follows ``bands``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        files: The files that samples are read from.
        mean: Mean per band in the unit of the images, by sensor.
        std: Standard deviation per band, by sensor.
        partition: The train partition that was opened.
        source: The file or folder that tells which samples the split has.
        settings: What else decides the samples, for the fingerprint.
    """

    def __init__(
        self,
        task: BenchTask,
        split: Split,
        files: Sequence[Path],
        mean: Mapping[str, Tensor],
        std: Mapping[str, Tensor],
        *,
        partition: str = "",
        source: Path | str = "",
        settings: Sequence[object] = (),
    ) -> None:
        self.task = task
        self.split = split
        self.files = list(files)
        self.mean = dict(mean)
        self.std = dict(std)
        self.partition = partition
        self.source = source or f"{task.name} ({split})"
        self._settings = (task.name, tuple(task.sensors.items()), split, partition, *settings)

    def __len__(self) -> int:
        return len(self.files)

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def targets(self) -> Tensor:
        """Returns the labels of all samples, without decoding an image: int64 (n,), or (n, L) of several labels.

        A class without a sample in the train split warns.

        Raises:
            TerraFMError: If a label cannot be read, or the task is a segmentation.
        """
        if self.task.kind == "segmentation":
            raise TerraFMError(f"{self.task.name} has masks, not labels: use it with a protocol of segmentation.")
        target = self._labels()
        self.warn_of_empty_classes(target)
        return target

    def _labels(self) -> Tensor:
        """Reads the labels, of a dataset that has them."""
        raise NotImplementedError

    def warn_of_empty_classes(self, target: Tensor) -> None:
        """Names the classes that this train split has no sample of, which no protocol can learn from it.

        Args:
            target: The labels of the split: int64 (n,), or (n, L) of several labels.
        """
        if self.split != "train" or self.task.kind == "segmentation":
            return
        counts = target.sum(0) if target.ndim == 2 else target.bincount(minlength=len(self.task.classes))
        empty = [name for name, count in zip(self.task.classes, counts.tolist(), strict=True) if count == 0]
        if empty:
            more = f" and {len(empty) - 3} more classes" if len(empty) > 3 else ""
            warnings.warn(
                f"{self.source} has no training sample of {', '.join(empty[:3])}{more}, which nothing trained on it "
                "can predict: fetch it again, unless so small a part of the data is meant.",
                stacklevel=2,
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and times of the files, and of the settings."""
        digest = hashlib.sha256(repr(self._settings).encode())
        for path in self.files:
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def missing_as_nan(image: Tensor) -> Tensor:
    """Returns the image with NaN for every pixel that is not finite, such as decibels of no power."""
    return torch.where(image.isfinite(), image, torch.nan)


def check_images(images: Iterable[Tensor], path: Path) -> None:
    """Raises TerraFMError if no pixel of any image is a number.

    Args:
        images: Of one sample.
        path: The file that they were read from.
    """
    if all(image.isnan().all() for image in images):
        raise TerraFMError(f"{path} holds no pixel that is a number: fetch it again.")


def check_mask(mask: Tensor, path: Path, task: BenchTask) -> Tensor:
    """Returns the mask, if it holds nothing but the task's classes and the value to leave out.

    Args:
        mask: int64 (H, W).
        path: The file that it was read from.
        task: The task.

    Raises:
        TerraFMError: If it holds another value.
    """
    wrong = (mask < 0) | (mask >= len(task.classes))
    if task.ignore_index is not None:
        wrong &= mask != task.ignore_index
    if wrong.any():
        raise TerraFMError(
            f"{path} holds the class {int(mask[wrong][0])}, but {task.name} has classes 0 to {len(task.classes) - 1}: "
            "fetch the file again."
        )
    return mask

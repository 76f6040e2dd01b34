"""A dataset of a benchmark: its description, and the interface of all."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from terrafm_tg.errors import TerraFMError

Kind = Literal["multiclass", "multilabel", "segmentation"]
Split = Literal["train", "val", "test"]
Bands = Literal["corrected", "labelled"]


#: Opens one split of a task under a root. The name of a train subset (``"0.01x_train"``) comes last; where there is
#: none of that name the whole is opened, and the dataset's ``partition`` says which it is.
type Opener = Callable[[BenchTask, Path, Split, str], BenchDataset]


class MissingDatasetError(TerraFMError):
    """A benchmark dataset is not on this disk; whoever runs many skips it and names it."""


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

    def missing(self, path: Path) -> MissingDatasetError:
        """Returns the error of a dataset that is not there, with where to get it.

        Args:
            path: The path that was looked for.
        """
        return MissingDatasetError(f"{self.name} is not there: {path} was looked for; {self.where}")


class BenchDataset(NonGeoDataset, ABC):
    """One split of a task.

    A sample is ``{"image_<sensor>": float32 (C, H, W)}`` per sensor of ``task.sensors``, ``(T, C, H, W)`` where
    ``task.dates`` is above 1, with ``"label"`` int64 ``()`` or ``(L,)``, or ``"mask"`` int64 ``(H, W)``.
    Radar is in dB, Sentinel-2 in digital numbers without offset, other sensors as stored; missing pixels are NaN.

    Args:
        task: The task as it was opened: ``sensors`` follows ``bands``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        paths: The files of each sample, images before the mask.
        mean: Mean per band in the unit of the images, by sensor.
        std: Standard deviation per band, by sensor.
        partition: The train partition that was opened.
        source: The file or folder that tells which samples the split has.
    """

    def __init__(
        self,
        task: BenchTask,
        split: Split,
        paths: Sequence[Sequence[Path]],
        mean: Mapping[str, Tensor],
        std: Mapping[str, Tensor],
        partition: str = "",
        source: Path | str = "",
    ) -> None:
        self.task, self.split, self.paths, self.partition = task, split, paths, partition
        self.files = list(dict.fromkeys(path for sample in paths for path in sample))
        self.mean, self.std = dict(mean), dict(std)
        self.source = source or f"{task.name} ({split})"

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def read(self, index: int) -> dict[str, Tensor]:
        """Reads images, and label or mask, of a sample in the units of the class."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Reads a sample.

        Raises:
            TerraFMError: If a file is damaged, no pixel is a number, or a mask has another size or an unknown class.
        """
        index = range(len(self))[index]
        paths = self.paths[index]
        with naming(paths[0]):
            sample = self.read(index)
        images = {key: x for key, x in sample.items() if key.startswith("image")}
        for key, x in images.items():
            sample[key] = torch.where(x.isfinite(), x, torch.nan)  # such as decibels of no power
        if not any(x.isfinite().any() for x in images.values()):
            raise TerraFMError(f"{paths[0]} holds no pixel that is a number: fetch it again.")
        if "mask" in sample:
            self._check_mask(sample["mask"], next(iter(images.values())).shape[-2:], paths[-1])
        return sample

    def _check_mask(self, mask: Tensor, size: torch.Size, path: Path) -> None:
        if mask.shape != size:
            raise TerraFMError(f"{path} has a mask of {tuple(mask.shape)} for images of {tuple(size)}: fetch it again.")
        count, ignored = len(self.task.classes), self.task.ignore_index
        known = torch.tensor([*range(count), *([] if ignored is None else [ignored])])
        wrong = mask[~torch.isin(mask, known)]
        if len(wrong):
            raise TerraFMError(
                f"{path} holds the class {int(wrong[0])}, but {self.task.name} has classes 0 to {count - 1}: fetch the "
                "file again."
            )

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
        settings = (self.task.name, tuple(self.task.sensors.items()), self.split, self.partition)
        digest = hashlib.sha256(repr(settings).encode())
        for path in self.files:
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an error of reading a damaged file into a sentence that names it.

    Raises:
        TerraFMError: With that sentence.
    """
    try:
        yield
    except TerraFMError:
        raise
    except (
        RasterioError,
        OSError,
        EOFError,
        LookupError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise TerraFMError(
            f"{path} cannot be read ({reason}): it is damaged or incomplete, so fetch it again."
        ) from error


def find_below(root: Path, inner: Path | str) -> Path | None:
    """Finds a path under a root, or in a folder at most two levels below it; None without one."""
    patterns = (f"{above}{inner}" for above in ("", "*/", "*/*/"))
    return next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)

"""Copernicus-Bench through TorchGeo's datasets: bands by name, this package's units, and errors that name the file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import rasterio
import torch
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datasets import CopernicusBenchBase, CopernicusBenchLCZS2
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError

from .copernicus_files import candidates, split_file
from .files import check_mask, missing_as_nan
from .task import Bands, BenchDataset, BenchTask, MissingDatasetError, Split

#: The official code clamps the linear power of Flood-S1 to [0, 0.15].
FLOOD_POWER = 0.15

#: Mean and standard deviation per band of SSL4EO-S12, with which the official protocol normalises (L1C's for L2A too).
SSL4EO = {
    "VV": (-12.548, 5.257), "VH": (-20.192, 5.912),
    "B01": (1353.7, 897.3), "B02": (1117.2, 736.0), "B03": (1041.8, 684.8), "B04": (946.5, 620.0),
    "B05": (1199.1, 791.9), "B06": (2003.0, 1341.3), "B07": (2374.0, 1595.4), "B08": (2301.2, 1545.5),
    "B8A": (2599.7, 1750.1), "B09": (732.1, 475.1), "B10": (12.1, 98.3), "B11": (1820.6, 1216.5),
    "B12": (1118.2, 736.7),
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """How a task is read.

    Args:
        source: TorchGeo's class.
        files: The files of each sample, images before the mask, given an instance of ``source``.
        unit: What the files hold where it is not decibels or digital numbers: ``"reflectance"`` from 0 to 1, or
            linear ``"power"``.
    """

    source: type[CopernicusBenchBase]
    files: Callable[[Any], list[list[Path]]]
    unit: Literal["reflectance", "power"] | None = None


class CopernicusDataset(BenchDataset):
    """One split of a task of Copernicus-Bench.

    Args:
        task: The task.
        split: The split.
        reader: How it is read.
        data: An instance of ``reader.source``.
        paths: The files of each sample, as ``reader.files`` gives them.
        source: The file that lists the split.

    Raises:
        TerraFMError: If files that the split lists are not there.
    """

    def __init__(
        self,
        task: BenchTask,
        split: Split,
        reader: Reader,
        data: CopernicusBenchBase,
        paths: list[list[Path]],
        source: Path,
    ) -> None:
        ((sensor, bands),) = task.sensors.items()
        files = list(dict.fromkeys(path for sample in paths for path in sample))
        absent = [path for path in files if not path.is_file()]
        if absent:
            raise TerraFMError(
                f"{absent[0]}, which {source} names, is not there (nor are {len(absent) - 1} more of {len(files)}): "
                f"unpack {data.zipfile} again."
            )
        mean, std = torch.tensor([SSL4EO[band] for band in bands]).T
        super().__init__(task, split, files, {sensor: mean}, {sensor: std}, source=source)
        self.key = f"image_{sensor}"
        self.unit = reader.unit
        self.data = data
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A sample.

        Raises:
            TerraFMError: If one of its files is damaged, or has too few bands.
        """
        index = range(len(self))[index]
        paths = self.paths[index]
        try:
            sample = self.data[index]
        except (RasterioError, OSError, KeyError, IndexError) as error:
            raise TerraFMError(_fault(paths, self.task, error)) from error
        image = sample["image"].float()
        if self.unit == "reflectance":
            image = image * 10_000
        elif self.unit == "power":
            image = 10 * image.clamp(0, FLOOD_POWER).log10()
        image = missing_as_nan(image)
        if image.isnan().all():
            raise TerraFMError(f"{paths[0]} holds no pixel that is a number: fetch it again.")
        if self.task.kind == "segmentation":
            return {self.key: image, "mask": check_mask(sample["mask"].long(), paths[-1], self.task)}
        return {self.key: image, "label": sample["label"].long()}

    def targets(self) -> Tensor:
        """Labels from the list of the split: int64 (n,), or (n, 19) of BigEarthNet. A class without a sample warns.

        Raises:
            TerraFMError: If the task is a segmentation.
        """
        if self.task.kind == "segmentation":
            raise TerraFMError(
                f"{self.task.name} has masks, not labels: use it with a protocol of segmentation."
            )
        target = self._labels()
        self.warn_of_empty_classes(target)
        return target

    def _labels(self) -> Tensor:
        if isinstance(self.data, CopernicusBenchLCZS2):
            with lazy_import("h5py").File(self.data.filepath, "r") as file:
                return torch.from_numpy(file["label"][()].argmax(1))
        if self.task.kind == "multilabel":
            return torch.from_numpy(self.data.files.iloc[:, 2:].to_numpy("int64"))
        return torch.tensor([self.task.classes.index(path.parent.name) for (path,) in self.paths])


def _fault(paths: list[Path], task: BenchTask, error: Exception) -> str:
    """What is wrong with the files of a sample that raised ``error``, found by reading each whole."""
    (bands,) = task.sensors.values()
    for path in paths if paths[0].suffix == ".tif" else ():
        needed = len(bands) if path == paths[0] and task.dates == 1 else 1
        try:
            with rasterio.open(path) as file:
                file.read()
                count = file.count
        except RasterioError:
            return f"{path} cannot be read: it is damaged or incomplete, so fetch it again."
        if count < needed:
            return f"{path} has {count} bands, but {task.name} has {needed} ({', '.join(bands)}): fetch it again."
    return f"{paths[0]} cannot be read ({error}): it is damaged or incomplete, so fetch it again."


def open_copernicus(
    reader: Reader, task: BenchTask, root: Path, split: Split, *, partition: str, bands: Bands
) -> CopernicusDataset:
    """Opens a split; the benchmark has no partitions, and its band names are right.

    Args:
        reader: How the task is read.
        task: The task.
        root: The folder of all benchmarks, or one that TorchGeo takes as root.
        split: The split.
        partition: Has no effect.
        bands: Has no effect.

    Raises:
        MissingDatasetError: If the split is not under ``root``.
        TerraFMError: If its list is damaged, or files that it lists are not there.
    """
    inner = split_file(reader.source, split)
    folders = [folder for folder in candidates(reader.source, root) if (folder / inner).is_file()]
    if not folders:
        raise MissingDatasetError(task, root / inner)
    (names,) = task.sensors.values()
    try:
        data = reader.source(str(folders[0]), split=split, bands=names)
        paths = reader.files(data)
    except TerraFMError:
        raise
    except (OSError, KeyError, IndexError, ValueError) as error:  # the list is empty, cut off, or no list
        raise TerraFMError(f"{folders[0] / inner} cannot be read ({error}): fetch it again.") from error
    return CopernicusDataset(task, split, reader, data, paths, folders[0] / inner)

"""GEO-Bench v1 from its own files: bands by their true names, this package's units, errors that name the file.

A dataset is a folder with an HDF5 file per sample (one data set per band, and a pickle that names them), and beside
them the partitions, the band statistics and a description of the task.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.trust import open_hdf5

from .geobench_pickle import PickleError, load_text
from .task import BenchDataset, BenchTask, Split, find_below, naming

if TYPE_CHECKING:
    import h5py

#: Unit of the files: that of the samples; reflectance of 0 to 1; reflectance of 0 to 1 as 0 to 255; linear power.
type FileUnit = Literal["same", "reflectance", "byte", "power"]
#: Factors from the files' unit to that of the samples; power becomes decibels instead.
FACTORS: dict[FileUnit, float] = {"same": 1, "reflectance": 10_000, "byte": 10_000 / 255}
#: Partitions that hold the whole train split, in this order; ``original`` is from before GEO-Bench drew its own.
_WHOLE = ("default", "1.00x_train", "original")
#: Width of the middle 90 % of a normal distribution, in standard deviations.
_MIDDLE_90 = 3.2897


class GeoBench(BenchDataset):
    """One split of a dataset of GEO-Bench v1.

    Bands come by name, except where a dataset's names are known to be wrong (m-eurosat and m-brick-kiln): there the
    position tells which band it is, and ``bands="labelled"`` gives the same pixels by the names of the files, as most
    published evaluations took them.

    Args:
        task: The task; its ``sensors`` are those that are read.
        root: The folder that holds ``classification_v1.0`` and ``segmentation_v1.0``, or one above it.
        split: The split.
        partition: The train subset; the whole if there is none of that name.
        stored: Name in the files of each channel, by sensor; the first of them are the task's ``sensors``.
        units: Unit of the numbers by sensor, if it is not that of the samples.
        mislabelled: Whether the files' names are wrong, so that channels are told by their position.

    Raises:
        MissingDatasetError: If the dataset is not under ``root``.
        TerraFMError: If a file beside the samples is damaged or missing, or a sample is missing.
    """

    def __init__(
        self,
        task: BenchTask,
        root: Path,
        split: Split,
        partition: str,
        *,
        stored: Mapping[str, tuple[str, ...]],
        units: Mapping[str, FileUnit],
        mislabelled: bool,
    ) -> None:
        part = "segmentation" if task.kind == "segmentation" else "classification"
        inner = Path(f"{part}_v1.0", task.name)
        folder = find_below(root, inner)
        if folder is None:
            raise task.missing(root / inner)
        source, files = read_partition(folder, split, partition)
        self.wanted = [name for names in stored.values() for name in names]
        self.mislabelled = mislabelled
        self.names = {sensor: stored[sensor][: len(bands)] for sensor, bands in task.sensors.items()}
        self.units: dict[str, FileUnit] = {sensor: units.get(sensor, "same") for sensor in self.names}
        stats = {sensor: read_statistics(folder, names, self.units[sensor]) for sensor, names in self.names.items()}
        super().__init__(
            task,
            split,
            [[path] for path in files],
            {sensor: mean for sensor, (mean, _) in stats.items()},
            {sensor: std for sensor, (_, std) in stats.items()},
            source.name.removesuffix("_partition.json"),
            source,
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Reads a sample.

        Raises:
            TerraFMError: If the file lacks a band, or has a wrong one.
        """
        path = self.files[index]
        with open_sample(path) as (file, described):
            stored = self._check_bands(path, stored_bands(file, described))
            sample = {
                f"image_{sensor}": self._image(sensor, [file[stored[name]][()] for name in names])
                for sensor, names in self.names.items()
            }
            if self.task.kind == "segmentation":
                return sample | {"mask": torch.from_numpy(file[stored["label"]][()].astype(np.int64))}
            return sample | {"label": self._label(path, described)}

    def _labels(self) -> Tensor:
        """Reads the labels of all samples."""
        labels = []
        for path in self.files:
            with open_sample(path) as (_, described):
                labels.append(self._label(path, described))
        return torch.stack(labels)

    def _check_bands(self, path: Path, stored: dict[str, str]) -> dict[str, str]:
        """Returns ``stored`` if it has all bands, in the order that tells them if the names do not."""
        wanted = [*self.wanted, "label"] if self.task.kind == "segmentation" else self.wanted
        absent = [name for name in wanted if name not in stored]
        if absent or (self.mislabelled and list(stored) != wanted):
            fault = f"lacks {', '.join(absent)}" if absent else f"has not the order {', '.join(wanted)}"
            raise TerraFMError(
                f"{path} {fault}, by which {self.task.name} is read; it has {', '.join(stored) or 'nothing'}: fetch it "
                "again."
            )
        return stored

    def _image(self, sensor: str, channels: Sequence[np.ndarray]) -> Tensor:
        image = torch.from_numpy(np.stack(channels, dtype=np.float32, casting="unsafe"))
        unit = self.units[sensor]
        return 10 * image.log10() if unit == "power" else image * FACTORS[unit]

    def _label(self, path: Path, described: dict[str, Any]) -> Tensor:
        """Returns the class, or a 0 or 1 for each class of several labels."""
        label = described.get("label", ())
        value = np.asarray(getattr(label, "value", label))
        value = value if value.dtype.kind in "biu" else np.empty(0)
        count = len(self.task.classes)
        several = self.task.kind == "multilabel"
        shape, limit = ((count,), 2) if several else ((), count)
        if value.shape != shape or not 0 <= value.min() <= value.max() < limit:
            expected = f"{count} labels of 0 or 1" if several else f"a class from 0 to {count - 1}"
            raise TerraFMError(
                f"{path} has the label {value.tolist()}, but {self.task.name} has {expected}: fetch it again."
            )
        return torch.from_numpy(value.astype(np.int64))


@contextmanager
def open_sample(path: Path) -> "Iterator[tuple[h5py.File, dict[str, Any]]]":
    """Yields the open file and its description: ``bands_order``, ``label`` unless it is a mask, attributes per band.

    The file is opened for one sample at a time, so that loader workers share no handle.

    Raises:
        TerraFMError: If the file is damaged, now or while it is read, or its pickle is not one of GEO-Bench.
    """
    with naming(path), open_hdf5(path) as file:
        try:
            described = load_text(str(file.attrs["pickle"]))
        except PickleError as error:
            raise TerraFMError(f"{path} has a pickle that was not read, because {error}: fetch it again.") from error
        yield file, described


def stored_bands(file: "h5py.File", described: dict[str, Any]) -> dict[str, str]:
    """Returns the data set of each band by its plain name, in the writer's order; of several dates the first.

    A dated band's data set is called ``<name>_<date>``. GEO-Bench's own tools read samples of one date only; of more,
    published evaluations took the first data set of a name.

    Args:
        file: The open file, whose own order is alphabetical.
        described: Its description.
    """
    bands: dict[str, str] = {}
    for name in described.get("bands_order", list(file)):
        date = described.get(name, {}).get("date")
        bands.setdefault(str(name) if date is None else str(name).rpartition("_")[0], str(name))
    return bands


def read_partition(folder: Path, split: Split, partition: str) -> tuple[Path, list[Path]]:
    """Returns the file of the partition, and the samples that it names for ``split``.

    Args:
        folder: The dataset's folder.
        split: The split; GEO-Bench draws subsets of train only.
        partition: The train subset; without a file of that name the whole is taken.

    Raises:
        TerraFMError: If there is no partition, it is damaged, has no samples, or names one that is not there.
    """
    names = (partition, *_WHOLE) if split == "train" and partition else _WHOLE
    paths = [folder / f"{name}_partition.json" for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise TerraFMError(f"{folder} has no partition, but {paths[0].name} was expected: unpack the dataset again.")
    with naming(path):
        samples = json.loads(path.read_text()).get("valid" if split == "val" else split)
    if not samples:
        raise TerraFMError(f"{path} names no samples for the {split} split: fetch the file again.")
    there = {file.name for file in folder.iterdir()}
    files = [f"{sample}.hdf5" for sample in samples]
    absent = [file for file in files if file not in there]
    if absent:
        raise TerraFMError(
            f"{path} names {absent[0]}, which is not beside it (nor are {len(absent) - 1} more of {len(files)}): "
            "unpack the dataset again."
        )
    return path, [folder / file for file in files]


def read_statistics(folder: Path, names: Sequence[str], unit: FileUnit) -> tuple[Tensor, Tensor]:
    """Reads mean and standard deviation of ``band_stats.json``, in the samples' unit.

    Radar's statistics are of linear power, whose mean and deviation say nothing of decibels, but whose percentiles do:
    the median stands for the mean, and the middle 90 % for the deviation.

    Args:
        folder: The dataset's folder.
        names: The bands by the files' names.
        unit: Unit of the files.

    Raises:
        TerraFMError: If the file is damaged or lacks a band.
    """
    path = folder / "band_stats.json"
    with naming(path):
        stats = json.loads(path.read_text())
        if unit == "power":
            low, middle, high = (
                torch.tensor([10 * math.log10(stats[name][key]) for name in names])
                for key in ("percentile_5", "median", "percentile_95")
            )
            return middle, (high - low) / _MIDDLE_90
        mean, std = (torch.tensor([float(stats[name][key]) for name in names]) for key in ("mean", "std"))
        return mean * FACTORS[unit], std * FACTORS[unit]

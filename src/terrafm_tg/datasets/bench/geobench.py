"""GEO-Bench v1 from its own files: bands by their true names, this package's units, errors that name the file.

A dataset is a folder with an HDF5 file per sample (one data set per band, and a pickle that names them), and beside
them the partitions, the band statistics and a description of the task.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError

from .geobench_pickle import PickleError, load_pickle, load_text
from .task import Bands, BenchDataset, BenchTask, MissingDatasetError, Split, check_images, check_mask, missing_as_nan

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


@dataclass(frozen=True)
class FileLayout:
    """The bands in a dataset's files.

    Args:
        names: Name in the files of each channel, by sensor.
        units: Unit of the numbers by sensor, if it is not that of the samples.
        mislabelled: Whether the files' names are wrong: then channels are told by their position, and the true bands
            are a task's ``sensors``, which may be fewer.
    """

    names: Mapping[str, tuple[str, ...]]
    units: Mapping[str, FileUnit]
    mislabelled: bool


class GeoBench(BenchDataset):
    """One split of a dataset of GEO-Bench v1.

    Bands come by name, except where a dataset's names are known to be wrong (m-eurosat and m-brick-kiln): there the
    position tells which band it is, and ``bands="labelled"`` gives the same pixels by the names of the files, as most
    published evaluations took them.

    Args:
        task: The task; its ``sensors`` are those that are read.
        layout: The bands in its files.
        split: The split.
        folder: The folder of the samples.
        partition: The train subset; the whole if there is none of that name.

    Raises:
        TerraFMError: If a file beside the samples is damaged or missing, or a sample is missing.
    """

    def __init__(self, task: BenchTask, layout: FileLayout, split: Split, folder: Path, partition: str) -> None:
        self.layout = layout
        source, files = read_partition(folder, split, partition)
        self.names = {sensor: layout.names[sensor][: len(bands)] for sensor, bands in task.sensors.items()}
        self.units: dict[str, FileUnit] = {sensor: layout.units.get(sensor, "same") for sensor in self.names}
        stats = {sensor: read_statistics(folder, names, self.units[sensor]) for sensor, names in self.names.items()}
        super().__init__(
            replace(task, classes=read_classes(folder, task)),
            split,
            files,
            {sensor: mean for sensor, (mean, _) in stats.items()},
            {sensor: std for sensor, (_, std) in stats.items()},
            partition=source.name.removesuffix("_partition.json"),
            source=source,
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Reads a sample.

        Raises:
            TerraFMError: If the file is damaged, lacks a band or has a wrong one, or holds nothing but NaN.
        """
        path = self.files[index]
        with open_sample(path) as (file, described):
            stored = self._check_bands(path, stored_bands(file, described))
            images = {
                f"image_{sensor}": self._image(sensor, read_channels(file, [stored[name] for name in names]))
                for sensor, names in self.names.items()
            }
            check_images(images.values(), path)
            if self.task.kind != "segmentation":
                return {**images, "label": self._label(path, described)}
            mask = torch.from_numpy(file[stored["label"]][()].astype(np.int64))
        size = next(iter(images.values())).shape[1:]
        if mask.shape != size:
            raise TerraFMError(f"{path} has a mask of {tuple(mask.shape)} for images of {tuple(size)}: fetch it again.")
        return {**images, "mask": check_mask(mask, path, self.task)}

    def _labels(self) -> Tensor:
        """Reads the labels of all samples."""
        labels = []
        for path in self.files:
            with open_sample(path) as (_, described):
                labels.append(self._label(path, described))
        return torch.stack(labels)

    def _check_bands(self, path: Path, stored: dict[str, str]) -> dict[str, str]:
        """Returns ``stored`` if it has all bands, in the order that tells them if the names do not."""
        wanted = [name for names in self.layout.names.values() for name in names]
        if self.task.kind == "segmentation":
            wanted.append("label")
        absent = [name for name in wanted if name not in stored]
        if absent or (self.layout.mislabelled and list(stored) != wanted):
            fault = f"lacks {', '.join(absent)}" if absent else f"has not the order {', '.join(wanted)}"
            raise TerraFMError(
                f"{path} {fault}, by which {self.task.name} is read; it has {', '.join(stored) or 'nothing'}: fetch it "
                "again."
            )
        return stored

    def _image(self, sensor: str, channels: np.ndarray) -> Tensor:
        image = torch.from_numpy(channels)
        unit = self.units[sensor]
        return missing_as_nan(10 * image.log10() if unit == "power" else image * FACTORS[unit])

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


def open_geobench(
    layout: FileLayout, task: BenchTask, root: Path, split: Split, *, partition: str, bands: Bands
) -> GeoBench:
    """Opens a split of a dataset of GEO-Bench.

    Args:
        layout: The bands in its files.
        task: The task.
        root: The folder that holds ``classification_v1.0`` and ``segmentation_v1.0``, or ``geobench`` with them.
        split: The split.
        partition: The train subset.
        bands: Whether the files' band names are corrected if they are known to be wrong.

    Raises:
        MissingDatasetError: If the dataset is not under ``root``.
        TerraFMError: If a file is damaged or missing.
    """
    sensors = task.labelled if bands == "labelled" and task.labelled is not None else task.sensors
    part = "segmentation" if task.kind == "segmentation" else "classification"
    inner = Path(f"{part}_v1.0", task.name)
    folder = next((path for path in (root / inner, root / "geobench" / inner) if path.is_dir()), None)
    if folder is None:
        raise MissingDatasetError(task, root / inner)
    return GeoBench(replace(task, sensors=sensors), layout, split, folder, partition)


@contextmanager
def open_sample(path: Path) -> "Iterator[tuple[h5py.File, dict[str, Any]]]":
    """Yields the open file and its description: ``bands_order``, ``label`` unless it is a mask, attributes per band.

    The file is opened for one sample at a time, so that loader workers share no handle.

    Raises:
        TerraFMError: If the file is damaged, now or while it is read, or its pickle is not one of GEO-Bench.
    """
    try:
        # Without a lock, which many network file systems refuse; nothing is written.
        with lazy_import("h5py").File(path, "r", locking=False) as file:
            described = load_text(str(file.attrs["pickle"]))
            if not isinstance(described, dict):
                raise PickleError("it describes no bands")
            yield file, described
    except PickleError as error:
        raise TerraFMError(f"{path} has a pickle that was not read, because {error}: fetch the file again.") from error
    except TerraFMError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): it is damaged or incomplete, fetch it again.") from error


def stored_bands(file: "h5py.File", described: dict[str, Any]) -> dict[str, str]:
    """Returns the data set of each band by its plain name, in the writer's order; of several dates the first.

    A dated band's data set is called ``<name>_<date>``. GEO-Bench's own tools read samples of one date only; of more,
    published evaluations took the first data set of a name.

    Args:
        file: The open file, whose own order is alphabetical.
        described: Its description.
    """
    order = described.get("bands_order", list(file))
    bands: dict[str, str] = {}
    for name in order if isinstance(order, list) else ():
        about = described.get(name)
        date = about.get("date") if isinstance(about, dict) else None
        bands.setdefault(str(name) if date is None else str(name).rpartition("_")[0], str(name))
    return bands


def read_channels(file: "h5py.File", names: Sequence[str]) -> np.ndarray:
    """Reads data sets as float32 (C, H, W).

    Raises:
        TerraFMError: If they differ in size, or are no images.
    """
    channels = [np.asarray(file[name][()], np.float32) for name in names]
    shapes = {channel.shape for channel in channels}
    if len(shapes) > 1 or channels[0].ndim != 2:
        raise TerraFMError(
            f"{file.filename} has bands of {', '.join(map(str, sorted(shapes)))}, but one height and width were "
            "expected: fetch the file again."
        )
    return np.stack(channels)


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
    samples = _read_json(path).get("valid" if split == "val" else split)
    if not isinstance(samples, list) or not samples:
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


def read_classes(folder: Path, task: BenchTask) -> tuple[str, ...]:
    """Reads the class names of ``task_specs.pkl``; the task's own if the file has none.

    Raises:
        TerraFMError: If the file is damaged, would run code, or has another number of classes.
    """
    path = folder / "task_specs.pkl"
    if not path.is_file():
        return task.classes
    try:
        specs = load_pickle(path.read_bytes())
    except PickleError as error:
        raise TerraFMError(f"{path} was not read, because {error}: fetch it again.") from error
    label = getattr(specs, "label_type", None)
    count = getattr(label, "n_classes", None)
    if count != len(task.classes):
        raise TerraFMError(f"{path} tells of {count} classes, but {task.name} has {len(task.classes)}: fetch it again.")
    names = getattr(label, "_class_names", None) or getattr(label, "class_name", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) and len(names) == count else task.classes


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
    stats: Mapping[str, Any] = _read_json(path)
    try:
        if unit == "power":
            low, middle, high = (
                [10 * math.log10(stats[name][key]) for name in names]
                for key in ("percentile_5", "median", "percentile_95")
            )
            return torch.tensor(middle), (torch.tensor(high) - torch.tensor(low)) / _MIDDLE_90
        mean, std = (torch.tensor([float(stats[name][key]) for name in names]) for key in ("mean", "std"))
        return mean * FACTORS[unit], std * FACTORS[unit]
    except (KeyError, TypeError, ValueError) as error:
        raise TerraFMError(
            f"{path} lacks statistics of a band ({error!r} met; {', '.join(names)} expected): fetch it again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise TerraFMError(f"{path} holds a {type(content).__name__}, but a JSON object was expected: fetch it again.")
    return content

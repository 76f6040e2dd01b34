"""GEO-Bench v1 from its own files: bands by their true names, this package's units, errors that name the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .files import check_mask, missing_as_nan
from .geobench_folder import find_folder, read_classes, read_partition, read_statistics
from .geobench_layout import FACTORS, LAYOUTS
from .geobench_sample import open_sample, read_channels, read_label, stored_bands
from .task import Bands, BenchDataset, BenchTask, Split


class GeoBench(BenchDataset):
    """One split of a dataset of GEO-Bench v1.

    Bands come by name, except where a dataset's names are known to be wrong (m-eurosat and m-brick-kiln): there the
    position tells which band it is, and ``bands="labelled"`` gives the same pixels by the names of the files, as most
    published evaluations took them.

    Args:
        task: The task; its ``sensors`` are those that are read.
        split: The split.
        folder: The folder of the samples.
        partition: The train subset; the whole where there is none of that name.

    Raises:
        TerraFMError: If a file beside the samples is damaged or missing, or a sample is missing.
    """

    def __init__(self, task: BenchTask, split: Split, folder: Path, partition: str) -> None:
        self.layout = LAYOUTS[task.name]
        source, files = read_partition(folder, split, partition)
        self.names = {
            sensor: self.layout.names[sensor][: len(bands)] for sensor, bands in task.sensors.items()
        }
        self.units = {sensor: self.layout.units.get(sensor, "same") for sensor in self.names}
        stats = {
            sensor: read_statistics(folder, names, self.units[sensor]) for sensor, names in self.names.items()
        }
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
        """A sample.

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
            if all(image.isnan().all() for image in images.values()):
                raise TerraFMError(f"{path} holds no pixel that is a number: fetch it again.")
            if self.task.kind != "segmentation":
                return {**images, "label": self._label(path, read_label(described))}
            mask = torch.from_numpy(file[stored["label"]][()].astype(np.int64))
        size = next(iter(images.values())).shape[1:]
        if mask.shape != size:
            raise TerraFMError(
                f"{path} has a mask of {tuple(mask.shape)} for images of {tuple(size)}: fetch it again."
            )
        return {**images, "mask": check_mask(mask, path, self.task)}

    def targets(self) -> Tensor:
        """Labels of all samples: int64 (n,), or (n, L) of several labels. A train split without a class warns.

        Raises:
            TerraFMError: If a file is damaged, or the task is a segmentation.
        """
        if self.task.kind == "segmentation":
            raise TerraFMError(
                f"{self.task.name} has masks, not labels: use it with a protocol of segmentation."
            )
        labels = []
        for path in self.files:
            with open_sample(path) as (_, described):
                labels.append(self._label(path, read_label(described)))
        target = torch.stack(labels)
        self.warn_of_empty_classes(target)
        return target

    def _check_bands(self, path: Path, stored: dict[str, str]) -> dict[str, str]:
        """``stored``, if it has what is read, in the order that tells the bands where the names do not."""
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

    def _label(self, path: Path, label: np.ndarray) -> Tensor:
        count = len(self.task.classes)
        several = self.task.kind == "multilabel"
        shape, limit = ((count,), 2) if several else ((), count)
        if label.shape != shape or not 0 <= label.min() <= label.max() < limit:
            expected = f"{count} labels of 0 or 1" if several else f"a class from 0 to {count - 1}"
            raise TerraFMError(
                f"{path} has the label {label.tolist()}, but {self.task.name} has {expected}: fetch it again."
            )
        return torch.from_numpy(label.astype(np.int64))


def open_geobench(task: BenchTask, root: Path, split: Split, *, partition: str, bands: Bands) -> GeoBench:
    """Opens a split of a dataset of GEO-Bench.

    Args:
        task: The task.
        root: The folder that holds ``classification_v1.0`` and ``segmentation_v1.0``, or ``geobench`` with them.
        split: The split.
        partition: The train subset.
        bands: Whether the files' band names are corrected where they are known to be wrong.

    Raises:
        MissingDatasetError: If the dataset is not under ``root``.
        TerraFMError: If a file is damaged or missing.
    """
    sensors = task.labelled if bands == "labelled" and task.labelled is not None else task.sensors
    return GeoBench(replace(task, sensors=sensors), split, find_folder(task, root), partition)

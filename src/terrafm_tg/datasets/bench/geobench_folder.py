"""What lies beside GEO-Bench's samples: partitions, band statistics and the description of the task."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .geobench_layout import FACTORS, Unit
from .geobench_pickle import PickleError, load_pickle
from .task import BenchTask, MissingDatasetError, Split

#: Where the whole train split is told, in this order; ``original`` is from before GEO-Bench drew its own.
_WHOLE = ("default", "1.00x_train", "original")
#: Width of the middle 90 % of a normal distribution, in standard deviations.
_MIDDLE_90 = 3.2897


def find_folder(task: BenchTask, root: Path) -> Path:
    """The folder of the dataset's samples: ``<root>[/geobench]/{classification,segmentation}_v1.0/<name>``.

    Raises:
        MissingDatasetError: If there is none.
    """
    part = "segmentation" if task.kind == "segmentation" else "classification"
    inner = Path(f"{part}_v1.0", task.name)
    for folder in (root / inner, root / "geobench" / inner):
        if folder.is_dir():
            return folder
    raise MissingDatasetError(task, root / inner)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise TerraFMError(
            f"{path} holds a {type(content).__name__}, but a JSON object was expected: fetch it again."
        )
    return content


def read_partition(folder: Path, split: Split, partition: str) -> tuple[Path, list[Path]]:
    """The file of the partition, and the samples that it names for ``split``.

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
        raise TerraFMError(
            f"{folder} has no partition, but {paths[0].name} was expected: unpack the dataset again."
        )
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
    """Class names of ``task_specs.pkl``; the task's own where the file has none.

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
        raise TerraFMError(
            f"{path} tells of {count} classes, but {task.name} has {len(task.classes)}: fetch it again."
        )
    names = getattr(label, "_class_names", None) or getattr(label, "class_name", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) and len(names) == count else task.classes


def read_statistics(folder: Path, names: Sequence[str], unit: Unit) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ``band_stats.json``, in the samples' unit.

    Radar's statistics are of linear power, whose mean and deviation say nothing of decibels, but whose percentiles do:
    the median stands for the mean, and the middle 90 % for the deviation.

    Args:
        folder: The dataset's folder.
        names: The bands by the files' names.
        unit: What the files hold.

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

"""A benchmark dataset of a few ``.npy`` files, for what does not depend on a benchmark's own format."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from terrafm_tg.datasets.bench import BenchDataset, BenchTask, open_bench
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.evaluation.protocols import Splits

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
METRICS = {"multiclass": "accuracy", "multilabel": "f1", "segmentation": "miou"}


def tiny_task(sensors: Mapping[str, tuple[str, ...]], kind: str = "multiclass", **settings: Any) -> BenchTask:
    """A task of three classes on images of 32 px."""
    given = {"size": 32, "input_size": 32, "counts": (0, 0, 0), "opener": TinyBench} | settings
    return BenchTask(
        name=f"tiny-{kind}", benchmark="Tiny", kind=kind, classes=("a", "b", "c"), metric=METRICS[kind],
        sensors=sensors, **given,
    )  # fmt: skip


class TinyBench(BenchDataset):
    """One file per sample and sensor."""

    def __init__(self, task: BenchTask, root: Path, images: Mapping[str, Tensor], target: Tensor, split="train"):
        self.root, self.target, self.sensors = root, target, tuple(images)
        paths = [[root / f"{split}_{number}_{sensor}.npy" for sensor in images] for number in range(len(target))]
        for sample, *stacks in zip(paths, *images.values(), strict=True):
            for path, image in zip(sample, stacks, strict=True):
                np.save(path, image.numpy())
        bands = {sensor: stack.transpose(0, -3).flatten(1) for sensor, stack in images.items()}
        super().__init__(
            task,
            split,
            paths,
            {sensor: x.nanmean(1) for sensor, x in bands.items()},
            {sensor: x[:, ~x.isnan().any(0)].std(1) for sensor, x in bands.items()},
        )

    def __len__(self) -> int:
        return len(self.target)

    def read(self, index: int) -> dict[str, Tensor]:
        paths = zip(self.sensors, self.paths[index], strict=True)
        images = {f"image_{sensor}": torch.from_numpy(np.load(path)) for sensor, path in paths}
        return images | {"label": self.target[index]}

    def targets(self) -> Tensor:
        return self.target

    def under(self, task: BenchTask) -> "TinyBench":
        """The same files, called otherwise."""
        other = TinyBench.__new__(TinyBench)
        other.__dict__.update(self.__dict__, task=task)
        return other


def noise(sensor: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Images without meaning, in the sensor's unit."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if sensor == "s1rtc":
        return -15 + 5 * x
    return 1800 + 600 * x if sensor.startswith("s2") else (110 + 40 * x).clamp(0, 255).round()


def tiny_data(
    root: Path, sensors: Mapping[str, tuple[str, ...]], kind: str = "multiclass", count: int = 4, seed: int = 0,
    split: str = "train", **settings: Any,
) -> TinyBench:  # fmt: skip
    """Samples whose classes show in the level of the first three bands of each sensor."""
    task = tiny_task(sensors, kind, **settings)
    generator = torch.Generator().manual_seed(seed)
    several = kind == "multilabel"
    target = torch.randint(2, (count, 3), generator=generator) if several else torch.arange(count) % 3
    shown = target if several else torch.nn.functional.one_hot(target, 3)
    images = {}
    for sensor, bands in sensors.items():
        dates = (task.dates,) if task.dates > 1 else ()
        x = noise(sensor, (count, *dates, len(bands), task.size, task.size), seed)
        level = torch.zeros(count, len(bands))
        level[:, : min(3, len(bands))] = shown[:, : len(bands)].float()
        spread = {"s1rtc": 10.0}.get(sensor, 1200.0 if sensor.startswith("s2") else 80.0)
        images[sensor] = x + spread * level.view(count, *(1 for _ in dates), len(bands), 1, 1)
    return TinyBench(task, root, images, target, split)


def renamed(data: TinyBench, sensors: Mapping[str, tuple[str, ...]]) -> TinyBench:
    """The same pixels under other band names."""
    return data.under(dataclasses.replace(data.task, sensors=sensors))


def open_splits(root: Path, name: str) -> Splits:
    """A benchmark's dataset under a folder."""
    return Splits(*(open_bench(name, root, split) for split in ("train", "val", "test")))


def batch_of(data: TinyBench) -> dict[str, Tensor]:
    """All samples as one batch."""
    return default_collate([data[i] for i in range(len(data))])


def encoder(data: BenchDataset, model: str = "terrafm_nano", **settings: Any) -> BenchEncoder:
    """A model that reads the dataset."""
    return load_encoder(ModelSpec(model, **settings), data.task, data)

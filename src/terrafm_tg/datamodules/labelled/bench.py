"""Any benchmark dataset as normalized batches for TorchGeo's tasks and ours."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torchgeo.datasets import NonGeoDataset

from terrafm_tg.datasets.bench import BenchDataset, BenchTask, get_task, open_bench
from terrafm_tg.datasets.bench.task import Split
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.transforms.normalize import MISSING, Normalize, apply_affine, resize_image, resize_mask
from terrafm_tg.transforms.orient import turn_batch

from .sensors import FullBatches


class BenchDataModule(FullBatches):
    """Batches of a dataset of GEO-Bench, Copernicus-Bench or Landslide4Sense, as the encoder expects them.

    With one sensor the images are in ``image``, as TorchGeo's own tasks want them; with several in
    ``image_<sensor>``. A sensor with a stem of TerraFM comes with that stem's bands and normalization, any other with
    all its bands, brought by the dataset's statistics to the same range (its mean at 0.5, a deviation 0.25).

    Args:
        name: A name of :data:`terrafm_tg.datasets.bench.TASKS`, such as ``"EuroSAT-S2"``.
        root: The folder that holds the benchmarks.
        sensors: Which sensors of the dataset to read; those with a stem where None, or all where none has one.
        bands: Sensor -> bands, in order, instead of the default ones.
        normalization: ``model`` for the encoder's own statistics, ``dataset`` for the dataset's, of every sensor.
        size: Height and width to resize images and masks to; the benchmark's usual one where None, the stored one
            where 0.
        augment: Turn and mirror training samples at random.
        fraction: Share of the training split.
        seed: Which share, where the benchmark has no partition.
        names: Whether wrong band names in the files are ``corrected``, or taken as ``labelled``.
        batch_size: Samples per batch and process.
        num_workers: Processes that read.

    Raises:
        TerraFMError: If the dataset, a sensor or a band is unknown.

    Example:
        >>> data = BenchDataModule("EuroSAT-S2", "data/benchmarks", batch_size=64)
    """

    def __init__(
        self,
        name: str,
        root: str | os.PathLike[str] = "data",
        sensors: list[str] | None = None,
        bands: dict[str, list[str]] | None = None,
        normalization: Literal["model", "dataset"] = "model",
        size: int | None = None,
        augment: bool = True,
        fraction: float = 1.0,
        seed: int = 0,
        names: Literal["corrected", "labelled"] = "corrected",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(cast("type[NonGeoDataset]", NonGeoDataset), batch_size, num_workers)
        self.task = get_task(name)
        if names == "labelled" and self.task.labelled is not None:
            self.task = replace(self.task, sensors=self.task.labelled)
        self.normalization = normalization
        self.size = self.task.input_size if size is None else size
        self.augment = augment
        self.open = partial(open_bench, name, Path(root), fraction=fraction, seed=seed, bands=names)
        self.bands = {
            sensor: _bands(self.task, sensor, (bands or {}).get(sensor), normalization)
            for sensor in _sensors(self.task, sensors)
        }
        surplus = set(bands or {}) - set(self.bands)
        if surplus:
            raise TerraFMError(
                f"`bands` names {', '.join(sorted(surplus))}, but {name} is read from {', '.join(self.bands)}."
            )

    def setup(self, stage: str) -> None:
        """Opens the splits of a stage; ``predict`` reads the test split.

        Raises:
            MissingDatasetError: If the dataset is not under ``root``.
            TerraFMError: If a file is damaged.
        """
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        opened = {split: self.open(split) for split in splits.get(stage, ("test",))}
        for split, dataset in opened.items():
            setattr(self, f"{split}_dataset", dataset)
        self.predict_dataset = opened.get("test")
        some = next(iter(opened.values()))
        self.aug = BenchTransforms(some, self.bands, self.normalization, self.size)
        self.train_aug = BenchTransforms(some, self.bands, self.normalization, self.size, self.augment)
        if len(self.bands) == 1:
            self.mean, self.std = self.aug.mean_std()


class BenchTransforms(nn.Module):
    """Picks bands, normalizes, resizes, and turns training samples; missing pixels get the mean.

    Args:
        data: Has the statistics of its images, and tells the order of their bands.
        bands: Bands to keep, by sensor.
        normalization: ``model`` or ``dataset``; a sensor without a stem has only the latter.
        size: Height and width to resize to; 0 for the stored ones.
        augment: Turn and mirror each sample, its images and its mask alike.
    """

    def __init__(
        self,
        data: BenchDataset,
        bands: Mapping[str, tuple[str, ...]],
        normalization: str = "model",
        size: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.augment = size, augment
        self.columns = {
            sensor: [data.task.sensors[sensor].index(band) for band in chosen] for sensor, chosen in bands.items()
        }
        self.own = {s for s in self.columns if normalization == "model" and s in MODALITIES}
        self.normalize = Normalize(bands={sensor: bands[sensor] for sensor in self.own})
        for sensor in self.columns.keys() - self.own:
            mean, std = (x[sensor][self.columns[sensor]].double() for x in (data.mean, data.std))
            scale = 1 / (4 * std.clamp(min=1e-6))
            self.register_buffer(f"{sensor}_scale", scale.float(), persistent=False)
            self.register_buffer(f"{sensor}_shift", (MISSING - mean * scale).float(), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch ready for a task.

        Args:
            batch: ``image_<sensor>`` (B, C, H, W), or (B, T, C, H, W), in the dataset's unit, and ``label`` or
                ``mask``.

        Returns:
            ``image``, or one ``image_<sensor>`` for each of several, float32; and the target.
        """
        images = {f"image_{sensor}": self._image(batch, sensor) for sensor in self.columns}
        if len(images) == 1:
            images = {"image": next(iter(images.values()))}
        rest = {key: value for key, value in batch.items() if not key.startswith("image")}
        if self.size and "mask" in rest:
            rest["mask"] = resize_mask(rest["mask"], (self.size, self.size))
        return turn_batch(images | rest, images) if self.augment else images | rest

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """The one sensor's normalization as (x - mean) / std, (C,) each, with which TorchGeo undoes it for figures."""
        (sensor,) = self.columns
        scale, shift = self._affine(sensor)
        return -shift / scale, 1 / scale

    def _affine(self, sensor: str) -> tuple[Tensor, Tensor]:
        """Scale and shift of a sensor, (C,) each."""
        module = self.normalize if sensor in self.own else self
        return module.get_buffer(f"{sensor}_scale"), module.get_buffer(f"{sensor}_shift")

    def _image(self, batch: Mapping[str, Tensor], sensor: str) -> Tensor:
        x = batch[f"image_{sensor}"][..., self.columns[sensor], :, :]
        if sensor in self.own:
            y = self.normalize({f"image_{sensor}": x})[f"image_{sensor}"]
        else:
            y = apply_affine(x, *self._affine(sensor), ~torch.isfinite(x))
        return resize_image(y, (self.size, self.size)) if self.size else y


def _sensors(task: BenchTask, wanted: list[str] | None) -> list[str]:
    """The sensors to read.

    Raises:
        TerraFMError: If the task lacks one.
    """
    if wanted is None:
        return [sensor for sensor in task.sensors if sensor in MODALITIES] or list(task.sensors)
    for sensor in wanted or [""]:
        if sensor not in task.sensors:
            raise TerraFMError(f"{task.name} has no sensor {sensor!r}: it has {', '.join(task.sensors)}.")
    return wanted


def _bands(task: BenchTask, sensor: str, wanted: list[str] | None, normalization: str) -> tuple[str, ...]:
    """The bands to keep: by default those of the sensor's stem in its order, or all where it has none.

    Raises:
        TerraFMError: If the task lacks one, or none is named.
    """
    there = task.sensors[sensor]
    if wanted is None:
        stem = MODALITIES[sensor].bands if sensor in MODALITIES and normalization == "model" else there
        return tuple(band for band in stem if band in there)
    for band in wanted or [""]:
        if band not in there:
            raise TerraFMError(f"{task.name} has no band {band!r} in {sensor}: it has {', '.join(there)}.")
    return tuple(wanted)

"""Labeled TorchGeo datasets of one sensor, several, or two dates, as normalized batches."""

import os
from collections.abc import Mapping, Sequence, Sized
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchgeo.datamodules import NonGeoDataModule, OSCDDataModule
from torchgeo.datasets import OSCD, NonGeoDataset

from terrafm_tg.datasets.labelled import SensorPairs
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L1C, get_modalities, get_modality
from terrafm_tg.transforms import Normalize
from terrafm_tg.transforms.orient import ORIENTATIONS, orient
from terrafm_tg.transforms.statistics import Statistics, find_statistics
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SHARE, checked


class SensorTransforms(nn.Module):
    """Normalizes a batch's images, resizes them, and turns each sample at random in training.

    Args:
        bands: Bands of each sensor's images, by modality, in the order of their channels.
        image: Which sensor the key ``image`` is of.
        size: Height and width to resize to; as they are where None. Masks are resized by nearest neighbor.
        augment: Turn and mirror each sample, its images and its mask alike; nothing else changes.
        radar_unit: Unit of Sentinel-1: ``dB``, or ``linear`` power.
        statistics: As for :class:`~terrafm_tg.transforms.Normalize`.
    """

    def __init__(
        self,
        bands: Mapping[str, Sequence[str]],
        image: str | None = None,
        size: int | None = None,
        augment: bool = False,
        radar_unit: Literal["dB", "linear"] = "dB",
        statistics: Statistics | str | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(image, dict(bands), size, statistics)
        self.units = {modality.key: modality.unit for modality in MODALITIES.values()}
        if image is not None:
            self.units["image"] = MODALITIES[image].unit
        self.augment = augment
        self.linear = radar_unit == "linear"

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Transforms a batch.

        Args:
            batch: Images (B, C, H, W) or, of several dates, (B, T, C, H, W); perhaps ``mask`` (B, H, W).

        Returns:
            A new dict with float32 images.

        Raises:
            TerraFMError: If a channel count is not the number of bands, or no image is there.
        """
        images = {key: batch[key] for key in self.units if key in batch}
        if self.linear:
            images |= {k: 10 * x.log10() for k, x in images.items() if self.units[k] == "dB"}
        batch = self.normalize(batch | images)
        if self.augment:
            turned = [*images, *(["mask"] if "mask" in batch else [])]
            ways = torch.randint(ORIENTATIONS, (len(batch[turned[0]]),))
            batch |= {key: orient(batch[key], ways) for key in turned}
        return batch

    def mean_std(self, modality: str) -> tuple[Tensor, Tensor]:
        """The normalization as (x - mean) / std, (C,) each, with which TorchGeo's tasks undo it for their figures."""
        scale, shift = (self.normalize.get_buffer(f"{modality}_{part}") for part in ("scale", "shift"))
        return -shift / scale, 1 / scale


@checked(size=COUNT, batch_size=COUNT, num_workers=NOT_NEGATIVE)
class SensorDataModule(NonGeoDataModule):
    """Batches for fine-tuning from TorchGeo datasets, normalized as the encoder expects.

    With one sensor the images are in ``image``, as TorchGeo's own tasks want them; with several in
    ``image_<modality>``.

    Args:
        datasets: Modality -> dataset class with ``split`` (train, val, test) and ``bands``, such as
            ``{"s2l1c": torchgeo.datasets.EuroSAT}``. Several must list the same places in the same order.
        root: Folder of the data.
        bands: Modality -> bands to read, in order; by default all that the modality's stem has.
        size: Height and width to resize images and masks to, a multiple of 16; as they are where None.
        augment: Turn and mirror training samples at random.
        radar_unit: Unit of Sentinel-1 in the files: ``dB``, or ``linear`` power.
        batch_size: Samples per batch and process.
        num_workers: Processes that read.
        options: Further arguments of the dataset classes, such as ``{"num_classes": 43}``.
        statistics: Mean and standard deviation that the encoder was trained with where these are not the published
            ones: its file, that of ``terrafm stats``, or a mapping.

    Raises:
        TerraFMError: If a modality, band or size is impossible.

    Example:
        >>> from torchgeo.datasets import EuroSAT
        >>> data = SensorDataModule({"s2l1c": EuroSAT}, "data/eurosat", size=224, batch_size=64)
    """

    def __init__(
        self,
        datasets: dict[str, type[NonGeoDataset]],
        root: str | os.PathLike[str] = "data",
        bands: dict[str, list[str]] | None = None,
        size: int | None = None,
        augment: bool = True,
        radar_unit: Literal["dB", "linear"] = "dB",
        batch_size: int = 64,
        num_workers: int = 0,
        options: dict[str, Any] | None = None,
        statistics: dict[str, Any] | str | None = None,
    ) -> None:
        sensors = get_modalities(list(datasets))
        self.bands = {m.name: _known(m.name, (bands or {}).get(m.name)) for m in sensors}
        surplus = set(bands or {}) - set(self.bands)
        if surplus:
            raise TerraFMError(
                f"`bands` names {', '.join(sorted(surplus))}, of which there is no dataset: give one in `datasets`."
            )
        if size is not None and (size <= 0 or size % 16):
            raise TerraFMError(f"`size` is {size}: the encoder cuts patches of 16 px, so set a multiple of 16.")
        super().__init__(datasets[sensors[0].name], batch_size, num_workers)
        self.datasets = {m.name: datasets[m.name] for m in sensors}
        self.options = {"root": root, **(options or {})}
        single = sensors[0] if len(sensors) == 1 else None
        how: dict[str, Any] = {"image": single and single.name, "size": size, "radar_unit": radar_unit}
        how["statistics"] = find_statistics(statistics)
        self.aug = SensorTransforms(self.bands, **how)
        self.train_aug = SensorTransforms(self.bands, augment=augment, **how)
        if single is not None:
            self.mean, self.std = self.aug.mean_std(single.name)

    def prepare_data(self) -> None:
        """Downloads what is missing where ``options`` has ``download``."""
        if self.options.get("download"):
            for split in ("train", "val", "test"):
                self.make_dataset(split)

    def setup(self, stage: str) -> None:
        """Opens the datasets of a stage; ``predict`` reads the test split."""
        if stage == "fit":
            self.train_dataset = self.make_dataset("train")
        if stage in ("fit", "validate"):
            self.val_dataset = self.make_dataset("val")
        if stage in ("test", "predict"):
            self.test_dataset = self.predict_dataset = self.make_dataset("test")

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches; the last one is left out if it is smaller.

        Raises:
            TerraFMError: If there are fewer training samples than a batch has.
        """
        loader = super().train_dataloader()
        if not len(loader):
            count = len(cast("Sized", loader.dataset))
            raise TerraFMError(
                f"`batch_size` is {self.batch_size}, but there are only {count} training samples: lower it."
            )
        return loader

    def make_dataset(self, split: str) -> NonGeoDataset:
        """The samples of a split, as the files hold them.

        Raises:
            DatasetNotFoundError: If the data are not there.
            TerraFMError: If the sensors' datasets do not fit together.
        """
        parts = {name: self._open(name, dataset, split) for name, dataset in self.datasets.items()}
        return next(iter(parts.values())) if len(parts) == 1 else SensorPairs(parts)

    def _open(self, modality: str, dataset: type[NonGeoDataset], split: str) -> NonGeoDataset:
        arguments = {"split": split, "bands": self.bands[modality], **self.options}
        try:
            return dataset(**arguments)
        except (AssertionError, TypeError) as error:  # TorchGeo checks arguments by assertions
            raise TerraFMError(
                f"{dataset.__name__} refuses one of split {split!r}, bands {', '.join(self.bands[modality])} and "
                f"`options` ({str(error) or 'a check of it fails'}): correct `options`, or give a dataset with `root`, "
                "`split` and `bands`, which are names of bands."
            ) from error


def _known(modality: str, bands: Sequence[str] | None) -> tuple[str, ...]:
    """The bands by their usual names, all of the modality's where None."""
    sensor = get_modality(modality)
    return sensor.bands if bands is None else tuple(sensor.bands[i] for i in sensor.band_indices(bands))


def _crop(sample: dict[str, Any], size: int, random: bool) -> dict[str, Any]:
    """Cuts the same square out of both dates, ``image`` (..., H, W), and the ``mask`` (..., H, W).

    Args:
        sample: A sample of two dates.
        size: Height and width in pixels.
        random: Anywhere; otherwise from the middle.

    Raises:
        TerraFMError: If the image is smaller than the crop.
    """
    height, width = sample["image"].shape[-2:]
    if min(height, width) < size:
        raise TerraFMError(f"A region of {height}x{width} px is smaller than `patch_size` {size}: lower it.")
    free = (height - size + 1, width - size + 1)
    top, left = (int(torch.randint(n, ())) if random else (n - 1) // 2 for n in free)
    return sample | {key: sample[key][..., top : top + size, left : left + size] for key in ("image", "mask")}


@checked(patch_size=COUNT, crops=COUNT, val_split_pct=SHARE, batch_size=COUNT, num_workers=NOT_NEGATIVE)
class SensorOSCDDataModule(OSCDDataModule):
    """OSCD (Sentinel-2 L1C, two dates) with TerraFM's bands and normalization.

    TorchGeo's own crops by kornia, whose version 0.9 no longer takes one mask for two dates. Here training sees
    random crops, several of each region; validation and test see the middle of each, so that scores repeat.

    Args:
        root: Folder of the data.
        bands: Bands to read, in order; all that the L1C stem has by default.
        patch_size: Height and width of the crops in pixels, a multiple of 16.
        crops: Random crops of each training region in an epoch.
        augment: Turn and mirror training samples at random.
        val_split_pct: Share of the training regions that validates.
        batch_size: Samples per batch and process.
        num_workers: Processes that read.
        download: Fetch what is missing.

    Raises:
        TerraFMError: If a band is unknown, or a region is smaller than a crop.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "data/oscd",
        bands: Sequence[str] | None = None,
        patch_size: int = 224,
        crops: int = 16,
        augment: bool = True,
        val_split_pct: float = 0.2,
        batch_size: int = 32,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        names = _known(S2L1C.name, bands)
        files = {"root": root, "bands": names, "download": download, "checksum": True}
        super().__init__(batch_size, patch_size, val_split_pct, num_workers, **files)
        self.middle, self.anywhere = (partial(_crop, size=patch_size, random=random) for random in (False, True))
        self.crops = crops
        self.aug = SensorTransforms({S2L1C.name: names}, image=S2L1C.name)
        self.train_aug = SensorTransforms({S2L1C.name: names}, image=S2L1C.name, augment=augment)
        self.mean, self.std = self.aug.mean_std(S2L1C.name)

    def setup(self, stage: str) -> None:
        """Opens the datasets of a stage; ``predict`` reads the test split."""
        if stage in ("fit", "validate"):
            train = OSCD(split="train", transforms=self.anywhere, **self.kwargs)
            val = OSCD(split="train", transforms=self.middle, **self.kwargs)
            shares = [1 - self.val_split_pct, self.val_split_pct]
            parts = random_split(cast("Dataset[int]", range(len(train))), shares, torch.Generator().manual_seed(0))
            self.train_dataset = Subset(train, list(parts[0].indices) * self.crops)
            self.val_dataset = Subset(val, parts[1].indices)
        if stage in ("test", "predict"):
            self.test_dataset = self.predict_dataset = OSCD(split="test", transforms=self.middle, **self.kwargs)

"""Any TorchGeo dataset with labels or masks, of one sensor or several, as normalised batches."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal

from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from terrafm_tg.datasets.labelled.sensor_pairs import SensorPairs
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modalities, get_modality

from .transforms import SensorTransforms


class FullBatches(NonGeoDataModule):
    """A datamodule that says so where a batch is larger than the training split."""

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled batches; the last one is left out if it is smaller.

        Raises:
            TerraFMError: If there are fewer training samples than a batch has.
        """
        loader = super().train_dataloader()
        if not len(loader):
            raise TerraFMError(
                f"`batch_size` is {self.batch_size}, but there are only {len(loader.dataset)} training samples: "
                "lower it."
            )
        return loader


class SensorDataModule(FullBatches):
    """Batches for fine-tuning from TorchGeo datasets, normalised as the encoder expects.

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
    ) -> None:
        sensors = get_modalities(list(datasets))
        self.bands = {m.name: _known(m.name, (bands or {}).get(m.name)) for m in sensors}
        surplus = set(bands or {}) - set(self.bands)
        if surplus:
            raise TerraFMError(
                f"`bands` names {', '.join(sorted(surplus))}, of which there is no dataset: give one in `datasets`."
            )
        if size is not None and (size <= 0 or size % 16):
            raise TerraFMError(
                f"`size` is {size}: the encoder cuts patches of 16 px, so set a multiple of 16."
            )
        super().__init__(NonGeoDataset, batch_size, num_workers)
        self.datasets = {m.name: datasets[m.name] for m in sensors}
        self.options = {"root": root, **(options or {})}
        single = sensors[0] if len(sensors) == 1 else None
        how: dict[str, Any] = {"image": single and single.name, "size": size, "radar_unit": radar_unit}
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
        known = inspect.signature(dataset).parameters
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise TerraFMError(
                f"{dataset.__name__} has no argument {unknown[0]!r}, only {', '.join(known)}: correct `options`, or "
                "give a dataset with `root`, `split` and `bands`."
            )
        try:
            return dataset(**arguments)
        except AssertionError as error:  # so TorchGeo checks arguments
            raise TerraFMError(
                f"{dataset.__name__} refuses one of split {split!r}, bands {', '.join(self.bands[modality])} and "
                "`options`: its `bands` must be names of bands."
            ) from error


def _known(modality: str, bands: Sequence[str] | None) -> tuple[str, ...]:
    """The bands by their usual names, all of the modality's where None."""
    sensor = get_modality(modality)
    return sensor.bands if bands is None else tuple(sensor.bands[i] for i in sensor.band_indices(bands))

"""Labelled datasets of one sensor each, as the encoder reads them, and pairs of them of the same places."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from rasterio.enums import Resampling
from torch import Tensor
from torchgeo.datasets import (
    BigEarthNet,
    CopernicusBenchBase,
    CopernicusBenchDFC2020S1,
    CopernicusBenchDFC2020S2,
    NonGeoDataset,
)

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L2A, Modality, get_modalities, get_modality
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.trust import below, check_names, open_image

#: Value of pixels that loss and metrics leave out.
IGNORED = 255

#: Classes of the files (0 to 10) that count, in their order; background, savanna and snow do not occur or are left out.
FILE_CLASSES = (1, 2, 4, 5, 6, 7, 9, 10)

_TABLE = torch.full((256,), IGNORED)
_TABLE[list(FILE_CLASSES)] = torch.arange(len(FILE_CLASSES))


class _BigEarthNetSensor(BigEarthNet):
    """One sensor of BigEarthNet v1, with named bands at 120x120 px."""

    modality: ClassVar[Modality]
    sensor: ClassVar[Literal["s1", "s2"]]

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        split: Literal["train", "val", "test"] = "train",
        bands: Sequence[str] | None = None,
        num_classes: Literal[19, 43] = 19,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        columns = self.modality.band_indices(self.modality.bands if bands is None else bands)
        self.band_names = [self.modality.bands[i] for i in columns]
        super().__init__(root, split, self.sensor, num_classes, transforms, download, checksum)
        check_names((below(folder[self.sensor], root) for folder in self.folders), f"The list of the {split} split")

    def _load_image(self, index: int) -> Tensor:
        """The bands by name, (C, 120, 120), float32."""
        folder = self.folders[index][self.sensor]
        images = []
        for band in self.band_names:
            path = Path(folder, f"{Path(folder).name}_{band}.tif")
            if not path.exists():
                raise TerraFMError(f"There is no band {band} in {folder}: extract that patch again.")
            with open_image(path) as file:
                image = file.read(1, out_shape=self.image_size, out_dtype="float32", resampling=Resampling.bilinear)
            images.append(image)
        return torch.from_numpy(np.stack(images))


@checked()
class BigEarthNetS1(_BigEarthNetSensor):
    """Sentinel-1 of BigEarthNet v1 in decibels: ``image`` (2, 120, 120) and ``label`` (zeros and ones).

    TorchGeo's ``BigEarthNet(bands="s1")`` rounds decibels to whole numbers, and gives VH before VV,
    as the files sort.

    Args:
        root: Folder that holds ``BigEarthNet-S1-v1.0``, ``BigEarthNet-v1.0`` and the lists of the splits.
        split: ``train``, ``val`` or ``test``.
        bands: Any of VV and VH in any order; both by default.
        num_classes: 19 or 43.
        transforms: Applied to each sample.
        download: Fetch what is missing.
        checksum: Check what was fetched.

    Raises:
        DatasetNotFoundError: If it is not there and ``download`` is not set.
        TerraFMError: If a band is unknown.
    """

    modality = S1RTC
    sensor = "s1"


@checked()
class BigEarthNetS2(_BigEarthNetSensor):
    """Sentinel-2 L2A of BigEarthNet v1 in digital numbers: ``image`` (12, 120, 120) and ``label`` (zeros and ones).

    Arguments are those of :class:`BigEarthNetS1`; ``bands`` are any of the 12.
    """

    modality = S2L2A
    sensor = "s2"


class _EightClasses(CopernicusBenchBase):
    """Masks of classes 0 to 7, and 255 for what is left out, where TorchGeo gives the files' own codes, 0 to 10."""

    def __init_subclass__(cls) -> None:
        cls.classes = tuple(CopernicusBenchDFC2020S1.classes[i] for i in FILE_CLASSES)

    @wraps(CopernicusBenchBase.__init__)  # type: ignore[misc]  # mypy knows no decorated __init__
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:
            if type(error) is not ValueError:  # of `list.index`; pandas has some for damaged lists
                raise
            raise TerraFMError(f"`bands`: {error}; give any of {', '.join(self.all_bands)}.") from error

    def _load_mask(self, path: str) -> dict[str, Any]:
        return {"mask": _TABLE[super()._load_mask(path)["mask"]]}


@checked()
class DFC2020S1(_EightClasses, CopernicusBenchDFC2020S1):
    """Sentinel-1 of DFC2020 (dB) with masks of classes 0 to 7, and 255 for what is left out.

    TorchGeo's class gives the files' own codes, 0 to 10. Arguments are those of
    :class:`torchgeo.datasets.CopernicusBenchDFC2020S1`.
    """


@checked()
class DFC2020S2(_EightClasses, CopernicusBenchDFC2020S2):
    """Sentinel-2 L1C of DFC2020 (digital numbers) with the masks of :class:`DFC2020S1`."""


@checked()
class SensorPairs(NonGeoDataset):
    """Joins datasets whose sample of one index is of one place, such as BigEarthNet's two sensors.

    A sample has ``image_<modality>`` for each, and label or mask from the first. They must be the same in all.

    Args:
        datasets: Modality -> TorchGeo dataset with samples of ``image`` and ``label`` or ``mask``.

    Raises:
        TerraFMError: If a modality is unknown, or the datasets differ in length.
    """

    def __init__(self, datasets: Mapping[str, NonGeoDataset]) -> None:
        self.datasets = {m.name: datasets[m.name] for m in get_modalities(list(datasets))}
        lengths = {name: len(dataset) for name, dataset in self.datasets.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise TerraFMError(
                f"The sensors' datasets differ in length ({text}): give lists of the same places for each."
            )

    def __len__(self) -> int:
        """Number of places."""
        return len(next(iter(self.datasets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The images of one place.

        Raises:
            TerraFMError: If label or mask differ between the sensors.
        """
        joined: dict[str, Any] = {}
        for name, dataset in self.datasets.items():
            sample = dict(dataset[index])
            image = sample.pop("image")
            for key in ("label", "mask"):
                if key in joined and not torch.equal(torch.as_tensor(joined[key]), torch.as_tensor(sample[key])):
                    raise TerraFMError(
                        f"Sample {index} has another {key} in {name} than in {next(iter(self.datasets))}: the "
                        "datasets do not list the same places in the same order."
                    )
            joined = {get_modality(name).key: image} | sample | joined
        return joined

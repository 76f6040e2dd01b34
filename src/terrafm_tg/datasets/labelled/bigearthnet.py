"""BigEarthNet's sensors one by one, as the encoder reads them."""

import glob
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import rasterio
import torch
from rasterio.enums import Resampling
from torch import Tensor
from torchgeo.datasets import BigEarthNet

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L2A, Modality


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

    def _load_image(self, index: int) -> Tensor:
        """The bands by name, (C, 120, 120), float32."""
        folder = self.folders[index][self.sensor]
        images = []
        for band in self.band_names:
            paths = glob.glob(os.path.join(glob.escape(folder), f"*_{band}.tif"))
            if not paths:
                raise TerraFMError(f"There is no band {band} in {folder}: extract that patch again.")
            with rasterio.open(paths[0]) as file:
                image = file.read(
                    1, out_shape=self.image_size, out_dtype="float32", resampling=Resampling.bilinear
                )
            images.append(image)
        return torch.from_numpy(np.stack(images))


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


class BigEarthNetS2(_BigEarthNetSensor):
    """Sentinel-2 L2A of BigEarthNet v1 in digital numbers: ``image`` (12, 120, 120) and ``label`` (zeros and ones).

    Args:
        root: Folder that holds ``BigEarthNet-v1.0`` and the lists of the splits.
        split: ``train``, ``val`` or ``test``.
        bands: Any of the 12 bands in any order; all by default.
        num_classes: 19 or 43.
        transforms: Applied to each sample.
        download: Fetch what is missing.
        checksum: Check what was fetched.

    Raises:
        DatasetNotFoundError: If it is not there and ``download`` is not set.
        TerraFMError: If a band is unknown.
    """

    modality = S2L2A
    sensor = "s2"

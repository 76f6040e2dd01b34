"""Change detection on OSCD, normalised as the encoder expects."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Subset, random_split
from torchgeo.datamodules import OSCDDataModule
from torchgeo.datasets import OSCD

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S2L1C

from .transforms import SensorTransforms


class Crop:
    """Cuts the same square out of both dates and the mask.

    Args:
        size: Height and width in pixels.
        random: Anywhere; otherwise from the middle.
    """

    def __init__(self, size: int, random: bool) -> None:
        self.size = size
        self.random = random

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Crops ``image`` (..., H, W) and ``mask`` (..., H, W).

        Raises:
            TerraFMError: If the image is smaller than the crop.
        """
        height, width = sample["image"].shape[-2:]
        if min(height, width) < self.size:
            raise TerraFMError(
                f"A region of {height}x{width} px is smaller than `patch_size` {self.size}: lower it."
            )
        free = (height - self.size + 1, width - self.size + 1)
        top, left = (int(torch.randint(n, ())) if self.random else (n - 1) // 2 for n in free)
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        return sample | {key: sample[key][..., rows, columns] for key in ("image", "mask")}


class SensorOSCDDataModule(OSCDDataModule):
    """OSCD (Sentinel-2 L1C, two dates) with TerraFM's bands and normalisation.

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
        checksum: Check what was fetched.

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
        checksum: bool = True,
    ) -> None:
        names = tuple(S2L1C.bands[i] for i in S2L1C.band_indices(S2L1C.bands if bands is None else bands))
        files = {"root": root, "bands": names, "download": download, "checksum": checksum}
        super().__init__(batch_size, patch_size, val_split_pct, num_workers, **files)
        self.crop = patch_size
        self.crops = crops
        self.aug = SensorTransforms({S2L1C.name: names}, image=S2L1C.name)
        self.train_aug = SensorTransforms({S2L1C.name: names}, image=S2L1C.name, augment=augment)
        self.mean, self.std = self.aug.mean_std(S2L1C.name)

    def setup(self, stage: str) -> None:
        """Opens the datasets of a stage; ``predict`` reads the test split."""
        middle = Crop(self.crop, random=False)
        if stage in ("fit", "validate"):
            train = OSCD(split="train", transforms=Crop(self.crop, random=True), **self.kwargs)
            val = OSCD(split="train", transforms=middle, **self.kwargs)
            shares = [1 - self.val_split_pct, self.val_split_pct]
            parts = random_split(range(len(train)), shares, torch.Generator().manual_seed(0))
            self.train_dataset = Subset(train, list(parts[0].indices) * self.crops)
            self.val_dataset = Subset(val, parts[1].indices)
        if stage in ("test", "predict"):
            self.test_dataset = self.predict_dataset = OSCD(split="test", transforms=middle, **self.kwargs)

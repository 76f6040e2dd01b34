"""DFC2020 with the eight classes that its benchmarks score."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchgeo.datasets import CopernicusBenchDFC2020S1, CopernicusBenchDFC2020S2

#: Value of pixels that loss and metrics leave out.
IGNORED = 255

#: Classes of the files (0 to 10) that count, in their order; background, savanna and snow do not occur or are left out.
FILE_CLASSES = (1, 2, 4, 5, 6, 7, 9, 10)


def _eight_classes(mask: Tensor) -> Tensor:
    table = torch.full((256,), IGNORED)
    table[list(FILE_CLASSES)] = torch.arange(len(FILE_CLASSES))
    return table[mask]


class DFC2020S1(CopernicusBenchDFC2020S1):
    """Sentinel-1 of DFC2020 (dB) with masks of classes 0 to 7, and 255 for what is left out.

    TorchGeo's class gives the files' own codes, 0 to 10. Arguments are those of
    :class:`torchgeo.datasets.CopernicusBenchDFC2020S1`.
    """

    classes: ClassVar[tuple[str, ...]] = tuple(CopernicusBenchDFC2020S1.classes[i] for i in FILE_CLASSES)

    def _load_mask(self, path: str) -> dict[str, Any]:
        return {"mask": _eight_classes(super()._load_mask(path)["mask"])}


class DFC2020S2(CopernicusBenchDFC2020S2):
    """Sentinel-2 L1C of DFC2020 (digital numbers) with masks of classes 0 to 7, and 255 for what is left out.

    TorchGeo's class gives the files' own codes, 0 to 10. Arguments are those of
    :class:`torchgeo.datasets.CopernicusBenchDFC2020S2`.
    """

    classes: ClassVar[tuple[str, ...]] = DFC2020S1.classes

    def _load_mask(self, path: str) -> dict[str, Any]:
        return {"mask": _eight_classes(super()._load_mask(path)["mask"])}

"""DFC2020 with the eight classes that its benchmarks score."""

from typing import Any, ClassVar

import torch
from torchgeo.datasets import CopernicusBenchBase, CopernicusBenchDFC2020S1, CopernicusBenchDFC2020S2

#: Value of pixels that loss and metrics leave out.
IGNORED = 255

#: Classes of the files (0 to 10) that count, in their order; background, savanna and snow do not occur or are left out.
FILE_CLASSES = (1, 2, 4, 5, 6, 7, 9, 10)

_TABLE = torch.full((256,), IGNORED)
_TABLE[list(FILE_CLASSES)] = torch.arange(len(FILE_CLASSES))


class _EightClasses(CopernicusBenchBase):
    """Masks of classes 0 to 7, and 255 for what is left out, where TorchGeo gives the files' own codes, 0 to 10."""

    classes: ClassVar[tuple[str, ...]] = tuple(CopernicusBenchDFC2020S1.classes[i] for i in FILE_CLASSES)

    def _load_mask(self, path: str) -> dict[str, Any]:
        return {"mask": _TABLE[super()._load_mask(path)["mask"]]}


class DFC2020S1(_EightClasses, CopernicusBenchDFC2020S1):
    """Sentinel-1 of DFC2020 (dB) with masks of classes 0 to 7, and 255 for what is left out.

    TorchGeo's class gives the files' own codes, 0 to 10. Arguments are those of
    :class:`torchgeo.datasets.CopernicusBenchDFC2020S1`.
    """


class DFC2020S2(_EightClasses, CopernicusBenchDFC2020S2):
    """Sentinel-2 L1C of DFC2020 (digital numbers) with masks of classes 0 to 7, and 255 for what is left out.

    TorchGeo's class gives the files' own codes, 0 to 10. Arguments are those of
    :class:`torchgeo.datasets.CopernicusBenchDFC2020S2`.
    """

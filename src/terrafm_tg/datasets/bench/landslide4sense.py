"""Landslide4Sense: landslides in Sentinel-2 L1C, slope and elevation, in the HDF5 files of the challenge."""

import re
from pathlib import Path

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.trust import open_hdf5

from .task import BenchDataset, BenchTask, Split, find_below, naming

#: Channels of the files in order: Sentinel-2 L1C without B8A, then slope in degrees and elevation in meters.
_OPTICS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12")
_TERRAIN = ("slope", "elevation")

#: By what the files' values are divided, per channel: times this they are digital numbers, degrees and meters again
#: (the challenge's authors in issue 4 of its repository, iarai/Landslide4Sense-2022).
SCALE = (
    1111.81236406, 824.63171476, 663.41636217, 445.17289745, 645.8582926, 1547.73508126, 1960.44401001,
    1941.32229668, 674.07572865, 9.04787384, 1113.98338755, 519.90397929, 20.29228266, 772.83144788,
)  # fmt: skip

#: Mean and standard deviation of the training files' values, as entries to the challenge state them.
MEAN = (
    0.9257, 0.9227, 0.9541, 0.9596, 1.0228, 1.0426, 1.0358, 1.0468, 1.1699, 1.1736, 1.0495, 1.0370, 1.2511, 1.6495,
)  # fmt: skip
STD = (
    0.1410, 0.2207, 0.3184, 0.5724, 0.4601, 0.4465, 0.4651, 0.4948, 0.5133, 0.6836, 0.5323, 0.6628, 0.6784, 1.0727,
)  # fmt: skip

#: Folder of the images and masks of each split.
FOLDERS = {"train": "TrainData", "val": "ValidData", "test": "TestData"}


class Landslide4Sense(BenchDataset):
    """One split: ``image_s2l1c`` (12, 128, 128), ``image_terrain`` (2, 128, 128) and ``mask`` of 0 and 1.

    Args:
        task: The task.
        root: The folder of all benchmarks, or that of this one.
        split: The split.
        partition: Has no effect: the benchmark has none.

    Raises:
        MissingDatasetError: If the split is not under ``root``.
        TerraFMError: If an image has no mask.
    """

    def __init__(self, task: BenchTask, root: Path, split: Split, partition: str) -> None:
        folder = find_below(root, f"{FOLDERS[split]}/img")
        if folder is None:
            raise task.missing(root / "landslide4sense" / FOLDERS[split] / "img")
        mask_folder = folder.with_name("mask")
        images, masks = _numbered(folder, "image"), _numbered(mask_folder, "mask")
        without = [path for number, path in images.items() if number not in masks]
        if without:
            raise TerraFMError(
                f"{without[0]} has no mask in {mask_folder} (nor have {len(without) - 1} more of {len(images)}): the "
                "challenge left out those of validation and test, which https://zenodo.org/records/10463239 has."
            )
        self.widths = [len(bands) for bands in task.sensors.values()]
        self.scale = torch.tensor(SCALE)
        mean, std = (self.scale * torch.tensor(values) for values in (MEAN, STD))
        super().__init__(
            task,
            split,
            [[path, masks[number]] for number, path in images.items()],
            dict(zip(task.sensors, mean.split(self.widths), strict=True)),
            dict(zip(task.sensors, std.split(self.widths), strict=True)),
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Reads a sample in digital numbers, degrees and meters.

        Raises:
            TerraFMError: If one of its files is damaged, or its pixels are of another shape.
        """
        image, mask = (_read(path, key) for path, key in zip(self.paths[index], ("img", "mask"), strict=True))
        if image.ndim != 3 or image.shape[-1] != len(SCALE):
            raise TerraFMError(
                f"{self.paths[index][0]} holds pixels of the shape {tuple(image.shape)}, but Landslide4Sense has "
                f"(height, width, {len(SCALE)}) with {', '.join([*_OPTICS, *_TERRAIN])}: fetch it again."
            )
        parts = (image.float() * self.scale).permute(2, 0, 1).split(self.widths)
        images = {f"image_{name}": part.contiguous() for name, part in zip(self.task.sensors, parts, strict=True)}
        return images | {"mask": mask.long()}


def _read(path: Path, key: str) -> Tensor:
    """Reads a whole data set of an HDF5 file."""
    with naming(path), open_hdf5(path) as file:
        return torch.from_numpy(file[key][()])


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    """Returns the files ``<kind>_<number>.h5`` of a folder by number, in that order."""
    found = ((re.fullmatch(rf"{kind}_(\d+)\.h5", path.name), path) for path in folder.glob(f"{kind}_*.h5"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


LANDSLIDE4SENSE = BenchTask(
    name="landslide4sense",
    benchmark="Landslide4Sense",
    kind="segmentation",
    classes=("non-landslide", "landslide"),
    metric="miou",
    sensors={"s2l1c": _OPTICS, "terrain": _TERRAIN},
    size=128,
    input_size=128,
    counts=(3799, 245, 800),
    where="unpack TrainData, ValidData and TestData of https://zenodo.org/records/10463239 into landslide4sense in the "
    "folder of the benchmarks.",
    opener=Landslide4Sense,
)

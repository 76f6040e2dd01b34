"""Landslide4Sense: landslides in Sentinel-2 L1C, slope and elevation, in the HDF5 files of the challenge."""

import re
from pathlib import Path

import torch
from torch import Tensor
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError

from .task import Bands, BenchDataset, BenchTask, MissingDatasetError, Split, check_images, check_mask, missing_as_nan

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

#: Folders of images and of masks per split: the challenge's, and those of the copy that Prithvi's authors published.
LAYOUTS = (
    {split: (f"{name}/img", f"{name}/mask")
     for split, name in (("train", "TrainData"), ("val", "ValidData"), ("test", "TestData"))},
    {split: (f"images/{name}", f"annotations/{name}")
     for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))},
)  # fmt: skip

#: Folders under the benchmarks' root in which the data may lie, besides the root itself.
FOLDERS = ("landslide4sense", "Landslide4Sense", "Landslide4sense", "")


class Landslide4Sense(BenchDataset):
    """One split: ``image_s2l1c`` (12, 128, 128), ``image_terrain`` (2, 128, 128) and ``mask`` of 0 and 1.

    Args:
        task: The task.
        split: The split.
        images: HDF5 files with ``img`` (H, W, 14).
        masks: HDF5 files with ``mask`` (H, W), in the same order.
    """

    def __init__(self, task: BenchTask, split: Split, images: list[Path], masks: list[Path]) -> None:
        self.widths = [len(bands) for bands in task.sensors.values()]
        self.scale = torch.tensor(SCALE)[:, None, None]
        mean, std = (torch.tensor(SCALE) * torch.tensor(values) for values in (MEAN, STD))
        super().__init__(
            task,
            split,
            [*images, *masks],
            dict(zip(task.sensors, mean.split(self.widths), strict=True)),
            dict(zip(task.sensors, std.split(self.widths), strict=True)),
        )
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A sample in digital numbers, degrees and meters.

        Raises:
            TerraFMError: If one of its files is damaged, or its pixels are of another shape.
        """
        image, mask = _read(self.images[index], "img"), _read(self.masks[index], "mask")
        if image.ndim != 3 or image.shape[-1] != len(SCALE):
            raise TerraFMError(
                f"{self.images[index]} holds pixels of the shape {tuple(image.shape)}, but Landslide4Sense has "
                f"(height, width, {len(SCALE)}) with {', '.join([*_OPTICS, *_TERRAIN])}: fetch it again."
            )
        if image.shape[:2] != mask.shape:
            raise TerraFMError(
                f"{self.masks[index]} is {tuple(mask.shape)}, but its image {tuple(image.shape[:2])}: fetch both again."
            )
        pixels = missing_as_nan(image.permute(2, 0, 1).float() * self.scale)
        check_images([pixels], self.images[index])
        sensors = zip(self.task.sensors, pixels.split(self.widths), strict=True)
        return {f"image_{name}": part.contiguous() for name, part in sensors} | {
            "mask": check_mask(mask.long(), self.masks[index], self.task)
        }


def _read(path: Path, key: str) -> Tensor:
    """A whole data set of an HDF5 file."""
    try:
        with lazy_import("h5py").File(path, "r") as file:
            return torch.from_numpy(file[key][()])
    except (OSError, KeyError, TypeError) as error:  # truncated, or other contents
        raise TerraFMError(
            f"{path} cannot be read ({error}): it is damaged or incomplete, so fetch it again."
        ) from error


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    """The files ``<kind>_<number>.h5`` of a folder by number, in that order."""
    found = ((re.fullmatch(rf"{kind}_(\d+)\.h5", path.name), path) for path in folder.glob(f"{kind}_*.h5"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def open_landslide(task: BenchTask, root: Path, split: Split, *, partition: str, bands: Bands) -> Landslide4Sense:
    """Opens a split; the benchmark has no partitions, and its band names are right.

    Args:
        task: The task.
        root: The folder of all benchmarks, or that of this one.
        split: The split.
        partition: Has no effect.
        bands: Has no effect.

    Raises:
        MissingDatasetError: If the split is not under ``root``.
        TerraFMError: If an image has no mask.
    """
    for folder in FOLDERS:
        for layout in LAYOUTS:
            images, masks = (root / folder / part for part in layout[split])
            named = _numbered(images, "image")
            if not named:
                continue
            with_mask = _numbered(masks, "mask")
            without = [path for number, path in named.items() if number not in with_mask]
            if without:
                raise TerraFMError(
                    f"{without[0]} has no mask in {masks} (nor have {len(without) - 1} more of {len(named)}): the "
                    "challenge left out those of validation and test, which "
                    "https://zenodo.org/records/10463239 has."
                )
            return Landslide4Sense(task, split, list(named.values()), [with_mask[number] for number in named])
    raise MissingDatasetError(task, root / FOLDERS[0] / LAYOUTS[0][split][0])


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
    opener=open_landslide,
)

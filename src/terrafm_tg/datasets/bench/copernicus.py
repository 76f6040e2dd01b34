"""Copernicus-Bench through TorchGeo's datasets: bands by name, this package's units, and errors that name the file.

Its tasks are those for which TerraFM has a stem: eight of the paper, and Flood-S1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datasets import (
    CopernicusBenchBase,
    CopernicusBenchBigEarthNetS1,
    CopernicusBenchBigEarthNetS2,
    CopernicusBenchCloudS2,
    CopernicusBenchEuroSATS1,
    CopernicusBenchEuroSATS2,
    CopernicusBenchFloodS1,
    CopernicusBenchLCZS2,
)

from terrafm_tg.datasets.labelled import DFC2020S1, DFC2020S2, IGNORED
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A
from terrafm_tg.utils.trust import below, check_names, check_tiffs, open_hdf5, open_image

from .task import BenchDataset, BenchTask, Kind, Split, find_below, naming

#: The official code clamps the linear power of Flood-S1 to [0, 0.15].
FLOOD_POWER = 0.15

#: Mean and standard deviation per band of SSL4EO-S12, with which the official protocol normalizes (L1C's for L2A too).
SSL4EO = {
    "VV": (-12.548, 5.257), "VH": (-20.192, 5.912),
    "B01": (1353.7, 897.3), "B02": (1117.2, 736.0), "B03": (1041.8, 684.8), "B04": (946.5, 620.0),
    "B05": (1199.1, 791.9), "B06": (2003.0, 1341.3), "B07": (2374.0, 1595.4), "B08": (2301.2, 1545.5),
    "B8A": (2599.7, 1750.1), "B09": (732.1, 475.1), "B10": (12.1, 98.3), "B11": (1820.6, 1216.5),
    "B12": (1118.2, 736.7),
}  # fmt: skip

type Files = Callable[[Any], list[list[Path]]]
type StoredUnit = Literal["reflectance", "power"]


class CopernicusDataset(BenchDataset):
    """One split of a task of Copernicus-Bench.

    Args:
        task: The task.
        root: The folder of all benchmarks, or one that TorchGeo takes as root.
        split: The split.
        partition: Has no effect: the benchmark has none.
        dataset: TorchGeo's class.
        list_files: Lists the files of each sample, images before the mask, given an instance of it.
        unit: Unit of the files if it is not decibels or digital numbers: ``"reflectance"`` from 0 to 1, or linear
            ``"power"``.

    Raises:
        MissingDatasetError: If the split is not under ``root``.
        TerraFMError: If its list is damaged, or files that it lists are not there.
    """

    def __init__(
        self,
        task: BenchTask,
        root: Path,
        split: Split,
        partition: str,
        *,
        dataset: type[CopernicusBenchBase],
        list_files: Files,
        unit: StoredUnit | None,
    ) -> None:
        ((sensor, bands),) = task.sensors.items()
        inner = Path(getattr(dataset, "directory", ""), dataset.filename.format(split))
        listed = find_below(root, inner)
        if listed is None:
            raise task.missing(root / inner)
        with naming(listed):
            self.data = dataset(str(listed.parents[len(inner.parts) - 1]), split=split, bands=bands)
            paths = list_files(self.data)
        check_names((below(path, self.data.root) for sample in paths for path in sample), str(listed))
        mean, std = torch.tensor([SSL4EO[band] for band in bands]).T
        super().__init__(task, split, paths, {sensor: mean}, {sensor: std}, source=listed)
        self.key, self.unit = f"image_{sensor}", unit
        absent = [path for path in self.files if not path.is_file()]
        if absent:
            raise TerraFMError(
                f"{absent[0]}, which {listed} names, is not there (nor are {len(absent) - 1} more of "
                f"{len(self.files)}): unpack {dataset.zipfile} again."
            )

    def read(self, index: int) -> dict[str, Tensor]:
        """Reads a sample.

        Raises:
            TerraFMError: If one of its files is damaged, or has too few bands.
        """
        check_tiffs(path for path in self.paths[index] if path.suffix == ".tif")
        try:
            sample = self.data[index]
        except (RasterioError, IndexError):
            self._find_fault(self.paths[index])
            raise
        image = sample["image"].float()
        if self.unit == "reflectance":
            image = image * 10_000
        elif self.unit == "power":
            image = 10 * image.clamp(0, FLOOD_POWER).log10()
        target = "mask" if self.task.kind == "segmentation" else "label"
        return {self.key: image, target: sample[target].long()}

    def _find_fault(self, paths: Sequence[Path]) -> None:
        """Reads each file of a sample whole, and names the one that is damaged, or has too few bands."""
        (bands,) = self.task.sensors.values()
        for path in paths if paths[0].suffix == ".tif" else ():
            with naming(path), open_image(path) as file:
                file.read()
                count = file.count
            if path == paths[0] and self.task.dates == 1 and count < len(bands):
                raise TerraFMError(
                    f"{path} has {count} bands, but {self.task.name} has {len(bands)} ({', '.join(bands)}): fetch it "
                    "again."
                )

    def _labels(self) -> Tensor:
        """Reads the labels from the list of the split: int64 (n,), or (n, 19) of BigEarthNet."""
        if isinstance(self.data, CopernicusBenchLCZS2):
            with open_hdf5(self.data.filepath) as file:
                return torch.from_numpy(file["label"][()].argmax(1))
        if self.task.kind == "multilabel":
            return torch.from_numpy(self.data.files.iloc[:, 2:].to_numpy("int64"))
        return torch.tensor([self.task.classes.index(path.parent.name) for (path,) in self.paths])


def _folder(data: CopernicusBenchBase) -> Path:
    return Path(data.root, data.directory)


def _cloud(data: CopernicusBenchBase) -> list[list[Path]]:
    return [[_folder(data) / kind / f"{name}.tif" for kind in ("s2_toa", "cloud")] for name in data.files]


def _eurosat(data: CopernicusBenchBase) -> list[list[Path]]:
    names = [str(name).replace(".jpg", ".tif") for name in data.files]
    return [[_folder(data) / "all_imgs" / name.split("_")[0] / name] for name in names]


def _bigearthnet(column: int, data: CopernicusBenchBase) -> list[list[Path]]:
    return [[_folder(data) / f"BigEarthNet-S{column + 1}-5%" / name] for name in data.files.iloc[:, column]]


def _dfc2020(sensor: str, data: CopernicusBenchBase) -> list[list[Path]]:
    folder = _folder(data)
    return [[folder / sensor / name.replace("dfc", sensor), folder / "dfc" / name] for name in data.files]


def _flood(data: CopernicusBenchFloodS1) -> list[list[Path]]:
    """Finds both bands before (SL1) and in the flood (MS1), and the mask, of each sample."""
    samples = []
    for key in data.files:
        folder = _folder(data) / "data" / data.metadata[key]["path"]
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        paths = []
        for start in ("SL1_IVV_", "SL1_IVH_", "MS1_IVV_", "MS1_IVH_", "MK0_MLU"):
            found = [name for name in names if name.startswith(start) and name.endswith(".tif")]
            if not found:
                raise TerraFMError(f"{folder} has no file {start}*.tif: unpack flood_s1.zip again.")
            paths.append(folder / found[0])
        samples.append(paths)
    return samples


def _lcz(data: CopernicusBenchLCZS2) -> list[list[Path]]:
    return [[Path(data.filepath)]] * len(data)


#: Sentinel-2 L1C with the cirrus band, which other models read and no stem of TerraFM does.
_L1C = {S2L1C.name: (*S2L1C.bands[:10], "B10", *S2L1C.bands[10:])}
_L2A = {S2L2A.name: S2L2A.bands}
_RADAR = {S1RTC.name: S1RTC.bands}


def _task(
    name: str,
    data: type[CopernicusBenchBase],
    files: Files,
    kind: Kind,
    metric: str,
    sensors: dict[str, tuple[str, ...]],
    size: int,
    input_size: int,
    counts: tuple[int, int, int],
    unit: StoredUnit | None = None,
    dates: int = 1,
    ignore_index: int | None = None,
) -> BenchTask:
    url = PurePosixPath(str(data.url).format("*"))
    return BenchTask(
        name=name,
        benchmark="Copernicus-Bench",
        kind=kind,
        classes=data.classes,
        metric=metric,
        sensors=sensors,
        size=size,
        input_size=input_size,
        counts=counts,
        where=f"download {url.parent.name}/{url.name} of https://huggingface.co/datasets/wangyi111/Copernicus-Bench"
        f"{' and unpack it' if url.suffix == '.zip' else ''} into the folder of the benchmarks.",
        opener=partial(CopernicusDataset, dataset=data, list_files=files, unit=unit),
        dates=dates,
        ignore_index=ignore_index,
    )


COPERNICUS_BENCH: tuple[BenchTask, ...] = (
    _task("Cloud-S2", CopernicusBenchCloudS2, _cloud, "segmentation", "miou", _L1C, 512, 512, (1699, 567, 551)),
    _task(
        "EuroSAT-S1", CopernicusBenchEuroSATS1, _eurosat, "multiclass", "oa", _RADAR, 64, 224, (16200, 5400, 5400)
    ),
    _task("EuroSAT-S2", CopernicusBenchEuroSATS2, _eurosat, "multiclass", "oa", _L1C, 64, 224, (16200, 5400, 5400)),
    _task(
        "BigEarthNet-S1", CopernicusBenchBigEarthNetS1, partial(_bigearthnet, 0), "multilabel", "map", _RADAR, 120, 224,
        (11894, 6117, 5991),
    ),
    _task(
        "BigEarthNet-S2", CopernicusBenchBigEarthNetS2, partial(_bigearthnet, 1), "multilabel", "map", _L2A, 120, 224,
        (11894, 6117, 5991),
    ),
    _task(
        "DFC2020-S1", DFC2020S1, partial(_dfc2020, "s1"), "segmentation", "miou", _RADAR, 256, 256, (3156, 986, 986),
        ignore_index=IGNORED,
    ),
    _task(
        "DFC2020-S2", DFC2020S2, partial(_dfc2020, "s2"), "segmentation", "miou", _L1C, 256, 256, (3156, 986, 986),
        ignore_index=IGNORED,
    ),
    _task(
        "LCZ-S2", CopernicusBenchLCZS2, _lcz, "multiclass", "oa", {S2L1C.name: CopernicusBenchLCZS2.all_bands}, 32, 112,
        (15000, 5000, 5000), "reflectance",
    ),
    _task(
        "Flood-S1", CopernicusBenchFloodS1, _flood, "segmentation", "miou", _RADAR, 224, 224, (3000, 1000, 1000),
        "power", dates=2, ignore_index=3,
    ),
)  # fmt: skip

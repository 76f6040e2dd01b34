"""Which files each sample of Copernicus-Bench is read from, in the layout that TorchGeo's classes read."""

from pathlib import Path, PurePosixPath

from torchgeo.datasets import CopernicusBenchBase, CopernicusBenchFloodS1, CopernicusBenchLCZS2

from terrafm_tg.errors import TerraFMError

#: Folders under the benchmarks' root in which the data may lie, besides the root itself.
FOLDERS = ("", "copernicus_bench", "copernicusbench", "Copernicus-Bench")


def split_file(source: type[CopernicusBenchBase], split: str) -> Path:
    """The file that lists a split, under the folder that TorchGeo calls root."""
    return Path(getattr(source, "directory", ""), source.filename.format(split))


def candidates(source: type[CopernicusBenchBase], root: Path) -> list[Path]:
    """Folders that TorchGeo may be given as root, by preference: ours, then those of the published repository."""
    published = PurePosixPath(str(source.url)).parent.name
    return [root / folder / inner for folder in FOLDERS for inner in ("", published)]


def _folder(data: CopernicusBenchBase) -> Path:
    return Path(data.root, data.directory)


def cloud(data: CopernicusBenchBase) -> list[list[Path]]:
    """Image and mask of each sample of Cloud-S2."""
    return [[_folder(data) / kind / f"{name}.tif" for kind in ("s2_toa", "cloud")] for name in data.files]


def eurosat(data: CopernicusBenchBase) -> list[list[Path]]:
    """Image of each sample of EuroSAT, in a folder of its class."""
    names = [str(name).replace(".jpg", ".tif") for name in data.files]
    return [[_folder(data) / "all_imgs" / name.split("_")[0] / name] for name in names]


def bigearthnet_s1(data: CopernicusBenchBase) -> list[list[Path]]:
    """Radar image of each sample of BigEarthNet."""
    return [[_folder(data) / "BigEarthNet-S1-5%" / name] for name in data.files.iloc[:, 0]]


def bigearthnet_s2(data: CopernicusBenchBase) -> list[list[Path]]:
    """Optical image of each sample of BigEarthNet."""
    return [[_folder(data) / "BigEarthNet-S2-5%" / name] for name in data.files.iloc[:, 1]]


def dfc2020_s1(data: CopernicusBenchBase) -> list[list[Path]]:
    """Radar image and mask of each sample of DFC2020."""
    return _dfc2020(data, "s1")


def dfc2020_s2(data: CopernicusBenchBase) -> list[list[Path]]:
    """Optical image and mask of each sample of DFC2020."""
    return _dfc2020(data, "s2")


def _dfc2020(data: CopernicusBenchBase, sensor: str) -> list[list[Path]]:
    return [
        [_folder(data) / sensor / name.replace("dfc", sensor), _folder(data) / "dfc" / name]
        for name in data.files
    ]


def flood(data: CopernicusBenchFloodS1) -> list[list[Path]]:
    """Both bands before (SL1) and in the flood (MS1), and the mask, of each sample of Flood-S1.

    Raises:
        TerraFMError: If one of the five is not in a sample's folder.
    """
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


def lcz(data: CopernicusBenchLCZS2) -> list[list[Path]]:
    """The one HDF5 file of a split of LCZ-S2, for each sample."""
    return [[Path(data.filepath)]] * len(data)

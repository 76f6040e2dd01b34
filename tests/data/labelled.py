"""Labelled datasets as they are on disk, in the layouts that TorchGeo reads: tiny, with classes that pixels tell apart.

The numbers of samples and of pixels are a few; `n` samples for training come with half as many for each of the others.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torchgeo import datasets as tg

from data.geotiff import write_geotiff

#: Metres per pixel of BigEarthNet's bands; every patch is 1.2 km wide.
RESOLUTION = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20,
              "B07": 20, "B08": 10, "B8A": 20, "B09": 60, "B11": 20, "B12": 20}  # fmt: skip
LABELS = ("Non-irrigated arable land", "Broad-leaved forest", "Coniferous forest", "Water bodies")
ONERA = "Onera Satellite Change Detection dataset - "
REGIONS = {"Train": ("abudhabi", "aguasclaras", "beihai", "beirut", "bercy"), "Test": ("brasilia", "montpellier")}
#: Digital numbers of clear ground, thick cloud, thin cloud and shadow.
CLOUDS = np.array([1200.0, 7000.0, 3500.0, 400.0])
#: Landslide4Sense's 14 bands, in digital numbers, degrees and metres: stable ground; landslides are brighter, steeper.
GROUND = np.array([1100, 820, 660, 450, 650, 1550, 1960, 1940, 670, 9, 1110, 520, 20, 770], dtype=float)
SLIDE = np.array([1300, 1200, 1300, 1600, 1700, 1500, 1500, 1500, 400, 9, 2400, 2000, 45, 770], dtype=float)
#: By what the challenge divided them.
DIVISOR = np.array([
    1111.81236406, 824.63171476, 663.41636217, 445.17289745, 645.8582926, 1547.73508126, 1960.44401001,
    1941.32229668, 674.07572865, 9.04787384, 1113.98338755, 519.90397929, 20.29228266, 772.83144788,
])  # fmt: skip


def _numbers(n: int) -> dict[str, range]:
    """The numbers, from 1, of each split's samples."""
    half = max(n // 2, 1)
    return {"train": range(1, n + 1), "val": range(n + 1, n + half + 1), "test": range(n + half + 1, n + 2 * half + 1)}


def _spectrum(kind: int, bands: int) -> NDArray:
    """Digital numbers (bands, 1, 1) of a class, another curve for each."""
    return np.random.default_rng(kind).uniform(400, 3600, (bands, 1, 1))


def _optics(rng: np.random.Generator, level: ArrayLike, noise: float, shape: tuple[int, ...]) -> NDArray:
    return rng.normal(level, noise, shape).clip(1).astype(np.uint16)


def _blocks(rng: np.random.Generator, classes: int, size: int) -> NDArray:
    """A mask of blocks of 16 px."""
    return rng.integers(0, classes, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)


def _square(rng: np.random.Generator, shape: tuple[int, int], side: int, value: int) -> NDArray:
    """A mask with one square."""
    mask = np.zeros(shape, np.uint8)
    top, left = rng.integers(0, min(shape) - side, 2)
    mask[top : top + side, left : left + side] = value
    return mask


def _write_list(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def _chips(folder: Path, classes: Iterable[str], n: int, chip: Callable[[int], NDArray]) -> dict[str, list[str]]:
    """Writes a folder per class, with a GeoTIFF for every ten of `n`; gives the names that each split lists."""
    names: dict[str, list[str]] = {split: [] for split in _numbers(n)}
    for kind, name in enumerate(classes):
        for split, numbers in _numbers(-(-n // 10)).items():
            for number in numbers:
                write_geotiff(folder / name / f"{name}_{number}.tif", chip(kind))
                names[split].append(f"{name}_{number}.jpg")
    return names


def _eurosat_chip(size: int) -> Callable[[int], NDArray]:
    """Makes chips of 13 bands, with B8A last."""
    rng = np.random.default_rng(0)
    return lambda kind: _optics(rng, _spectrum(kind, 13), 80, (13, size, size))


def eurosat(root: Path) -> None:
    """EuroSAT: two chips per class for training, one for each of the others."""
    classes = sorted(tg.CopernicusBenchEuroSATS2.classes)
    names = _chips(root / tg.EuroSAT.base_dir, classes, 20, _eurosat_chip(64))
    for split, lines in names.items():
        _write_list(root / tg.EuroSAT.split_filenames[split], lines)


def oscd(root: Path) -> None:
    """Regions of two dates of 13 bands, `dates.txt`, and `cm.png` with 255 where a square has changed."""
    rng = np.random.default_rng(0)
    for split, regions in REGIONS.items():
        for region in regions:
            folder, labels = root / f"{ONERA}Images" / region, root / f"{ONERA}{split} Labels" / region / "cm"
            mask = _square(rng, (112, 96), 48, 255)
            for date in (1, 2):
                bands = folder / f"imgs_{date}_rect"
                bands.mkdir(parents=True)
                for band in tg.OSCD.all_bands:
                    pixels = _optics(rng, 1500 + 1500 * (date - 1) * (mask > 0), 100, mask.shape)
                    Image.fromarray(pixels).save(bands / f"{band}.tif")
            (folder / "dates.txt").write_text("date_1: 20151226\ndate_2: 20180305\n")
            labels.mkdir(parents=True)
            Image.fromarray(mask).save(labels / "cm.png")


def cloud_cover(root: Path) -> None:
    """Cloud Cover Detection: a GeoTIFF per band, a mask with 1 where a bright square is, and the lists."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        folder = root / tg.CloudCoverDetection.splits[split]
        chips = [f"{split[0]}{number:03d}" for number in range(count)]
        for chip in chips:
            mask = _square(rng, (64, 64), 32, 1)
            for band in tg.CloudCoverDetection.all_bands:
                pixels = _optics(rng, np.where(mask, 6200, 1200), 100, mask.shape)
                write_geotiff(folder / f"{split}_features" / chip / f"{band}.tif", pixels)
            write_geotiff(folder / f"{split}_labels" / f"{chip}.tif", mask)
        table = pd.DataFrame({"chip_id": chips, "location": "Chifunfu", "datetime": "2020-04-29T08:20:47Z"})
        table.to_csv(folder / f"{split}_metadata.csv", index=False)


def cowc(root: Path) -> None:
    """COWC counting: PNGs, the lists with a count of cars per chip, and empty files in the archives' places."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        names = [f"{split}/Potsdam_ISPRS/top_potsdam_2_10_RGB.{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            chip = rng.integers(60, 90, (64, 64, 3), dtype=np.uint8)
            for car in range(number % 4):
                chip[16 * car : 16 * car + 8, :8] = 255
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chip).save(root / name)
        _write_list(root / tg.COWCCounting.filename.format(split), (f"{x} {i % 4}" for i, x in enumerate(names)))
    for archive in tg.COWCCounting.filenames:
        (root / archive).touch()


def bigearthnet(root: Path) -> None:
    """BigEarthNet v1: pairs of 12 bands at native size and of VV and VH in dB, labels and the lists of pairs."""
    rng = np.random.default_rng(0)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for split, numbers in _numbers(4).items():
        places = [f"{number}_{number + 40}" for number in numbers]
        pairs[split] = [
            (f"S2A_MSIL2A_20170613T101031_{place}", f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{place}")
            for place in places
        ]
        for number, (s2, s1) in zip(numbers, pairs[split], strict=True):
            kind = number % len(LABELS)
            folders = {sensor: root / tg.BigEarthNet.metadata[sensor]["directory"] for sensor in ("s1", "s2")}
            for band, resolution in RESOLUTION.items():
                pixels = _optics(rng, 800 + 400 * kind, 80, (1200 // resolution,) * 2)
                write_geotiff(folders["s2"] / s2 / f"{s2}_{band}.tif", pixels, resolution=resolution)
            for band, level in (("VV", -10), ("VH", -17)):
                decibels = rng.normal(level - 2 * kind, 1.5, (120, 120)).astype(np.float32)
                write_geotiff(folders["s1"] / s1 / f"{s1}_{band}.tif", decibels)
            labels = {"labels": [LABELS[kind], LABELS[(kind + split.count("a")) % len(LABELS)]]}
            for sensor, name in (("s2", s2), ("s1", s1)):
                content = labels if sensor == "s2" else labels | {"corresponding_s2_patch": s2}
                (folders[sensor] / name / f"{name}_labels_metadata.json").write_text(json.dumps(content))
    _write_pairs(root, pairs)


def real_bigearthnet(source: Path, root: Path) -> None:
    """Lays real patches (folders `S1` and `S2`) out as BigEarthNet; a split has two of the six pairs each."""
    pairs = []
    for folder in sorted((source / "S1").iterdir()):
        labels = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        if (source / "S2" / labels["corresponding_s2_patch"]).is_dir():
            pairs.append((labels["corresponding_s2_patch"], folder.name))
    for sensor, index in (("s2", 0), ("s1", 1)):
        for pair in pairs:
            target = root / tg.BigEarthNet.metadata[sensor]["directory"] / pair[index]
            shutil.copytree(source / sensor.upper() / pair[index], target)
    third = len(pairs) // 3
    _write_pairs(root, {"train": pairs[:third], "val": pairs[third : 2 * third], "test": pairs[2 * third :]})


def _write_pairs(root: Path, pairs: Mapping[str, list[tuple[str, str]]]) -> None:
    for split, names in pairs.items():
        _write_list(root / tg.BigEarthNet.splits_metadata[split]["filename"], map(",".join, names))


def _copernicus_eurosat(source: type, chip: Callable[[int], NDArray], root: Path, n: int) -> None:
    for split, lines in _chips(root / source.directory / "all_imgs", source.classes, n, chip).items():
        _write_list(root / source.directory / source.filename.format(split), lines)


def eurosat_s1(root: Path, n: int = 20, size: int = 64) -> None:
    """EuroSAT-S1 of Copernicus-Bench: VV and VH in dB."""
    rng = np.random.default_rng(0)

    def chip(kind: int) -> NDArray:
        level = np.array([-11 + 5 * np.cos(0.2 * np.pi * kind), -18 + 5 * np.sin(0.2 * np.pi * kind)])
        return rng.normal(level[:, None, None], 1.5, (2, size, size)).astype(np.float32)

    _copernicus_eurosat(tg.CopernicusBenchEuroSATS1, chip, root, n)


def _eurosat_s2(root: Path, n: int, size: int) -> None:
    _copernicus_eurosat(tg.CopernicusBenchEuroSATS2, _eurosat_chip(size), root, n)


def _bigearthnet(root: Path, n: int, size: int) -> None:
    """GeoTIFFs of both sensors per patch, and a table of paths and 19 zeros and ones per split."""
    rng = np.random.default_rng(0)
    source = tg.CopernicusBenchBigEarthNetS1
    folder = root / source.directory
    for split, numbers in _numbers(n).items():
        rows = []
        for number in numbers:
            kinds = (number - numbers[0]) % 19, (number - numbers[0] + 7) % 19
            s1, s2 = f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}.tif", f"S2A_MSIL2A_20170613T101031_{number}.tif"
            level = np.array([-6 - kinds[0] / 2, -12 - kinds[1] / 2])[:, None, None]
            mixed = (_spectrum(kinds[0], 12) + _spectrum(kinds[1], 12)) / 2
            decibels = rng.normal(level, 0.5, (2, size, size)).astype(np.float32)
            write_geotiff(folder / "BigEarthNet-S1-5%" / s1, decibels)
            write_geotiff(folder / "BigEarthNet-S2-5%" / s2, _optics(rng, mixed, 60, (12, size, size)))
            rows.append([s1, s2, *(int(kind in kinds) for kind in range(19))])
        with (folder / source.filename.format(split)).open("w", newline="") as file:
            csv.writer(file).writerows([["s1_path", "s2_path", *source.classes], *rows])


def _lcz(root: Path, n: int, size: int) -> None:
    """One HDF5 file per split: reflectance (n, H, W, 10) and classes as 17 zeros and ones, at least one of each."""
    rng = np.random.default_rng(0)
    for split, numbers in _numbers(n).items():
        kinds = np.arange(max(len(numbers), 17)) % 17
        level = np.stack([_spectrum(kind, 10) for kind in kinds]).reshape(-1, 1, 1, 10) / 10_000
        pixels = rng.normal(level, 0.005, (len(kinds), size, size, 10)).clip(0)
        with h5py.File(root / tg.CopernicusBenchLCZS2.filename.format(split), "w") as file:
            file["sen2"] = pixels.astype(np.float32)
            file["label"] = np.eye(17, dtype=np.uint8)[kinds]


def cloud(root: Path, n: int = 4, size: int = 64) -> None:
    """Cloud-S2 of Copernicus-Bench (CloudSEN12+): 13 bands, masks of 0 to 3, and the lists, without endings."""
    rng = np.random.default_rng(0)
    folder = root / tg.CopernicusBenchCloudS2.directory
    for split, numbers in _numbers(n).items():
        names = [f"ROI_{number:05d}__20190611T101031_20190611T101212_T33TXJ" for number in numbers]
        for name in names:
            mask = _blocks(rng, 4, size)
            write_geotiff(folder / "cloud" / f"{name}.tif", mask)
            write_geotiff(folder / "s2_toa" / f"{name}.tif", _optics(rng, CLOUDS[mask], 80, (13, size, size)))
        _write_list(folder / tg.CopernicusBenchCloudS2.filename.format(split), names)


def dfc2020(root: Path, n: int = 4, size: int = 64) -> None:
    """DFC2020 of Copernicus-Bench: masks of codes from 0 to 10, and both sensors, whose values follow them."""
    rng = np.random.default_rng(0)
    folder = root / tg.CopernicusBenchDFC2020S2.directory
    for split, numbers in _numbers(n).items():
        names = [f"ROIs0000_{split}_dfc_0_p{number}.tif" for number in numbers]
        for name in names:
            mask = _blocks(rng, 11, size)
            radar = rng.normal(-6.0 - mask, 1, (2, size, size)).astype(np.float32)
            write_geotiff(folder / "dfc" / name, mask)
            write_geotiff(folder / "s1" / name.replace("dfc", "s1"), radar)
            optics = _optics(rng, 500 + 300.0 * mask, 60, (13, size, size))
            write_geotiff(folder / "s2" / name.replace("dfc", "s2"), optics)
        _write_list(folder / tg.CopernicusBenchDFC2020S2.filename.format(split), names)


def floods(root: Path, n: int = 4, size: int = 64) -> None:
    """Flood-S1 of Copernicus-Bench (Kuro Siwo): a file per band and date in linear power, masks, and the indexes.

    Permanent water is dark at every date, flooded ground in the last one; where the mask is 3 nothing is known.
    """
    rng = np.random.default_rng(0)
    folder = root / tg.CopernicusBenchFloodS1.directory
    for split, numbers in _numbers(n).items():
        index = {f"{number:032x}": {"path": f"{1111000 + number}/01/{number:032x}"} for number in numbers}
        for number, place in zip(numbers, index.values(), strict=True):
            event, images = f"{1111000 + number}_01", folder / "data" / place["path"]
            mask = _blocks(rng, 4, size)
            for date, day in (("SL2", "20210801"), ("SL1", "20210813"), ("MS1", "20210906")):
                wet = (mask == 1) | ((mask == 2) & (date == "MS1"))
                for band, land in (("VV", 0.1), ("VH", 0.02)):
                    power = np.where(wet, land / 20, land) * rng.gamma(4, 1 / 4, mask.shape)
                    write_geotiff(images / f"{date}_I{band}_{event}_{day}.tif", power.astype(np.float32))
            write_geotiff(images / f"MK0_MLU_{event}_20210906.tif", mask)
        (folder / tg.CopernicusBenchFloodS1.filename.format(split)).write_text(json.dumps(index))


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "Cloud-S2": cloud, "EuroSAT-S1": eurosat_s1, "EuroSAT-S2": _eurosat_s2, "BigEarthNet-S1": _bigearthnet,
    "BigEarthNet-S2": _bigearthnet, "DFC2020-S1": dfc2020, "DFC2020-S2": dfc2020, "LCZ-S2": _lcz, "Flood-S1": floods,
}  # fmt: skip


def make_copernicus(root: Path, name: str, n: int = 8, size: int = 32) -> Path:
    """Writes a task of Copernicus-Bench under `root` and returns it; of EuroSAT and LCZ at least one of each class.

    `size` in pixels is a multiple of 16.
    """
    root.mkdir(parents=True, exist_ok=True)
    WRITERS[name](root, n, size)
    return root


def make_landslide(root: Path, n: int = 8, size: int = 32) -> Path:
    """Landslide4Sense: an HDF5 file per float64 `img` (H, W, 14) and per uint8 `mask`, returns `root`."""
    rng = np.random.default_rng(0)
    for split, numbers in _numbers(n).items():
        folder = root / "landslide4sense" / {"train": "TrainData", "val": "ValidData", "test": "TestData"}[split]
        for kind in ("img", "mask"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, len(numbers) + 1):
            mask = _blocks(rng, 2, size)
            values = np.where(mask[..., None] == 1, SLIDE, GROUND) * rng.normal(1, 0.05, (size, size, 14))
            with h5py.File(folder / f"img/image_{number}.h5", "w") as file:
                file["img"] = values / DIVISOR
            with h5py.File(folder / f"mask/mask_{number}.h5", "w") as file:
                file["mask"] = mask
    return root

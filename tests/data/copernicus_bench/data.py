"""Copernicus-Bench's Sentinel-1 and Sentinel-2 tasks as they are on disk, tiny, with classes that pixels tell apart."""

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from torchgeo.datasets import CopernicusBenchBigEarthNetS1, CopernicusBenchEuroSATS2, CopernicusBenchLCZS2

from data.cloud import data as cloud
from data.dfc2020 import data as dfc2020
from data.eurosat_s1 import data as eurosat_s1
from data.floods import data as floods
from data.geotiff import write_geotiff


def spectrum(kind: int, bands: int) -> np.ndarray:
    """Digital numbers (bands,) of a class, another curve for each."""
    return np.random.default_rng(kind).uniform(400, 3600, bands)


def _per_split(n: int) -> dict[str, int]:
    return {"train": n, "val": max(n // 2, 1), "test": max(n // 2, 1)}


def _eurosat_s2(root: Path, n: int, size: int) -> None:
    """GeoTIFFs of 13 bands, B8A last, one folder per class; lists with the ending .jpg, as published."""
    rng = np.random.default_rng(0)
    source = CopernicusBenchEuroSATS2
    folder = root / source.directory
    for split, count in _per_split(n).items():
        names = []
        for number in range(max(count, 10)):
            kind = number % 10
            name = f"{source.classes[kind]}_{split}{number}"
            chip = rng.normal(spectrum(kind, 13)[:, None, None], 60, (13, size, size)).clip(0)
            path = folder / "all_imgs" / source.classes[kind] / f"{name}.tif"
            write_geotiff(path, chip.astype(np.uint16), corner=(10 * size * number, 0))
            names.append(f"{name}.jpg")
        (folder / source.filename.format(split)).write_text("\n".join(names) + "\n")


def _bigearthnet(root: Path, n: int, size: int) -> None:
    """GeoTIFFs of both sensors per patch, and a table of paths and 19 zeros and ones per split."""
    rng = np.random.default_rng(0)
    source = CopernicusBenchBigEarthNetS1
    folder = root / source.directory
    for part, (split, count) in enumerate(_per_split(n).items()):
        rows = []
        for number in range(count):
            first, second = number % 19, (number + 7) % 19
            place = f"{part}_{number}"
            s1 = f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{place}.tif"
            s2 = f"S2A_MSIL2A_20170613T101031_{place}.tif"
            level = np.array([-6 - first / 2, -12 - second / 2])[:, None, None]
            decibels = rng.normal(level, 0.5, (2, size, size)).astype(np.float32)
            mixed = (spectrum(first, 12) + spectrum(second, 12)) / 2
            optics = rng.normal(mixed[:, None, None], 60, (12, size, size)).clip(0).astype(np.uint16)
            corner = (10 * size * number, 0)
            write_geotiff(folder / "BigEarthNet-S1-5%" / s1, decibels, corner=corner)
            write_geotiff(folder / "BigEarthNet-S2-5%" / s2, optics, corner=corner)
            rows.append([s1, s2, *(int(kind in (first, second)) for kind in range(19))])
        with (folder / source.filename.format(split)).open("w", newline="") as file:
            csv.writer(file).writerows([["s1_path", "s2_path", *source.classes], *rows])


def _lcz(root: Path, n: int, size: int) -> None:
    """One HDF5 file per split: reflectance (n, H, W, 10) and classes as 17 zeros and ones."""
    rng = np.random.default_rng(0)
    for split, count in _per_split(n).items():
        kinds = np.arange(max(count, 17)) % 17
        level = np.stack([spectrum(kind, 10) for kind in kinds])[:, None, None] / 10_000
        pixels = rng.normal(level, 0.005, (len(kinds), size, size, 10)).clip(0)
        with h5py.File(root / CopernicusBenchLCZS2.filename.format(split), "w") as file:
            file["sen2"] = pixels.astype(np.float32)
            file["label"] = np.eye(17, dtype=np.uint8)[kinds]


def _eurosat_s1(root: Path, n: int, size: int) -> None:
    eurosat_s1.create(root, {split: -(-count // 10) for split, count in _per_split(n).items()}, size)


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "Cloud-S2": lambda root, n, size: cloud.create(root, _per_split(n), size),
    "EuroSAT-S1": _eurosat_s1,
    "EuroSAT-S2": _eurosat_s2,
    "BigEarthNet-S1": _bigearthnet,
    "BigEarthNet-S2": _bigearthnet,
    "DFC2020-S1": lambda root, n, size: dfc2020.create(root, _per_split(n), size),
    "DFC2020-S2": lambda root, n, size: dfc2020.create(root, _per_split(n), size),
    "LCZ-S2": _lcz,
    "Flood-S1": lambda root, n, size: floods.create(root, _per_split(n), size),
}


def make_copernicus(root: Path, name: str, n: int = 8, size: int = 32) -> Path:
    """Writes a task's three splits under `root` and returns it.

    `n` training samples and half as many for validation and test; of EuroSAT and LCZ at least one of each class.
    `size` in pixels is a multiple of 16.
    """
    root.mkdir(parents=True, exist_ok=True)
    WRITERS[name](root, n, size)
    return root

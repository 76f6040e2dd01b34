"""BigEarthNet v1 (Sentinel-1 in dB, Sentinel-2 L2A) as it is on disk: random patches, or links to real ones."""

import json
import shutil
from pathlib import Path

import numpy as np
from torchgeo.datasets import BigEarthNet

from data.geotiff import write_geotiff

#: Metres per pixel of each band; every patch is 1.2 km wide.
RESOLUTION = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20,
              "B07": 20, "B08": 10, "B8A": 20, "B09": 60, "B11": 20, "B12": 20}  # fmt: skip
PER_SPLIT = {"train": 4, "val": 2, "test": 2}
LABELS = ("Non-irrigated arable land", "Broad-leaved forest", "Coniferous forest", "Water bodies")


def create(root: Path) -> None:
    """Writes pairs of patches (12 uint16 bands at native size, VV and VH in float32 dB), labels and split lists."""
    rng = np.random.default_rng(0)
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in PER_SPLIT}
    number = 0
    for split, count in PER_SPLIT.items():
        for _ in range(count):
            kind = number % len(LABELS)
            place, number = f"{number}_{number + 40}", number + 1
            s2, s1 = f"S2A_MSIL2A_20170613T101031_{place}", f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{place}"
            corner = (1200 * number, 0)
            for band, resolution in RESOLUTION.items():
                size = 1200 // resolution
                pixels = rng.normal(800 + 400 * kind, 80, (size, size)).clip(0).astype(np.uint16)
                path = root / BigEarthNet.metadata["s2"]["directory"] / s2 / f"{s2}_{band}.tif"
                write_geotiff(path, pixels, resolution=resolution, corner=corner)
            for band, level in (("VV", -10), ("VH", -17)):
                decibels = rng.normal(level - 2 * kind, 1.5, (120, 120)).astype(np.float32)
                path = root / BigEarthNet.metadata["s1"]["directory"] / s1 / f"{s1}_{band}.tif"
                write_geotiff(path, decibels, corner=corner)
            labels = {"labels": [LABELS[kind], LABELS[(kind + split.count("a")) % len(LABELS)]]}
            _write_labels(root, "s2", s2, labels)
            _write_labels(root, "s1", s1, labels | {"corresponding_s2_patch": s2})
            pairs[split].append((s2, s1))
    _write_splits(root, pairs)


def link_real(source: Path, root: Path) -> None:
    """Lays real patches (folders `S1` and `S2`) out as BigEarthNet; a split has two of the six pairs each."""
    pairs = []
    for folder in sorted((source / "S1").iterdir()):
        labels = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        if (source / "S2" / labels["corresponding_s2_patch"]).is_dir():
            pairs.append((labels["corresponding_s2_patch"], folder.name))
    for sensor, index in (("s2", 0), ("s1", 1)):
        for pair in pairs:
            target = root / BigEarthNet.metadata[sensor]["directory"] / pair[index]
            shutil.copytree(source / sensor.upper() / pair[index], target)
    third = len(pairs) // 3
    _write_splits(root, {"train": pairs[:third], "val": pairs[third : 2 * third], "test": pairs[2 * third :]})


def _write_labels(root: Path, sensor: str, name: str, labels: dict) -> None:
    folder = root / BigEarthNet.metadata[sensor]["directory"] / name
    (folder / f"{name}_labels_metadata.json").write_text(json.dumps(labels))


def _write_splits(root: Path, pairs: dict[str, list[tuple[str, str]]]) -> None:
    for split, names in pairs.items():
        lines = "".join(f"{s2},{s1}\n" for s2, s1 in names)
        (root / BigEarthNet.splits_metadata[split]["filename"]).write_text(lines)

"""EuroSAT-S1 of Copernicus-Bench (Sentinel-1 in dB) as it is on disk, a few random chips per class."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import CopernicusBenchEuroSATS1

from data.geotiff import write_geotiff

PER_CLASS = {"train": 2, "val": 1, "test": 1}
SIZE = 64


def create(root: Path, per_class: dict[str, int] = PER_CLASS, size: int = SIZE) -> None:
    """Writes float32 GeoTIFFs of VV and VH, 64x64 px, one folder per class, and the three lists of a split."""
    rng = np.random.default_rng(0)
    folder = root / CopernicusBenchEuroSATS1.directory
    names: dict[str, list[str]] = {split: [] for split in per_class}
    for kind, name in enumerate(CopernicusBenchEuroSATS1.classes):
        angle = 2 * np.pi * kind / len(CopernicusBenchEuroSATS1.classes)
        level = np.array([-11 + 5 * np.cos(angle), -18 + 5 * np.sin(angle)]).reshape(2, 1, 1)
        number = 0
        for split, count in per_class.items():
            for _ in range(count):
                number += 1
                chip = rng.normal(level, 1.5, (2, size, size)).astype(np.float32)
                write_geotiff(folder / "all_imgs" / name / f"{name}_{number}.tif", chip, corner=(10 * size * number, 0))
                names[split].append(f"{name}_{number}.jpg")
    for split, lines in names.items():
        (folder / CopernicusBenchEuroSATS1.filename.format(split)).write_text("\n".join(lines) + "\n")

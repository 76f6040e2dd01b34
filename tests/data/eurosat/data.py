"""EuroSAT (Sentinel-2 L1C, 13 bands) as it is on disk, a few random chips per class that differ in colour."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import EuroSAT

from data.geotiff import write_geotiff

CLASSES = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
           "Pasture", "PermanentCrop", "Residential", "River", "SeaLake")  # fmt: skip
PER_CLASS = {"train": 2, "val": 1, "test": 1}
SIZE = 64


def create(root: Path) -> None:
    """Writes uint16 GeoTIFFs of 13 bands and 64x64 px, one folder per class, and the three lists of a split.

    The bands are in the files' own order, with B8A last.
    """
    rng = np.random.default_rng(0)
    colours = rng.uniform(500, 3500, (len(CLASSES), len(EuroSAT.all_band_names), 1, 1))
    names: dict[str, list[str]] = {split: [] for split in PER_CLASS}
    for name, colour in zip(CLASSES, colours, strict=True):
        number = 0
        for split, count in PER_CLASS.items():
            for _ in range(count):
                number += 1
                chip = rng.normal(colour, 100, (len(colour), SIZE, SIZE)).clip(1, 28_000).astype(np.uint16)
                path = root / EuroSAT.base_dir / name / f"{name}_{number}.tif"
                write_geotiff(path, chip, corner=(640 * number, 0))
                names[split].append(f"{name}_{number}.jpg")
    for split, lines in names.items():
        (root / EuroSAT.split_filenames[split]).write_text("\n".join(lines) + "\n")

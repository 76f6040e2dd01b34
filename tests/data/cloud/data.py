"""Cloud-S2 of Copernicus-Bench (CloudSEN12+: Sentinel-2 L1C with 13 bands) as it is on disk."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import CopernicusBenchCloudS2

from data.geotiff import write_geotiff

PER_SPLIT = {"train": 4, "val": 2, "test": 2}
#: Digital numbers of clear ground, thick cloud, thin cloud and shadow.
LEVELS = np.array([1200.0, 7000.0, 3500.0, 400.0])
#: Pixels; the real ones have 512.
SIZE = 64


def create(root: Path, per_split: dict[str, int] = PER_SPLIT, size: int = SIZE) -> None:
    """Writes images (13 bands, uint16), masks of 0 to 3 (uint8), and the three lists, without endings."""
    rng = np.random.default_rng(0)
    folder = root / CopernicusBenchCloudS2.directory
    number = 0
    for split, count in per_split.items():
        names = []
        for _ in range(count):
            number += 1
            name = f"ROI_{number:05d}__20190611T101031_20190611T101212_T33TXJ"
            corner = (10 * size * number, 0)
            mask = rng.integers(0, 4, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            image = rng.normal(LEVELS[mask], 80, (13, size, size)).clip(0).astype(np.uint16)
            write_geotiff(folder / "cloud" / f"{name}.tif", mask, corner=corner)
            write_geotiff(folder / "s2_toa" / f"{name}.tif", image, corner=corner)
            names.append(name)
        (folder / CopernicusBenchCloudS2.filename.format(split)).write_text("\n".join(names) + "\n")

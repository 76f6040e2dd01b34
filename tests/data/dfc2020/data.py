"""DFC2020 of Copernicus-Bench (Sentinel-1 in dB, Sentinel-2 L1C with 13 bands) as it is on disk."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import CopernicusBenchDFC2020S2

from data.geotiff import write_geotiff

PER_SPLIT = {"train": 4, "val": 2, "test": 2}
#: Pixels; the real ones have 256.
SIZE = 64


def create(root: Path, per_split: dict[str, int] = PER_SPLIT, size: int = SIZE) -> None:
    """Writes per place a mask of the files' own codes (uint8, 0 to 10) and both sensors, whose values follow it."""
    rng = np.random.default_rng(0)
    folder = root / CopernicusBenchDFC2020S2.directory
    number = 0
    for split, count in per_split.items():
        names = []
        for _ in range(count):
            number += 1
            name = f"ROIs0000_{split}_dfc_0_p{number}.tif"
            corner = (10 * size * number, 0)
            mask = rng.integers(0, 11, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            radar = rng.normal(-6.0 - mask, 1, (2, size, size)).astype(np.float32)
            optics = rng.normal(500 + 300.0 * mask, 60, (13, size, size)).clip(0).astype(np.uint16)
            write_geotiff(folder / "dfc" / name, mask, corner=corner)
            write_geotiff(folder / "s1" / name.replace("dfc", "s1"), radar, corner=corner)
            write_geotiff(folder / "s2" / name.replace("dfc", "s2"), optics, corner=corner)
            names.append(name)
        (folder / CopernicusBenchDFC2020S2.filename.format(split)).write_text("\n".join(names) + "\n")

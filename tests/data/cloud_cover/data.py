"""Cloud Cover Detection (Sentinel-2 L2A, four bands, cloud masks) as it is on disk."""

from pathlib import Path

import numpy as np
import pandas as pd
from torchgeo.datasets import CloudCoverDetection

from data.geotiff import write_geotiff

PER_SPLIT = {"train": 5, "test": 2}
#: Pixels; the real chips are 512 px wide.
SIZE = 64


def create(root: Path) -> None:
    """Writes per chip one uint16 GeoTIFF per band and a uint8 mask with 1 where a bright square is, and the lists."""
    rng = np.random.default_rng(0)
    for split, count in PER_SPLIT.items():
        folder = root / CloudCoverDetection.splits[split]
        rows = []
        for number in range(count):
            chip = f"{split[0]}{number:03d}"
            mask = np.zeros((SIZE, SIZE), np.uint8)
            top, left = rng.integers(0, 32, 2)
            mask[top : top + 32, left : left + 32] = 1
            for band in CloudCoverDetection.all_bands:
                pixels = rng.normal(np.where(mask, 6200, 1200), 100).astype(np.uint16)
                write_geotiff(folder / f"{split}_features" / chip / f"{band}.tif", pixels)
            write_geotiff(folder / f"{split}_labels" / f"{chip}.tif", mask)
            rows.append({"chip_id": chip, "location": "Chifunfu", "datetime": "2020-04-29T08:20:47Z"})
        pd.DataFrame(rows).to_csv(folder / f"{split}_metadata.csv", index=False)

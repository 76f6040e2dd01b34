"""Flood-S1 of Copernicus-Bench (Kuro Siwo: Sentinel-1 in linear power, two dates before the flood and one in it)."""

import json
from pathlib import Path

import numpy as np
from torchgeo.datasets import CopernicusBenchFloodS1

from data.geotiff import write_geotiff

PER_SPLIT = {"train": 4, "val": 2, "test": 2}
#: Pixels; the real ones have 224.
SIZE = 64


def create(root: Path, per_split: dict[str, int] = PER_SPLIT, size: int = SIZE) -> None:
    """Writes a file per band and date, a mask with 3 where nothing is known, and the index of each split.

    Permanent water is dark at every date, flooded ground in the last one.
    """
    rng = np.random.default_rng(0)
    folder = root / CopernicusBenchFloodS1.directory
    number = 0
    for split, count in per_split.items():
        index = {}
        for _ in range(count):
            number += 1
            event = f"{1111000 + number}_01"
            path, corner = f"{1111000 + number}/01/{number:032x}", (10 * size * number, 0)
            mask = rng.integers(0, 4, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            for date, day in (("SL2", "20210801"), ("SL1", "20210813"), ("MS1", "20210906")):
                wet = (mask == 1) | ((mask == 2) & (date == "MS1"))
                for band, land in (("VV", 0.1), ("VH", 0.02)):
                    power = np.where(wet, land / 20, land) * rng.gamma(4, 1 / 4, mask.shape)
                    name = f"{date}_I{band}_{event}_{day}.tif"
                    write_geotiff(folder / "data" / path / name, power.astype(np.float32), corner=corner)
            write_geotiff(folder / "data" / path / f"MK0_MLU_{event}_20210906.tif", mask, corner=corner)
            index[f"{number:032x}"] = {"path": path}
        (folder / CopernicusBenchFloodS1.filename.format(split)).write_text(json.dumps(index))

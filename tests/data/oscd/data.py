"""Onera Satellite Change Detection (Sentinel-2 L1C, 13 bands, two dates) as it is on disk."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchgeo.datasets import OSCD

PREFIX = "Onera Satellite Change Detection dataset - "
REGIONS = {"Train": ("abudhabi", "aguasclaras", "beihai", "beirut", "bercy"), "Test": ("brasilia", "montpellier")}
#: Pixels; the real regions are some 500 px wide.
HEIGHT, WIDTH = 112, 96


def create(root: Path) -> None:
    """Writes per region two dates of 13 uint16 bands, `dates.txt`, and `cm.png` with 255 where a square has changed."""
    rng = np.random.default_rng(0)
    for split, regions in REGIONS.items():
        for region in regions:
            folder = root / f"{PREFIX}Images" / region
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            top, left = rng.integers(0, 48, 2)
            mask[top : top + 40, left : left + 40] = 255
            for date in (1, 2):
                bands = folder / f"imgs_{date}_rect"
                bands.mkdir(parents=True)
                for band in OSCD.all_bands:
                    pixels = rng.normal(1500, 100, mask.shape) + 1500 * (date - 1) * (mask > 0)
                    Image.fromarray(pixels.clip(0).astype(np.uint16)).save(bands / f"{band}.tif")
            (folder / "dates.txt").write_text("date_1: 20151226\ndate_2: 20180305\n")
            labels = root / f"{PREFIX}{split} Labels" / region / "cm"
            labels.mkdir(parents=True)
            Image.fromarray(mask).save(labels / "cm.png")

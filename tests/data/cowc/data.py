"""COWC counting (aerial red, green, blue; number of cars) as it is on disk."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchgeo.datasets import COWCCounting

PER_SPLIT = {"train": 6, "test": 2}
#: Pixels; the real chips are 256 px wide.
SIZE = 64


def create(root: Path) -> None:
    """Writes PNGs, the lists of both splits with a count per chip, and empty files in the archives' places."""
    rng = np.random.default_rng(0)
    for split, count in PER_SPLIT.items():
        lines = []
        for number in range(count):
            cars = number % 4
            name = f"{split}/Potsdam_ISPRS/top_potsdam_2_10_RGB.{number}.png"
            chip = rng.integers(60, 90, (SIZE, SIZE, 3), dtype=np.uint8)
            for car in range(cars):
                chip[16 * car : 16 * car + 8, :8] = 255
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chip).save(root / name)
            lines.append(f"{name} {cars}\n")
        (root / COWCCounting.filename.format(split)).write_text("".join(lines))
    for archive in COWCCounting.filenames:
        (root / archive).touch()

"""Landslide4Sense as it is on disk: an HDF5 file per image and per mask, values divided by the challenge's vector."""

from pathlib import Path

import h5py
import numpy as np

#: Bands of the files, in order.
CHANNELS = 14
#: Digital numbers, degrees and metres of stable ground; a landslide is brighter, steeper and as high.
GROUND = np.array([1100, 820, 660, 450, 650, 1550, 1960, 1940, 670, 9, 1110, 520, 20, 770], dtype=float)
SLIDE = np.array([1300, 1200, 1300, 1600, 1700, 1500, 1500, 1500, 400, 9, 2400, 2000, 45, 770], dtype=float)
#: By what the challenge divided.
DIVISOR = np.array([
    1111.81236406, 824.63171476, 663.41636217, 445.17289745, 645.8582926, 1547.73508126, 1960.44401001,
    1941.32229668, 674.07572865, 9.04787384, 1113.98338755, 519.90397929, 20.29228266, 772.83144788,
])  # fmt: skip


def make_landslide(root: Path, n: int = 8, size: int = 32) -> Path:
    """Writes the three splits (n, n / 2, n / 2) as float64 `img` (H, W, 14) and uint8 `mask`, and returns `root`."""
    rng = np.random.default_rng(0)
    folders = {"train": "TrainData", "val": "ValidData", "test": "TestData"}
    for split, count in {"train": n, "val": max(n // 2, 1), "test": max(n // 2, 1)}.items():
        folder = root / "landslide4sense"
        images, masks = folder / folders[split] / "img", folder / folders[split] / "mask"
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            mask = rng.integers(0, 2, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            values = np.where(mask[..., None] == 1, SLIDE, GROUND) * rng.normal(1, 0.05, (size, size, CHANNELS))
            with h5py.File(images / f"image_{number}.h5", "w") as file:
                file["img"] = values / DIVISOR
            with h5py.File(masks / f"mask_{number}.h5", "w") as file:
                file["mask"] = mask
    return root

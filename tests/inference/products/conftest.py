"""Maps to write: smooth vectors of few dimensions, in CRSs and places that have gone wrong elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from terrafm_tg.inference.parts import MapParts

ABOUT = {
    "model": "terrafm_base",
    "weights": "hf://MBZUAI/TerraFM/TerraFM-B.pth",
    "pooling": "mean",
    "stride": 16,
    "patch": 16,
    "window": 224,
    "overlap": 2,
    "modalities": ["s2l2a", "s1rtc"],
    "products": {"s2l2a": ["S2B_MSIL2A_20230302T095029_N0509_R079_T33UXP_20230302T123456"], "s1rtc": ["S1A_x"]},
    "dates": {"s2l2a": ["2023-03-02T09:50:29Z"], "s1rtc": ["2023-03-01T05:10:00Z"]},
    "cloud": 12.5,
    "source": "scenes/T33UXP",
    "software": "terrafm-tg 0.1.0",
    "license": "CC-BY-4.0",
}
# Two UTM zones, south of the equator, over 180 degrees in a zone's CRS and in degrees.
PLACES = {
    "utm33": ("EPSG:32633", (160.0, 0.0, 600_000.0, 0.0, -160.0, 5_700_000.0)),
    "utm21s": ("EPSG:32721", (160.0, 0.0, 300_000.0, 0.0, -160.0, 9_000_000.0)),
    "degrees": ("EPSG:4326", (0.0015, 0.0, 12.3, 0.0, -0.0015, -3.2)),
    "utm60 over 180": ("EPSG:32660", (160.0, 0.0, 637_000.0, 0.0, -160.0, 7_200_000.0)),
    "degrees over 180": ("EPSG:4326", (0.0015, 0.0, 179.97, 0.0, -0.0015, -16.5)),
}


@pytest.fixture
def make_map(tmp_path: Path) -> Callable[..., MapParts]:
    """Makes a finished map whose vectors vary smoothly, with missing ones in a corner and a hole."""

    def make(
        height: int = 43,
        width: int = 57,
        depth: int = 12,
        part: int = 16,
        place: str = "utm33",
        name: str = "m",
        **about,
    ) -> MapParts:
        crs, transform = PLACES[place]
        parts = MapParts(
            tmp_path / f"{name}.parts", name, crs, transform, height, width, depth, part, about=ABOUT | about
        )
        parts.begin()
        values = vectors(height, width, depth)
        for row, column in np.ndindex(parts.grid):
            parts.write(row, column, values[parts.slices(row, column)])
        return parts

    return make


def vectors(height: int, width: int, depth: int) -> np.ndarray:
    """Returns (height, width, depth) float32: the value says the place, some are missing."""
    y, x = np.mgrid[:height, :width]
    wave = np.random.default_rng(1).normal(size=(2, depth))
    values = np.sin((y[..., None] * wave[0] + x[..., None] * wave[1]) / 9) * (1 + np.arange(depth)) + 0.3
    values[..., 0] = y * 1000 + x
    values[: height // 5, : width // 4] = np.nan
    values[height // 2, width // 2] = np.nan
    return values.astype(np.float32)

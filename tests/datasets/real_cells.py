"""A Major-TOM root of real pixels in all three modalities, to measure on.

``python tests/datasets/real_cells.py ROOT [REAL]`` writes 4 cells (16 tiles): L2A of the two real cells, twice: as
they are and turned; L1C and S1 mosaicked from the real patches of TerraMesh, each in one of its eight orientations,
so that no patch repeats within a tile. 20 and 60 m bands take every second and sixth pixel.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import rasterio
from tiny_files import product, write_major_tom

from terrafm_tg.datasets import MajorTOM
from terrafm_tg.modalities import MODALITIES, Modality

SIZE = 1068
_L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


def write_real_cells(root: Path, real: Path, cells: int = 4) -> Path:
    """Write the root, with a processing baseline whose offset the pixels are taken to hold."""
    l2a = _l2a(real)
    rows: dict[str, list[dict]] = {name: [] for name in MODALITIES}
    for number in range(cells):
        pixels = {band: np.rot90(image, number // 2) for band, image in l2a[number % 2].items()}
        pixels = {"s2l2a": pixels, "s2l1c": _mosaic(real, "s2l1c", number), "s1rtc": _mosaic(real, "s1rtc", number)}
        for name in MODALITIES:
            rows[name].append(product(name, f"536U_{100 + number}R", "N0510", size=SIZE, pixels=pixels[name]))
    return write_major_tom(root, rows)


def _l2a(real: Path) -> list[dict[str, np.ndarray]]:
    """Bands of the two real cells."""
    tiles = MajorTOM(real / "major_tom", native=True, harmonize=False)
    cells = []
    for first in (0, 4):
        quarters = [tiles._read(first + quarter, MODALITIES["s2l2a"]) for quarter in range(4)]
        groups = {r: _join([quarter[r] for quarter in quarters]) for r in quarters[0]}
        cells.append(_by_band(groups, MODALITIES["s2l2a"]))
    return cells


def _join(quarters: list[np.ndarray]) -> np.ndarray:
    north, south = (np.concatenate(quarters[i : i + 2], axis=2) for i in (0, 2))
    return np.concatenate([north, south], axis=1)


def _by_band(groups: dict[int, np.ndarray], modality: Modality) -> dict[str, np.ndarray]:
    return {band: image for r, bands in modality.native.items() for band, image in zip(bands, groups[r], strict=True)}


def _mosaic(real: Path, name: str, seed: int) -> dict[str, np.ndarray]:
    """Bands of a cell, of 5 x 5 patches."""
    folder = {"s1rtc": "S1RTC", "s2l1c": "S2L1C"}[name]
    patches = []
    for path in sorted((real / "terramesh" / folder).glob("*.tif")):
        with rasterio.open(path) as file:
            patches.append(file.read())
    ways = list(itertools.product(range(len(patches)), range(4), (1, -1)))
    np.random.default_rng(seed).shuffle(ways)
    turned = [np.rot90(patches[i], turns, (1, 2))[:, :, ::way] for i, turns, way in ways[:25]]
    image = np.concatenate([np.concatenate(turned[i : i + 5], axis=2) for i in range(0, 25, 5)], axis=1)
    image = image[:, :SIZE, :SIZE]
    if name == "s1rtc":
        return dict(zip(("vv", "vh"), (10 ** (image.astype(np.float64) / 10)).astype(np.float32), strict=True))
    steps = dict(zip(MODALITIES[name].bands, MODALITIES[name].resolutions, strict=True)) | {"B10": 60}
    return {band: image[i, :: steps[band] // 10, :: steps[band] // 10].astype(np.uint16) for i, band in enumerate(_L1C)}


if __name__ == "__main__":
    shared = Path(__file__).resolve().parents[3] / "shared" / "real"
    write_real_cells(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else shared)

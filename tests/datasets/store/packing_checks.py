"""What tests of packing share: a small Major-TOM root, and how a store is compared and read without its dataset."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from datasets.tiny_files import product, write_major_tom
from terrafm_tg.datasets import MajorTOM, PackedTiles
from terrafm_tg.modalities import MODALITIES, Modality

#: Five cells: three Parquet parts per modality.
CELLS = ("536U_101R", "536U_104R", "537U_98R", "538U_99R", "539U_100R")


def write_root(root: Path, cells: Sequence[str] = CELLS, **changes) -> Path:
    """A Major-TOM root; L2A has the offset of baseline 04.00 in the first cell, the third cell has no radar."""
    rows = {
        "s2l2a": [product("s2l2a", cell, "N0400" if cell == CELLS[0] else "N0301") for cell in cells],
        "s2l1c": [product("s2l1c", cell) for cell in cells],
        "s1rtc": [product("s1rtc", cell) for cell in cells if cell != CELLS[2]],
    }
    for modality, products in changes.items():
        rows[modality] = products
    return write_major_tom(root, rows)


def source(root: Path, **settings) -> MajorTOM:
    """The root's tiles of 12 pixels, as they are stored."""
    return MajorTOM(root, native=True, tile_size=12, harmonize=False, **settings)


def digests(out: Path) -> dict[str, str]:
    """Path and SHA-256 of each file of a store."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def stored(out: Path, row: int, modality: Modality) -> dict[int, np.ndarray]:
    """A tile's native groups as the store holds them."""
    return PackedTiles(out, harmonize=False)._read(row, modality)


def same_pixels(out: Path, tiles: MajorTOM) -> None:
    """The store holds the tiles of a dataset, no more and no less, with their pixels bit for bit."""
    copy = PackedTiles(out, harmonize=False)
    assert len(copy) == len(tiles)
    for row in range(len(copy)):
        for modality in MODALITIES.values():
            assert copy.table[f"has_{modality.name}"].iat[row] == tiles.table[f"has_{modality.name}"].iat[row]
            if copy.table[f"has_{modality.name}"].iat[row]:
                expected = tiles._read(row, modality)
                for resolution, group in copy._read(row, modality).items():
                    np.testing.assert_array_equal(group, expected[resolution], strict=True)

"""Offsets of products whose name does not tell them (N9999), by their pixels and by L1C beside L2A."""

import numpy as np
import pytest

from datasets.tiny_files import product, write_major_tom
from refusals import refused
from terrafm_tg.datasets import MajorTOM, build_index
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.modalities import MODALITIES

CELLS = ("536U_101R", "536U_104R", "536U_107R")
SIZE = 120


def scene(level: str, offset: int, dark: bool = True) -> dict[str, np.ndarray]:
    """Digital numbers of a country with a lake in a fifth of it, or (not dark) of nothing but sand."""
    held = MODALITIES[f"s2{level}"]
    bands = dict(zip(held.bands, held.resolutions, strict=True)) | ({"B10": 60} if level == "l1c" else {})
    level_of = {"B10": 15, "B11": 2100, "B12": 1300, "B09": 900 if level == "l1c" else 3000, "B8A": 3000, "B08": 2900}
    pixels = {}
    for band, res in bands.items():
        random, side = np.random.default_rng([offset, *band.encode()]), SIZE * 10 // res
        values = random.normal(level_of.get(band, 800), 0.15 * level_of.get(band, 800), (side, side))
        if band != "B10":
            water = np.arange(side) < side // 5
            values[water] = random.normal(60 if band in ("B11", "B12", "B8A", "B08") else 250, 8, (water.sum(), side))
        if not dark and band != "B10":
            values = random.normal(4000 if level == "l2a" else 3640, 100, (side, side))
        pixels[band] = np.clip(np.rint(values + offset), 1, 65535).astype(np.uint16)
    return pixels


def write(root, baseline="N9999", **levels):
    """Products by level: (cell, offset, dark)."""
    rows = {
        f"s2{level}": [
            product(f"s2{level}", cell, baseline, pixels=scene(level, offset, dark), size=SIZE)
            for cell, offset, dark in held
        ]
        for level, held in levels.items()
    }
    return write_major_tom(root, rows)


def offsets(table, level):
    return dict(zip(table["cell"].astype(str), table[f"offset_s2{level}"].tolist(), strict=True))


@pytest.mark.parametrize("level", ["l1c", "l2a"])
def test_pixels_tell_and_it_is_recorded(tmp_path, level):
    root = write(tmp_path, **{level: [(CELLS[0], 0, True), (CELLS[1], 1000, True)]})
    expected = {CELLS[0]: 0, CELLS[1]: 1000}
    assert offsets(MajorTOM(root, tile_size=SIZE // 2).table, level) == expected
    build_index(root, tile_size=SIZE // 2, workers=0, progress=False)
    table = read_index(root / "index.parquet")[0]
    assert offsets(table, level) == expected
    assert table[f"baseline_s2{level}"].eq(9999).all()
    assert table[f"proof_s2{level}"].nunique() == 2
    assert table[f"proof_s2{level}"].notna().all()
    tiles = MajorTOM(root, tile_size=SIZE // 2, native=True)
    images = [tiles[tiles.tile_slice(row)][f"image_s2{level}_20m"].numpy().astype(int) for row in (0, 4)]
    assert abs(np.median(images[0]) - np.median(images[1])) < 100


def test_sand_tells_nothing_but_for_l1c_beside(tmp_path):
    both = [(cell, offset, False) for cell, offset in zip(CELLS, (0, 1000, 1000), strict=True)]
    alone = write(tmp_path / "alone", l2a=both)
    with refused(match=r"12 of 12 tiles.*N9999.*`terrafm index` asks the pixels.*, or set.*`ambiguous_offset`"):
        MajorTOM(alone, tile_size=SIZE // 2)
    build_index(alone, tile_size=SIZE // 2, workers=0, progress=False)
    assert set(offsets(read_index(alone / "index.parquet")[0], "l2a").values()) == {-1}
    l1c = [(cell, 0, False) for cell in CELLS[:2]]  # cirrus tells
    paired = write(tmp_path / "paired", l2a=both[:2], l1c=l1c)
    build_index(paired, tile_size=SIZE // 2, workers=0, progress=False)
    table = read_index(paired / "index.parquet")[0]
    assert list(offsets(table, "l1c").values()) == [0, 0]
    assert list(offsets(table, "l2a").values()) == [0, 1000]
    assert table["proof_s2l2a"].astype(str).str.contains("L1C").all()


def test_many_are_left_to_the_index(tmp_path, monkeypatch):
    root = write(tmp_path, l2a=[(CELLS[0], 0, True), (CELLS[1], 1000, True)])
    monkeypatch.setattr("terrafm_tg.datasets.majortom.dataset._FEW", 1)
    with refused(match="`terrafm index` asks the pixels"):
        MajorTOM(root, tile_size=SIZE // 2)
    build_index(root, tile_size=SIZE // 2, workers=0, progress=False)
    assert offsets(MajorTOM(root, tile_size=SIZE // 2).table, "l2a") == {CELLS[0]: 0, CELLS[1]: 1000}


def test_damaged_pictures_stay_unknown(tmp_path):
    root = write(tmp_path, l2a=[(CELLS[0], 0, True)])
    part = root / "Core-S2L2A/images/part_00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 8 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 8)
    part.write_bytes(content)
    build_index(root, tile_size=SIZE // 2, workers=0, progress=False)
    table = read_index(root / "index.parquet")[0]
    assert offsets(table, "l2a") == {CELLS[0]: -1}


@pytest.mark.parametrize("level", ["l1c", "l2a"])
@pytest.mark.parametrize(("baseline", "held", "named"), [("N0509", 0, 1000), ("N0301", 1000, 0)])
def test_names_that_pixels_contradict_are_not_believed(tmp_path, level, baseline, held, named):
    """R1: who takes the offset off keeps the names."""
    root = write(tmp_path, baseline, **{level: [(cell, held, True) for cell in CELLS]})
    if held and level == "l2a":  # evidence for 1000 is never certain without cirrus
        assert set(offsets(MajorTOM(root, tile_size=SIZE // 2).table, level).values()) == {named}
        return
    with pytest.warns(
        UserWarning, match=f"say that they hold an offset of {named} DN, and their pixels that they do not"
    ):
        table = MajorTOM(root, tile_size=SIZE // 2).table
    assert offsets(table, level) == dict.fromkeys(CELLS, held)
    with pytest.warns(UserWarning, match="the pixels of each are asked"):
        build_index(root, tile_size=SIZE // 2, workers=0, progress=False)
    table = read_index(root / "index.parquet")[0]
    assert offsets(table, level) == dict.fromkeys(CELLS, held)
    assert table[f"proof_s2{level}"].astype(str).str.contains("by its pixels").all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("baseline", "held"), [("N0509", 1000), ("N0301", 0)])
def test_names_that_are_right_are_believed(tmp_path, baseline, held):
    both = [(CELLS[0], held, True), (CELLS[1], held, False)]
    root = write(tmp_path, baseline, l1c=both, l2a=both)
    table = MajorTOM(root, tile_size=SIZE // 2).table
    assert [set(offsets(table, level).values()) for level in ("l1c", "l2a")] == [{held}] * 2

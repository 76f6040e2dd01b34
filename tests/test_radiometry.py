import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from terrafm_tg.radiometry import offset_beside, offset_by_pixels, offsets_by_name, remove_offset


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419", 1000),
        ("S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608", 0),
        ("S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543", -1),
        ("S2B_MSIL1C_20230101T000000_N0509", 1000),
        ("S2A_MSIL2A_20220120T085611_N0301_R007_T33NZA_20220706T153419", 0),
        ("282D_485L_3_3", -1),
        (None, -1),
    ],
)
def test_by_name(name, offset):
    got = offsets_by_name(pd.Series([name], dtype="str"))
    assert got.dtype == np.int16
    assert got.tolist() == [offset]


@given(arrays(np.uint16, 20), st.sampled_from([0, 1000]))
def test_removal_keeps_what_is_missing(pixels, offset):
    expected = [0 if v == 0 else max(int(v) - offset, 1) for v in pixels]
    got = remove_offset(pixels, offset)
    assert got.dtype == np.uint16
    assert got.tolist() == (pixels.tolist() if offset == 0 else expected)


def test_by_pixels_of_real_tiles(real_data):
    """B10 of TerraMesh's L1C tells; README of the samples says which sites hold the offset."""
    order = [*[f"B0{i}" for i in range(1, 9)], "B8A", "B09", "B10", "B11", "B12"]
    found = {}
    for path in (real_data / "terramesh/S2L1C").glob("*.tif"):
        with rasterio.open(path) as src:
            found[path.name.split("_")[0]] = offset_by_pixels(dict(zip(order, src.read(), strict=True)))
    assert found == {"282D": 1000, "433D": 1000, "609U": 1000, "38D": 0, "637U": 0}


def test_by_pixels_says_when_it_cannot_tell():
    bright = np.full((30, 30), 6000, np.uint16)
    assert offset_by_pixels({"B02": bright, "B12": bright}) == -1
    assert offset_by_pixels({"B02": 0 * bright}) == -1
    dark = bright.copy()
    dark[:3] = 400
    assert offset_by_pixels({"B02": bright, "B12": dark}) == 0
    assert offset_by_pixels({"B02": bright, "B10": np.full((30, 30), 1012, np.uint16)}) == 1000


@pytest.mark.parametrize("l1c_offset", [0, 1000])
@pytest.mark.parametrize(("held", "found"), [(0, 0), (1000, 1000), (500, -1)])
def test_by_the_other_level(l1c_offset, held, found):
    surface = np.random.default_rng(0).integers(100, 4000, (2, 40, 40))
    l2a = dict(zip(("B11", "B12"), surface + held + 80, strict=True))
    l1c = dict(zip(("B11", "B12"), surface + l1c_offset, strict=True))
    assert offset_beside(l2a, l1c, l1c_offset) == found
    assert offset_beside({}, l1c, l1c_offset) == -1

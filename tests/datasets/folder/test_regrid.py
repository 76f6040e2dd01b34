import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import from_bounds
from scipy.ndimage import map_coordinates

from terrafm_tg.datasets.folder.dataset import source_window
from terrafm_tg.datasets.tiles.warp import warp

UTM = CRS.from_epsg(32633)


@settings(deadline=None)  # the first warp loads GDAL's
@given(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5), st.sampled_from([7, 10, 13]), st.integers(0, 99))
def test_agrees_with_scipy(east, south, size, seed):
    pixels = np.random.default_rng(seed).uniform(1, 9, (2, 12, 11))
    extent = (100 + east, 880 - south, 210 + east, 1000 - south)
    target = from_bounds(*extent, size, 12)
    source = Affine(10, 0, 100, 0, -10, 1000)
    got = warp(pixels, source, UTM, target, UTM, (12, size), nodata=0, average=False)
    rows = south / 10 + np.arange(12)
    columns = (east + (np.arange(size) + 0.5) * 110 / size) / 10 - 0.5
    for plane, expected in zip(got, pixels, strict=True):
        held = np.meshgrid(rows.clip(0, 11), columns.clip(0, 10), indexing="ij")
        np.testing.assert_allclose(plane, map_coordinates(expected, held, order=1), rtol=1e-6)


def test_outside_and_missing_pixels():
    pixels = np.full((1, 4, 4), 100, np.uint16)
    pixels[0, 1, 1] = 0
    source, target = Affine(10, 0, 0, 0, -10, 40), Affine(10, 0, -20, 0, -10, 40)
    got = warp(pixels, source, UTM, target, UTM, (4, 4), nodata=0, average=False)
    assert got.dtype == np.uint16
    assert got[0].tolist() == [[0, 0, 100, 100], [0, 0, 100, 0], [0, 0, 100, 100], [0, 0, 100, 100]]


@pytest.mark.parametrize(
    ("extent", "window", "exact"),
    [
        ((20, 40, 50, 80), (2, 2, 3, 4), True),
        ((20, 40, 50, 84), (1, 0, 5, 7), False),
        ((-5, 40, 50, 80), (0, 1, 6, 6), False),
    ],
)
def test_window_of_an_extent(extent, window, exact):
    grid = {
        "height": 10,
        "width": 10,
        "count": 1,
        "dtype": "uint8",
        "transform": Affine(10, 0, 0, 0, -10, 100),
    }
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs="EPSG:32633", **grid) as src:
            src.write(np.ones((1, 10, 10), np.uint8))
        with rasterio.open(memory) as src:
            got, is_exact = source_window(src, extent)
    assert is_exact == exact
    assert got.col_off == window[0]
    assert (got.width, got.height) == window[2:]


def test_a_pixel_that_one_band_lacks_is_no_neighbor():
    pixels = np.full((2, 4, 4), 100.0)
    pixels[0, 1, 1] = 0
    source, target = Affine(10, 0, 0, 0, -10, 40), Affine(10, 0, 3, 0, -10, 40)
    got = warp(pixels, source, UTM, target, UTM, (4, 3), nodata=0)
    assert set(got[0].ravel()) == {0, 100}
    assert set(got[1].ravel()) == {100}

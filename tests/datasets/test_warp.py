import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from terrafm_tg.datasets.tiles.warp import needed_window, warp

CRS_33 = CRS.from_epsg(32633)


def grid(x: float, y: float, size: float = 10.0) -> Affine:
    return Affine(size, 0, x, 0, -size, y)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_grids_that_agree_are_copied(dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(1, 9999, (2, 30, 40)).astype(dtype)
    pixels[:, 3:6, 5:8] = 0
    got = warp(pixels, grid(0, 300), CRS_33, grid(50, 280), CRS_33, (20, 20), 0)
    np.testing.assert_array_equal(got, pixels[:, 2:22, 5:25])
    beyond = warp(pixels[0], grid(0, 300), CRS_33, grid(-20, 320), CRS_33, (5, 5), 0)
    assert (beyond[:2] == 0).all()
    np.testing.assert_array_equal(beyond[2:, 2:], pixels[0, :3, :3])
    assert got.dtype == beyond.dtype == dtype


def test_a_plane_is_interpolated_and_averaged() -> None:
    rows, columns = np.mgrid[:60, :60]
    plane = (100 + 2 * columns + 3 * rows).astype(np.float32)
    shifted = warp(plane, grid(0, 600), CRS_33, grid(103, 496), CRS_33, (10, 10), -1)
    expected = 100 + 2 * (10.3 + np.mgrid[:10, :10][1]) + 3 * (10.4 + np.mgrid[:10, :10][0])
    np.testing.assert_allclose(shifted, expected, atol=1e-2)
    coarse = warp(plane, grid(0, 600), CRS_33, grid(0, 600, 20), CRS_33, (30, 30), -1)
    np.testing.assert_allclose(coarse, plane.reshape(30, 2, 30, 2).mean((1, 3)), atol=1e-3)


def test_the_window_that_a_box_needs() -> None:
    profile = {"driver": "GTiff", "width": 50, "height": 40, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=CRS_33, transform=grid(500_000, 5_000_000)) as file:
            file.write(np.ones((1, 40, 50), np.uint8))
        with rasterio.open(memory.name) as src:
            window = needed_window(src, CRS_33, (500_100, 4_999_800, 500_200, 4_999_900))
            assert window is not None
            assert (window.col_off, window.row_off, window.width, window.height) == (8, 8, 14, 14)
            assert needed_window(src, CRS_33, (600_000, 4_999_800, 600_100, 4_999_900)) is None

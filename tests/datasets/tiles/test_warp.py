import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import from_bounds
from scipy.ndimage import map_coordinates

from terrafm_tg.datasets.tiles.warp import needed_window, warp

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


@pytest.mark.parametrize(("east", "south"), [(20, 30), (-20, 30), (20, -30), (-200, 0), (0, 200), (0.004, 0)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_pixels_that_end_on_the_same_lines_are_copied(east, south, dtype):
    pixels = np.random.default_rng(0).integers(0, 9, (2, 6, 5)).astype(dtype)
    source, target = Affine(10, 0, 0, 0, -10, 60), Affine(10, 0, east, 0, -10, 60 - south)
    padded = np.zeros((2, 100, 100), dtype)
    padded[:, 40:46, 40:45] = pixels
    row, column = 40 + south // 10, 40 + round(east / 10)
    got = warp(pixels, source, UTM, target, UTM, (4, 7), nodata=0)
    np.testing.assert_array_equal(got, padded[:, row : row + 4, column : column + 7], strict=True)


def test_a_grid_in_degrees_of_another_step_is_interpolated():
    pixels = np.arange(40_000, dtype=np.float64).reshape(1, 200, 200) + 1
    source, target = Affine(1.02e-4, 0, 10, 0, -1.02e-4, 50), Affine(1.01e-4, 0, 10, 0, -1.01e-4, 50)
    got = warp(pixels, source, CRS.from_epsg(4326), target, CRS.from_epsg(4326), (200, 200), 0, average=False)
    at = (np.arange(200) + 0.5) * 1.01 / 1.02 - 0.5
    expected = map_coordinates(pixels[0], np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)


def test_a_pixel_that_one_band_lacks_is_no_neighbor():
    pixels = np.full((2, 4, 4), 100.0)
    pixels[0, 1, 1] = 0
    source, target = Affine(10, 0, 0, 0, -10, 40), Affine(10, 0, 3, 0, -10, 40)
    got = warp(pixels, source, UTM, target, UTM, (4, 3), nodata=0)
    assert set(got[0].ravel()) == {0, 100}
    assert set(got[1].ravel()) == {100}


def grid(x: float, y: float, size: float = 10.0) -> Affine:
    return Affine(size, 0, x, 0, -size, y)


def test_a_plane_is_interpolated_and_averaged() -> None:
    rows, columns = np.mgrid[:60, :60]
    plane = (100 + 2 * columns + 3 * rows).astype(np.float32)
    shifted = warp(plane, grid(0, 600), UTM, grid(103, 496), UTM, (10, 10), -1)
    expected = 100 + 2 * (10.3 + np.mgrid[:10, :10][1]) + 3 * (10.4 + np.mgrid[:10, :10][0])
    np.testing.assert_allclose(shifted, expected, atol=1e-2)
    coarse = warp(plane, grid(0, 600), UTM, grid(0, 600, 20), UTM, (30, 30), -1)
    np.testing.assert_allclose(coarse, plane.reshape(30, 2, 30, 2).mean((1, 3)), atol=1e-3)


def test_the_window_that_a_box_needs() -> None:
    profile = {"driver": "GTiff", "width": 50, "height": 40, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=UTM, transform=grid(500_000, 5_000_000)) as file:
            file.write(np.ones((1, 40, 50), np.uint8))
        with rasterio.open(memory.name) as src:
            window = needed_window(src, UTM, (500_100, 4_999_800, 500_200, 4_999_900))
            assert window is not None
            assert (window.col_off, window.row_off, window.width, window.height) == (8, 8, 14, 14)
            assert needed_window(src, UTM, (600_000, 4_999_800, 600_100, 4_999_900)) is None


def smooth(lon, lat):
    """A field that is the same at any turn of longitude, and at a pole."""
    return 2 + np.sin(np.radians(lon) * 3000) * np.cos(np.radians(lat)) + np.cos(np.radians(lat) * 3000)


def project(epsg):
    return pyproj.Transformer.from_crs(4326, epsg, always_xy=True)


def lonlat_of(epsg, transform, shape):
    rows, columns = np.indices(shape) + 0.5
    x, y = transform.c + columns * transform.a, transform.f + rows * transform.e
    return (x, y) if epsg == 4326 else project(epsg).transform(x, y, direction="INVERSE")


DEGREE = 1 / 9000  # of latitude and longitude: 12 m
CASES = {
    "degrees to the zone west of 180": (4326, 179.9, 32760),
    "degrees to the zone east of it": (4326, 179.9, 32701),
    "degrees that begin at -180.1": (4326, -180.1, 32701),
    "degrees that begin a turn further": (4326, 539.9, 32760),
    "degrees in another turn": (4326, -180.1, 4326),
    "another zone across it": (32760, None, 32701),
    "from a zone to degrees": (32701, None, 4326),
    "map grid of Fiji": (3460, None, 32760),
}


@pytest.mark.parametrize("case", CASES)
def test_over_180_degrees(case):
    """A window and its warp, against the field itself at each pixel."""
    epsg, west, to_epsg = CASES[case]
    if west is None:
        x, y = project(epsg).transform(180.0, -17.0)
        source, side = Affine(10, 0, round(x) - 5000, 0, -10, round(y) + 5000), 1000
    else:
        source, side = Affine(DEGREE, 0, west, 0, -DEGREE, -16.9), 1800
    pixels = smooth(*lonlat_of(epsg, source, (side, side))).astype(np.float32)
    if to_epsg == 4326:
        to = Affine(DEGREE, 0, 179.99 + DEGREE / 3, 0, -DEGREE, -16.99)
    else:
        x, y = project(to_epsg).transform(180.0, -17.0)
        to = Affine(10, 0, round(x) - 1000, 0, -10, round(y) + 1000)
    crs, to_crs = CRS.from_epsg(epsg), CRS.from_epsg(to_epsg)
    with MemoryFile() as memory:
        profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "height": side, "width": side}
        with memory.open(**profile, crs=crs, transform=source) as file:
            file.write(pixels, 1)
        with memory.open() as src:
            window = needed_window(src, to_crs, rasterio.transform.array_bounds(180, 180, to))
            assert window.height < 300
            assert window.width < 300
            part, origin = src.read(1, window=window), src.window_transform(window)
    got = warp(part, origin, crs, to, to_crs, (180, 180), -32768)
    np.testing.assert_allclose(got, smooth(*lonlat_of(to_epsg, to, (180, 180))), atol=0.02)


def test_a_map_around_the_globe():
    """Both of its ends are needed across 180 degrees."""
    source = Affine(0.5, 0, -180, 0, -0.5, 90)
    pixels = np.random.default_rng(0).uniform(1, 2, (360, 720)).astype(np.float32)
    with MemoryFile() as memory:
        profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "height": 360, "width": 720}
        with memory.open(**profile, crs=CRS.from_epsg(4326), transform=source) as file:
            file.write(pixels, 1)
        with memory.open() as src:
            x, y = project(32701).transform(180.0, -17.0)
            window = needed_window(src, CRS.from_epsg(32701), (x - 1e5, y - 1e5, x + 1e5, y + 1e5))
    assert (window.col_off, window.width) == (0, 720)


def test_around_a_pole():
    x, y = project(32661).transform(0, 90)
    source = Affine(10, 0, x - 3000, 0, -10, y + 3000)
    pixels = (2 + np.indices((600, 600)).sum(axis=0) / 300).astype(np.float32)  # a plane: exact however it is turned
    to = Affine(10, 0, -1000, 0, -10, 1000)
    crs, to_crs = CRS.from_epsg(32661), CRS.from_epsg(3413)
    got = warp(pixels, source, crs, to, to_crs, (200, 200), -32768, average=False)
    lon, lat = lonlat_of(3413, to, (200, 200))
    east, north = project(32661).transform(lon, lat)
    expected = 2 + ((east - source.c) / 10 - 0.5 + (source.f - north) / 10 - 0.5) / 300
    np.testing.assert_allclose(got, expected, atol=2e-4)

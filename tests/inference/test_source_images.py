"""Images of a source: their grids, their pixels in the right place, and what is joined."""

import numpy as np
import pandas as pd
import pyproj
import pytest
from affine import Affine

from inference.scenes import CORNER, KNOWN, pattern, write_optical, write_radar
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.sources import find_images

#: Where a scene lies: CRS, corner and pixel of it.
PLACES = {
    "zone 33": ("EPSG:32633", Affine(10, 0, 399960, 0, -10, 5400000)),
    "zone 32": ("EPSG:32632", Affine(10, 0, 799980, 0, -10, 5400000)),
    "south": ("EPSG:32760", Affine(10, 0, 600000, 0, -10, 8000020)),
    "over 180, UTM": ("EPSG:32701", Affine(10, 0, 176000, 0, -10, 8100000)),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 11.5, 0, -1e-4, 48.2)),
    "degrees, south": ("EPSG:4326", Affine(1e-4, 0, -60.2, 0, -1e-4, -20.1)),
    "degrees, over 180": ("EPSG:4326", Affine(1e-4, 0, 179.985, 0, -1e-4, -16.5)),
    "30 m": ("EPSG:32633", Affine(30, 0, 399960, 0, -30, 5400000)),
    "polar": ("EPSG:3413", Affine(10, 0, -300000, 0, -10, -1500000)),
}


def middle(plane):
    """Column and row of the middle of what is bright."""
    bright = np.nan_to_num(plane.astype(np.float64) - 1000).clip(0)
    rows, columns = np.mgrid[: plane.shape[0], : plane.shape[1]] + 0.5
    return (bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()


@pytest.mark.parametrize("name", PLACES)
def test_pixels_lie_where_the_scenes_lie(tmp_path, name):
    """The middle of a bright spot, on the ground, by pyproj: to a hundredth of a pixel of 10 m."""
    crs, transform = PLACES[name]
    y, x = np.mgrid[:240, :300]
    at = 171.3, 97.6  # column and row of the spot's middle
    spot = np.exp(-((x + 0.5 - at[0]) ** 2 + (y + 0.5 - at[1]) ** 2) / (2 * 9.0**2))
    stored = np.rint(800 + 4000 * spot)
    write_optical(tmp_path, np.tile(stored, (12, 1, 1)), crs=crs, transform=transform)
    (image,) = find_images(tmp_path, **KNOWN)
    assert image.transform.a == pytest.approx(10)
    assert image.transform.e == pytest.approx(-10)
    pixels, damage = image.read(slice(0, image.height), slice(0, image.width))
    assert not damage
    found = image.transform * middle(pixels["s2l2a"][2])
    to = pyproj.Transformer.from_crs(crs, image.crs, always_xy=True)
    truth = to.transform(*(transform * middle(stored)))
    off = np.subtract(found, truth) / 10
    assert np.abs(off).max() < 0.01, off
    if name.startswith("degrees"):
        zone = {"degrees": 32632, "degrees, south": 32720, "degrees, over 180": 32760}[name]
        assert image.crs in (f"EPSG:{zone}", "EPSG:32701")


def test_a_part_is_a_part_of_the_whole(tmp_path):
    """Whatever part is asked for, bands of 60 m and warped radar have the same values, and beyond is nothing."""
    write_optical(tmp_path, pattern(300, 306, 12, 200, 4000))
    radar = pattern(400, 400, 2, -18, -5, 1)
    radar[1] -= 7
    to = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True)
    x, y = to.transform(*(CORNER * (0, 0)))
    write_radar(tmp_path, radar, crs="EPSG:32632", transform=Affine(10, 0, x - 503, 0, -10, y + 497))
    (image,) = find_images(tmp_path, **KNOWN)
    assert set(image.products) == {"s1rtc", "s2l2a"}
    whole, _ = image.read(slice(0, 300), slice(0, 306))
    rng = np.random.default_rng(0)
    for _ in range(12):
        top, left = rng.integers(-40, 280, 2)
        high, wide = rng.integers(8, 200, 2)
        part, _ = image.read(slice(top, top + high), slice(left, left + wide))
        for name, pixels in part.items():
            expected = np.full((len(pixels), high, wide), np.nan, np.float32)
            y, x = slice(max(top, 0), min(top + high, 300)), slice(max(left, 0), min(left + wide, 306))
            expected[:, y.start - top : y.stop - top, x.start - left : x.stop - left] = whole[name][:, y, x]
            np.testing.assert_array_equal(pixels, expected)


def test_scenes_are_joined_by_place_and_date(tmp_path):
    optical = pattern(96, 96, 12, 200, 4000)
    radar = pattern(96, 96, 2, -18, -8, 1) - np.array([0, 7])[:, None, None]
    for day in ("20230302", "20230312"):
        write_optical(tmp_path, optical, day)
    for day in ("20230304", "20230313", "20230320"):
        write_radar(tmp_path, radar, day)
    write_optical(tmp_path / "far", optical, "20230301", transform=CORNER * Affine.translation(500, 0))
    images = find_images(tmp_path, **KNOWN)
    joined = {tuple(sorted((n, d[0][:10]) for n, d in image.dates.items())) for image in images}
    assert joined == {
        (("s1rtc", "2023-03-04"), ("s2l2a", "2023-03-02")),
        (("s1rtc", "2023-03-13"), ("s2l2a", "2023-03-12")),
        (("s2l2a", "2023-03-01"),),
        (("s1rtc", "2023-03-20"),),
    }
    apart = find_images(tmp_path, max_days=1.5, **KNOWN)
    assert sum(len(image.products) == 2 for image in apart) == 1
    assert all(pd.Timestamp(image.dates["s2l2a"][0]).day == 12 for image in apart if len(image.products) == 2)
    alone = find_images(tmp_path, modalities=["s1rtc"], **KNOWN)
    assert [list(image.products) for image in alone] == [["s1rtc"]] * 3
    assert len({image.name for image in images}) == len(images)


def test_frames_of_one_pass_are_one_image(tmp_path):
    """Radar of one pass in two frames covers what each leaves."""
    write_optical(tmp_path, pattern(96, 96, 12, 200, 4000))
    radar = pattern(96, 96, 2, -18, -8, 1) - np.array([0, 7])[:, None, None]
    write_radar(tmp_path / "a", radar[:, :, :50])
    write_radar(tmp_path / "b", radar[:, :, 50:], transform=CORNER * Affine.translation(50, 0))
    (image,) = find_images(tmp_path, **KNOWN)
    pixels, _ = image.read(slice(0, 96), slice(0, 96))
    np.testing.assert_allclose(pixels["s1rtc"], radar, atol=1e-4)
    assert len(image.products["s1rtc"]) == 2


def test_a_box_cuts_to_tokens_of_the_whole(tmp_path):
    from terrafm_tg.datasets.scenes.stac.search import StacSearch

    optical = pattern(480, 480, 12, 200, 4000)
    write_optical(tmp_path, optical)
    (whole,) = find_images(tmp_path, **KNOWN)
    to = pyproj.Transformer.from_crs(whole.crs, 4326, always_xy=True)
    west, south = to.transform(*(whole.transform * (110, 330)))
    east, north = to.transform(*(whole.transform * (200, 220)))
    (image,) = find_images(tmp_path, search=StacSearch(bbox=[west, south, east, north]), **KNOWN)
    left, top = (round(v) for v in ~whole.transform * (image.transform.c, image.transform.f))
    assert left % 48 == top % 48 == 0
    assert left <= 110
    assert top <= 220
    assert left + image.width >= 200
    assert top + image.height >= 330
    assert image.height < 200
    part, _ = image.read(slice(0, image.height), slice(0, image.width))
    expected = np.rint(optical)[:, top : top + image.height, left : left + image.width]
    np.testing.assert_array_equal(part["s2l2a"][[1, 2, 3, 7]], expected[[1, 2, 3, 7]])
    with pytest.raises(TerraFMError, match="another box"):
        find_images(tmp_path, search=StacSearch(bbox=[0, 0, 1, 1]), **KNOWN)


def test_tiles_of_an_archive_are_images(small_world):
    images = find_images(small_world)
    assert all(image.crs.startswith("EPSG:32") for image in images)
    pixels, _ = images[0].read(slice(0, images[0].height), slice(0, images[0].width))
    from terrafm_tg.datasets.source import open_tiles

    dataset = open_tiles(str(small_world))
    dataset.native = False
    sample = dataset[dataset.tile_slice(images[0].row)]
    for name in pixels:
        np.testing.assert_array_equal(pixels[name], sample[f"image_{name}"].numpy())


def test_what_is_no_source_is_said(tmp_path):
    with pytest.raises(TerraFMError, match="does not exist"):
        find_images(tmp_path / "none")
    write_optical(tmp_path, pattern(96, 96, 12, 200, 4000))
    with pytest.raises(TerraFMError, match="choose other modalities"):
        find_images(tmp_path, modalities=["s1rtc"], **KNOWN)

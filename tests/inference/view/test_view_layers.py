"""Maps in a page: averages, classes, vectors and pictures beside plain loops over the pixels."""

import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from inference.view.maps import COLORS, classes, cosines_of, embeddings, stored_of, vectors_of, write, write_scene
from refusals import refused
from terrafm_tg.inference.view.layers import class_layer, fit_basis, picture_layer, score_layer, vector_layer
from terrafm_tg.inference.view.map_file import MapFile

PLACE = Affine(160, 0, 500_000, 0, -160, 5_500_000)
BLOCKS = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def opened(path: Path, values: np.ndarray, **options: object) -> MapFile:
    return MapFile.open(write(path, values, PLACE, **options))


@pytest.mark.parametrize("name", ["embeddings", "classes", "scores", "picture"])
def test_kinds_of_maps_are_told_apart(tmp_path: Path, name: str) -> None:
    write_scene(tmp_path)
    end = {"embeddings": "", "classes": ".classes", "scores": ".change", "picture": ".preview"}[name]
    assert MapFile.open(tmp_path / f"scene{end}.tif").kind == name


@pytest.mark.parametrize("factor", [1, 3, 5, 50])
def test_scores_are_averages_of_the_pixels_that_are_there(tmp_path: Path, factor: int) -> None:
    values = np.random.default_rng(0).normal(3, 2, (41, 50)).astype(np.float32)
    values[:7, 20:33] = np.nan
    cells = -(-41 // factor), -(-50 // factor)
    layer = score_layer(opened(tmp_path / "a.tif", values[None], nodata=np.nan, **BLOCKS), cells[0] * cells[1] * 4 / 3)
    assert (layer["factor"], layer["height"], layer["width"]) == (factor, *cells)
    assert layer["place"] == [500_000, 5_500_000, 160 * factor, 160 * factor]
    parts = [
        [values[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor] for c in range(cells[1])]
        for r in range(cells[0])
    ]
    expected = np.array([[np.nanmean(x) if np.isfinite(x).any() else np.nan for x in row] for row in parts])
    (stored,) = stored_of(layer)
    assert_array_equal(stored == 0, np.isnan(expected))
    ((name, low, high),) = layer["bands"]
    assert name == "Band 1"
    found = low + (stored - 1.0) / 254 * (high - low)
    step = (high - low) / 254
    assert_allclose(found[stored > 0], expected[stored > 0], atol=step / 2 + 1e-5)


@pytest.mark.parametrize("factor", [1, 4, 7])
def test_the_most_frequent_class_of_a_cell_stands_for_it(tmp_path: Path, factor: int) -> None:
    values = np.random.default_rng(1).integers(0, 4, (600, 61), dtype=np.uint8)  # more rows than are read at a time
    values[100:140, 5:30] = 255
    raster = opened(tmp_path / "a.tif", values[None], colors=COLORS, nodata=255)
    cells = -(-600 // factor), -(-61 // factor)
    layer = class_layer(raster, cells[0] * cells[1] * 4 / 3)
    stored = stored_of(layer)
    for row, column in np.ndindex(cells):
        part = values[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        counts = np.bincount(part[part < 255], minlength=4)
        assert stored[row, column] == (counts.argmax() if counts.any() else 255), (row, column)
    assert [color for _, color in layer["classes"]] == COLORS.tolist()


def test_codes_beyond_8_bits_are_numbered_as_they_are_listed(tmp_path: Path) -> None:
    values = np.array([[700, 3], [65535, 700]], np.uint16)
    tags = {"classes": '{"3": "Reed", "700": "Moor"}'}
    raster = opened(tmp_path / "a.tif", values[None], colors=COLORS, nodata=65535, tags=tags)
    layer = class_layer(raster, 10**6)
    assert [name for name, _ in layer["classes"]] == ["Reed", "Moor"]
    assert stored_of(layer).tolist() == [[1, 0], [255, 1]]
    many = opened(tmp_path / "b.tif", np.arange(400, dtype=np.uint16).reshape(1, 20, 20), colors=COLORS)
    with refused(match=r"b\.tif has 400 classes"):
        class_layer(many, 10**6)


def test_bands_with_names_are_scores_each_with_its_own_ends(tmp_path: Path) -> None:
    values = np.stack([np.linspace(0, 1, 72), np.linspace(5, -3, 72)]).reshape(2, 9, 8).astype(np.float32)
    values[0, 2, 3] = np.nan
    path = write(tmp_path / "a.tif", values, PLACE, nodata=np.nan)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ["Water", "Town"]
    layer = score_layer(MapFile.open(path), 10**6)
    assert layer["bands"] == [["Water", 0, 1], ["Town", -3, 5]]
    stored = stored_of(layer)
    assert (stored[0, 2, 3], stored[0, 0, 0], stored[1, 0, 0], stored[1, -1, -1]) == (0, 1, 255, 1)
    assert stored[1].all()


def test_similarities_in_the_page_are_near_those_of_the_embeddings(tmp_path: Path) -> None:
    found = embeddings(classes(40, 50), depth=48)
    raster = opened(tmp_path / "a.tif", np.moveaxis(found, -1, 0), nodata=np.nan, **BLOCKS)
    basis, kept = fit_basis([raster], 16)
    assert_allclose(basis.T @ basis, np.eye(16), atol=1e-9)
    layer = vector_layer(raster, basis, 10**6)
    ours, expected = cosines_of(vectors_of(layer), 20, 20), cosines_of(found.astype(float), 20, 20)
    assert_array_equal(np.isnan(ours), np.isnan(expected))
    there = np.isfinite(expected)
    assert np.corrcoef(ours[there], expected[there])[0, 1] > 0.99
    assert 0.6 < kept < 1
    full, all_kept = fit_basis([raster], 48)
    layer = vector_layer(raster, full, 10**6)
    assert all_kept == pytest.approx(1)
    assert np.nanmax(np.abs(cosines_of(vectors_of(layer), 20, 20) - expected)) < 2e-3


def test_8_bit_vectors_of_a_file_are_read_with_scale_and_offset(tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(-100, 100, (6, 9, 11)).astype(np.int8)
    stored[:, 2, 3] = -128
    path = write(tmp_path / "a.tif", stored, PLACE, nodata=-128)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = np.arange(1, 7) / 100, np.arange(6) / 10
    raster = MapFile.open(path)
    expected = np.moveaxis(stored, 0, -1) * np.arange(1, 7) / 100 + np.arange(6) / 10
    expected[2, 3] = np.nan
    layer = vector_layer(raster, fit_basis([raster], 6)[0], 10**6)
    assert np.nanmax(np.abs(cosines_of(vectors_of(layer), 5, 5) - cosines_of(expected, 5, 5))) < 0.03
    assert np.isnan(vectors_of(layer)[2, 3]).all()


def test_a_map_without_any_pixel_has_layers(tmp_path: Path) -> None:
    raster = opened(tmp_path / "a.tif", np.full((5, 9, 8), np.nan, np.float32), nodata=np.nan)
    layer = vector_layer(raster, fit_basis([raster], 4)[0], 10**6)
    assert (stored_of(layer) == -128).all()
    assert np.isfinite(np.array(layer["colors"])).all()
    scores = score_layer(opened(tmp_path / "b.tif", np.full((1, 9, 8), np.nan, np.float32), nodata=np.nan), 10**6)
    assert not stored_of(scores).any()


def test_a_constant_map_has_finite_numbers(tmp_path: Path) -> None:
    raster = opened(tmp_path / "a.tif", np.full((5, 9, 8), 2.0, np.float32))
    layer = vector_layer(raster, fit_basis([raster], 4)[0], 10**6)
    assert_allclose(cosines_of(vectors_of(layer), 3, 3), 1, atol=1e-6)


@pytest.mark.parametrize("limit", [200_000, 5000])
def test_a_picture_takes_no_more_than_its_share(tmp_path: Path, limit: int) -> None:
    shade = np.random.default_rng(3).integers(0, 255, (3, 300, 400), dtype=np.uint8)
    layer = picture_layer(opened(tmp_path / "a.tif", shade, photometric="RGB"), limit)
    assert len(layer["data"]) <= limit
    image = Image.open(io.BytesIO(b64decode(layer["data"])))
    assert image.size == (layer["width"], layer["height"])
    left, top, dx, dy = layer["place"]
    assert (left, top, dx * layer["width"], dy * layer["height"]) == pytest.approx((500_000, 5_500_000, 64_000, 48_000))


def test_files_that_are_no_maps_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no image")
    with refused(match=r"text\.tif cannot be read as a GeoTIFF"):
        MapFile.open(tmp_path / "text.tif")
    unwritable = tmp_path / "caf\udce9.tif"  # GDAL takes names in UTF-8
    unwritable.write_text("no image")
    with refused(match=r"cannot be read as a GeoTIFF"):
        MapFile.open(unwritable)
    upward = write(tmp_path / "up.tif", np.zeros((1, 4, 4), np.float32), Affine(1, 0, 0, 0, 1, 0))
    with refused(match=r"not north up"):
        MapFile.open(upward)

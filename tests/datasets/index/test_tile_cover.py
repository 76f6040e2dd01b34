import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from terrafm_tg.datasets import ESAWorldCover
from terrafm_tg.datasets.index import map_counts as tile_cover
from terrafm_tg.datasets.tiles.table import boxes, outlines
from terrafm_tg.errors import TerraFMError

STEP = 1 / 400  # degrees per pixel of these maps


def write_map(folder, name, west, south):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(abs(west) + 1000 * abs(south))
    codes = random.choice(np.array([0, 10, 40, 80, 95], np.uint8), (1200, 1200))
    with rasterio.open(
        folder / f"ESA_WorldCover_10m_2021_v200_{name}_Map.tif", "w", driver="GTiff", dtype="uint8", count=1,
        width=1200, height=1200, crs="EPSG:4326", transform=from_origin(west, south + 3, STEP, STEP), nodata=0,
        tiled=True, blockxsize=256, blockysize=256, compress="deflate",
    ) as file:  # fmt: skip
        file.write(codes, 1)


def tiles(corners, epsg, size=534):
    x, y = np.array(corners, dtype=float).T
    grid = pd.DataFrame({"epsg": np.full(len(x), epsg, np.int32), "x": x, "y": y})
    return grid.assign(**boxes(grid, size))


def count(table, worldcover, tmp_path, rows=None, **how):
    rows = np.ones(len(table), bool) if rows is None else rows
    settings = {"workers": 0, "progress": False} | how
    return tile_cover.cover_counts(table, 534, worldcover, rows, tmp_path / "work", **settings)


@pytest.mark.parametrize("missing", ["unknown", "ocean"])
def test_counts_are_the_histograms_of_the_map(tmp_path, missing, monkeypatch):
    monkeypatch.setattr(tile_cover, "_UNIT", 7)  # several units per file
    for name, west, south in (("N48E012", 12, 48), ("N48E015", 15, 48), ("N51E015", 15, 51)):
        write_map(tmp_path / "map", name, west, south)
    worldcover = ESAWorldCover(tmp_path / "map", missing=missing)
    # 15 degrees east is the middle of zone 33; the map lacks its north-west, and the south
    corners = [(x, y) for x in range(470_000, 530_000, 6000) for y in (5_655_000, 5_652_000, 5_319_000, 5_310_000)]
    table = tiles(corners, 32633)
    expected = np.stack([worldcover.histogram(outline) for outline in outlines(table, 534)])
    found = count(table, worldcover, tmp_path)
    np.testing.assert_array_equal(found[:, :11], expected[:, :11])
    assert np.abs(found[:, 11] - expected[:, 11]).max() <= 1  # of some hundred pixels
    assert (found.sum(axis=1) == 0).any() == (missing == "unknown")
    some = np.arange(len(table)) % 3 == 0
    only = count(table, worldcover, tmp_path / "some", some)
    np.testing.assert_array_equal(only[some], found[some])
    assert not only[~some].any()
    shuffled = table.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(
        count(shuffled.reset_index(drop=True), worldcover, tmp_path / "b"), found[shuffled.index]
    )


def test_across_the_date_line(tmp_path):
    for name, west in (("N63E177", 177), ("N63W180", -180)):
        write_map(tmp_path / "map", name, west, 63)
    worldcover = ESAWorldCover(tmp_path / "map", missing="ocean")
    table = tiles([(638_500, 7_200_000)], 32660)
    (outline,) = outlines(table, 534)
    assert outline.bounds[0] < 180 < outline.bounds[2]
    west = shapely.transform(outline, lambda corners: corners - [360, 0])
    worldcover.missing = "unknown"
    expected = worldcover.histogram(outline) + worldcover.histogram(west)
    worldcover.missing = "ocean"
    found = count(table, worldcover, tmp_path)
    np.testing.assert_array_equal(found[0, :11], expected[:11])
    assert abs(found[0, 11] - expected[11]) <= 1  # nothing of it is missing


def test_a_file_of_the_map_that_is_cut_off(tmp_path):
    write_map(tmp_path / "map", "N48E012", 12, 48)
    worldcover = ESAWorldCover(tmp_path / "map")
    (path,) = (tmp_path / "map").iterdir()
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(TerraFMError, match=r"N48E012_Map.tif of ESA WorldCover cannot be read .*: get it again"):
        count(tiles([(400_000, 5_500_000)], 32633), worldcover, tmp_path)

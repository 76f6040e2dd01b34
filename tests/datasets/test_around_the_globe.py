"""Fiji, Chukotka, Bergen, Svalbard, a pole and two UTM zones: pairs, tiles, names, queries and pixels.

Both sensors show one field of longitude and latitude, radar in another CRS; what comes out of files is compared with
the field where pyproj says that a pixel lies, and with names that Major-TOM's published code gives.
"""

import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from terrafm_tg.datasets import MajorTOM, SentinelFolder, build_index
from terrafm_tg.datasets.majortom.gridding import grid_scenes
from terrafm_tg.modalities import S2L2A

#: Place, CRS of optical imagery and of radar, and the cells that lie there by the published code.
PLACES = {
    "Fiji": ((180.0, -17.0), 32701, 32760, {"190D_1915R", "190D_1916L", "189D_1915R", "189D_1916L"}),
    "Fiji, degrees": ((179.9995, -17.0), 32760, 4326, {"190D_1915R", "190D_1916L", "189D_1915R", "189D_1916L"}),
    "Chukotka": ((-179.9995, 66.24), 32601, 32660, {"737U_808R", "737U_809L"}),
    "Bergen": ((5.3, 60.4), 32632, 32631, {"672U_29R"}),
    "Svalbard": ((15.6, 78.2), 32633, 32635, {"870U_35R"}),
    "South Pole": ((0.0, -90.0), 3031, 32761, {"1002D_0R"}),
    "two zones": ((12.0, 48.1), 32633, 32632, {"535U_89R", "535U_88R"}),
}
SIDE = 132  # pixels of the optical scene, cut into four tiles
DATE = "20210304T100000"


def project(epsg):
    return pyproj.Transformer.from_crs(4326, epsg, always_xy=True)


def field(lon, lat):
    """Waves of some hundred meters; the same at every turn of longitude, and at a pole."""
    lon, lat = np.radians(lon), np.radians(lat)
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    return (np.sin(x * 30_000) + np.sin(y * 28_000 + 1) + np.sin(z * 32_000 + 2)) / 3


def lonlat_of(epsg, transform, shape):
    rows, columns = np.indices(shape) + 0.5
    x, y = transform.c + columns * transform.a, transform.f + rows * transform.e
    return (x, y) if epsg == 4326 else project(epsg).transform(x, y, direction="INVERSE")


LEVEL = dict(zip(S2L2A.bands, (400, 500, 700, 600, 1000, 2000, 2500, 2600, 2800, 2850, 1900, 1100), strict=True))


def numbers(band, lon, lat):
    """Digital numbers of a band: land, where water is as dark as it can be."""
    wave = field(lon, lat)
    return np.rint(np.where(wave > -0.7, LEVEL[band] * (1 + 0.3 * wave), 55 + LEVEL[band] // 100)).astype(np.uint16)


def power(band, lon, lat):
    return ((0.08 if band == "VV" else 0.016) * (2 + field(lon, lat))).astype(np.float32)


def write(path, bands, epsg, transform, shape, value, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=shape[0], width=shape[1], crs=f"EPSG:{epsg}",
        transform=transform, dtype="uint16" if value is numbers else "float32", nodata=nodata,
    ) as file:  # fmt: skip
        for number, band in enumerate(bands, 1):
            file.write(value(band, *lonlat_of(epsg, transform, shape)), number)
            file.set_band_description(number, band)


def grid_around(epsg, at, side):
    if epsg == 4326:
        step = 10 / 111_320
        wide = int(side / np.cos(np.radians(at[1])))
        return Affine(step, 0, at[0] - wide * step / 2, 0, -step, at[1] + side * step / 2), (side, wide)
    x, y = project(epsg).transform(*at)
    corner = (round(v / 20) * 20 + sign * side * 5 for v, sign in ((x, -1), (y, 1)))
    x, y = corner
    return Affine(10, 0, x, 0, -10, y), (side, side)


@pytest.fixture(scope="module", params=PLACES)
def archive(request, tmp_path_factory):
    """The place's name and its folder: L2A on the optical grid, radar around it in its own."""
    at, epsg, radar, _ = PLACES[request.param]
    root = tmp_path_factory.mktemp("archive")
    name = f"S2A_MSIL2A_{DATE}_N0301_R022_T01ABC_20210304T120000"
    write(root / f"S2L2A/{name}.tif", S2L2A.bands, epsg, *grid_around(epsg, at, SIDE), numbers)
    name = f"S1A_IW_20210305T050000_DVP_RTC10_G_gpuned_{request.param[0]}"
    for band in ("VV", "VH"):
        write(root / f"S1RTC/{name}_{band}.tif", [band], radar, *grid_around(radar, at, SIDE + 80), power)
    return request.param, root


SETTINGS = {"offset": 0, "unit": {"s1rtc": "linear"}}


def opened(root, **settings):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiles = SentinelFolder(root, **{"tile_size": SIDE // 2, "native": True} | SETTINGS | settings)
    return tiles, [str(w.message) for w in said]


def test_pairs_names_and_pixels(archive):
    place, root = archive
    _, epsg, _, cells = PLACES[place]
    tiles, said = opened(root)
    assert len(tiles) == 4
    assert said == ["s1rtc is in 4 of 4 tiles, in all of them warped to the tile's grid."]
    table = tiles.table
    assert table[["has_s2l2a", "has_s1rtc"]].to_numpy().all()
    assert {*table["cell"].astype(str)} <= cells
    for row in range(4):
        sample = tiles[tiles.tile_slice(row)]
        assert sample["epsg"] == epsg
        transform = Affine(*sample["transform"].tolist()[:6])
        lon, lat = lonlat_of(epsg, transform, (SIDE // 2,) * 2)
        for resolution in (10, 20):  # all stored at 10 m
            for i, band in enumerate(S2L2A.native[resolution]):
                got = sample[f"image_s2l2a_{resolution}m"][i].numpy()
                np.testing.assert_array_equal(got, numbers(band, lon, lat))
        got = sample["image_s1rtc_10m"].numpy()
        for i, band in enumerate(("VV", "VH")):
            np.testing.assert_allclose(got[i], power(band, lon, lat), rtol=0.02)


def test_queries_at_any_turn(archive):
    place, root = archive
    epsg = PLACES[place][1]
    tiles, _ = opened(root)
    random = np.random.default_rng(0)
    for row, tile in enumerate(tiles.table.itertuples()):
        for dx, dy in random.uniform(30, SIDE * 5 - 30, (6, 2)):
            lon, lat = project(epsg).transform(tile.x + dx, tile.y - dy, direction="INVERSE")
            for turn in (-360, 0, 360):
                query = slice(lon + turn - 1e-5, lon + turn + 1e-5), slice(lat - 1e-6, lat + 1e-6)
                sample = tiles[query]
                assert sample["row"] == row
                x0, x1, _, y0, y1 = sample["bounds"].tolist()[:5]
                assert x0 - 1e-3 <= tile.x + dx <= x1 + 1e-3
                assert y0 - 1e-3 <= tile.y - dy <= y1 + 1e-3
                assert sample["image_s2l2a_10m"].shape[-1] <= 12 if abs(lat) < 89 else True


def test_the_index_on_disk(archive):
    """GeoParquet for others: areas on the ground, the four tiles beside each other, and the same samples from it."""
    place, root = archive
    _, epsg, _, _ = PLACES[place]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_index(root, tile_size=SIDE // 2, workers=0, progress=False, **SETTINGS)
    geo = gpd.read_parquet(root / "index.parquet")
    assert geo.crs.to_epsg() == 4326
    assert geo.is_valid.all()
    assert geo.total_bounds[0] >= -180
    ground = pyproj.Geod(ellps="WGS84")
    back = project(epsg)
    for row, outline in zip(geo.itertuples(), geo.geometry, strict=True):
        if epsg != 3031:  # at the pole an edge along it has no length on the ground
            area = abs(ground.geometry_area_perimeter(outline)[0])
            assert area == pytest.approx((SIDE * 5) ** 2, rel=0.03)  # of UTM's scale at most
        corners = np.transpose(back.transform(*shapely.get_coordinates(outline).T))
        assert np.abs(corners.min(axis=0) - (row.x, row.y - SIDE * 5)).max() < 0.01
        assert np.abs(corners.max(axis=0) - (row.x + SIDE * 5, row.y)).max() < 0.01
    tiles, said = opened(root)
    assert said == []
    assert tiles[tiles.tile_slice(2)]["image_s1rtc_10m"].shape == (2, SIDE // 2, SIDE // 2)
    (root / "index.parquet").unlink()


SIZE = 60  # pixels of a cell's picture


@pytest.mark.parametrize(
    ("cell", "middle", "zone", "epsg"),
    [
        ("188D_1917R", (180.0, -16.841), 32760, 32701),  # 180 degrees cut it in the middle
        ("738U_805R", (179.888, 66.332), 32660, 32601),
        ("672U_29R", (5.358, 60.404), 32632, 32631),
        ("870U_35R", (15.51, 78.189), 32633, 32634),
        ("535U_89R", (12.03, 48.098), 32632, 32633),
    ],
)
def test_cells_of_own_scenes(cell, middle, zone, epsg, tmp_path):
    """The cell under a scene of the next zone, once, under its published name and in its zone; pixels where it says."""
    name = f"S2A_MSIL2A_{DATE}_N0301_R022_T01ABC_20210304T120000"
    write(tmp_path / f"in/{name}.tif", S2L2A.bands, epsg, *grid_around(epsg, middle, 240), numbers)
    written = grid_scenes(tmp_path / "in", tmp_path / "out", cell_size=SIZE, workers=0, progress=False, offset=0)
    metadata = gpd.read_parquet(tmp_path / "out/Core-S2L2A/metadata.parquet")
    assert written["cells"].tolist() == [1]
    assert metadata["grid_cell"].tolist() == [cell]
    assert metadata["crs"].tolist() == [f"EPSG:{zone}"]
    published = MajorTOM(tmp_path / "out", tile_size=SIZE // 2, native=True)
    for row in range(4):
        sample = published[published.tile_slice(row)]
        assert sample["epsg"] == zone
        lon, lat = lonlat_of(zone, Affine(*sample["transform"].tolist()[:6]), (SIZE // 2,) * 2)
        seen = np.abs(sample["image_s2l2a_10m"][2].numpy().astype(float) - numbers("B04", lon, lat))
        assert np.quantile(seen, 0.9) < 40  # a corner of Major-TOM's lies up to 10 m from the picture's
        assert published.resolve((slice(lon[9, 9], lon[9, 9]), slice(lat[9, 9], lat[9, 9]))) == row
    west, _, east, _ = metadata.total_bounds
    assert 0 < east - west < 0.1
    assert any(west <= metadata["centre_lon"].iloc[0] + turn <= east for turn in (0, 360))


def test_radar_joins_published_cells_at_bergen(tmp_path):
    """Optical imagery of zone 32, as published, and own radar of zone 31: one cell with both."""
    at = (5.358, 60.404)
    name = f"S2A_MSIL2A_{DATE}_N0301_R022_T01ABC_20210304T120000"
    write(tmp_path / f"in/{name}.tif", S2L2A.bands, 32632, *grid_around(32632, at, 240), numbers)
    for band in ("VV", "VH"):
        path = tmp_path / f"in/S1A_IW_20210305T050000_DVP_RTC10_G_gpuned_ABCD_{band}.tif"
        write(path, [band], 32631, *grid_around(32631, at, 240), power)
    grid_scenes(tmp_path / "in", tmp_path / "out", cell_size=SIZE, workers=0, progress=False, **SETTINGS)
    table = MajorTOM(tmp_path / "out", tile_size=SIZE // 2).table
    both = table[table["has_s2l2a"] & table["has_s1rtc"]]
    assert "672U_29R" in {*both["cell"].astype(str)}
    assert set(table["epsg"]) == {32632}
    assert pd.Timestamp("2021-03-05 05:00") in set(both["date_s1rtc"])

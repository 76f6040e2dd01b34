"""The index on disk and in memory, against geopandas on the same file and against each polygon in turn."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from benchmarks.synthetic_index import write_synthetic_index
from datasets.tiny_files import Places
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.tiles import index_file as index_file
from terrafm_tg.datasets.tiles.index_file import read_index, write_index
from terrafm_tg.datasets.tiles.outlines import BOX
from terrafm_tg.datasets.tiles.table import TIMES, as_index, as_table
from terrafm_tg.errors import TerraFMError

MADE_FOR = {"tile_size": 534, "remote": False, "state": "synthetic"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """2,000 tiles."""
    file = tmp_path_factory.mktemp("synthetic") / "index.parquet"
    write_synthetic_index(file, 2000)
    return file


def test_geopandas_reads_the_same(path):
    table, made_for = read_index(path)
    geo = gpd.read_parquet(path)
    assert made_for == MADE_FOR
    assert "geometry" not in table
    assert geo.crs.to_epsg() == 4326
    assert geo.geometry.is_valid.all()
    np.testing.assert_array_equal(table[list(BOX)].to_numpy(), geo.geometry.bounds.to_numpy())
    for name in ("cell", "quadrant", "epsg", "product_s1rtc", "part_s2l2a", "land_cover", "x", "y", *TIMES):
        ours, theirs = (column.astype(object).where(column.notna(), None) for column in (table[name], geo[name]))
        assert ours.equals(theirs), name
    # In its own zone each is the square of 534 pixels whose corner the table has.
    for epsg, rows in geo.groupby("epsg"):
        square = shapely.bounds(rows.to_crs(int(epsg)).geometry.array)
        np.testing.assert_allclose(square[:, [0, 3]], rows[["x", "y"]], atol=1e-5)
        np.testing.assert_allclose(square[:, 2:] - square[:, :2], 5340, atol=1e-5)


def test_other_readers_find_rows_by_the_covering(path):
    geo = gpd.read_parquet(path)
    box = tuple(geo.geometry.iloc[700].bounds)
    found = gpd.read_parquet(path, bbox=box)
    assert 1 <= len(found) < 50
    assert set(found["cell"]) == set(geo["cell"][geo.intersects(shapely.box(*box))])


def test_the_index_is_made_when_asked_for(path):
    tiles = MajorTOM(path.parent, index=path)
    tiles.tile_slice(5)
    assert tiles.bounds[0].stop == tiles.table["xmax"].max()
    assert tiles.resolve(tuple(tiles.tile_slice(1234))) == 1234
    assert tiles._index is None
    index, geo = tiles.index, gpd.read_parquet(path)
    assert tiles.index is index
    assert shapely.equals_exact(index.geometry.array, geo.geometry.array, tolerance=0).all()
    assert isinstance(index.index, pd.IntervalIndex)
    assert len(tiles & tiles) > 2000  # TorchGeo's own use of it: each tile, and where neighbours overlap
    pd.testing.assert_frame_equal(as_table(index)[[*BOX, *TIMES]], tiles.table[[*BOX, *TIMES]])


def test_cells_are_kept_once_each(path):
    table = read_index(path)[0]
    assert len(table["cell"].cat.categories) == 500
    assert table["cell"].dtype == "category"
    assert table.memory_usage(deep=True).sum() < 600 * len(table)


def test_parts_give_the_same_file(path, tmp_path, monkeypatch):
    """Whether rows come at once or in parts, from the table or the index; also in several row groups."""
    table = read_index(path)[0]
    monkeypatch.setattr(index_file, "ROW_GROUP", 300)
    write_index(table, tmp_path / "once.parquet", MADE_FOR)
    write_index(as_index(table, 534), tmp_path / "polygons.parquet", MADE_FOR)
    parts = (table.iloc[start : start + 600] for start in range(0, 2000, 600))
    write_index(parts, tmp_path / "parts.parquet", MADE_FOR)
    once = (tmp_path / "once.parquet").read_bytes()
    assert once == (tmp_path / "parts.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "once.parquet").num_row_groups == 7
    for name in ("once", "polygons"):
        again = read_index(tmp_path / f"{name}.parquet")[0]
        pd.testing.assert_frame_equal(again, table, check_categorical=False, check_like=True)


def test_polygons_of_no_grid_are_kept(tmp_path):
    """An index that somebody else made: a triangle, of which no corner in metres is known."""
    triangle = shapely.Polygon([(3, 1), (4, 1), (3, 2)])
    days = pd.to_datetime(["2021-06-01", "2021-06-02"])
    index = gpd.GeoDataFrame(
        {"cell": ["11U_33R"], "quadrant": [0], "epsg": [32631], "has_s2l2a": [True], "shape": [triangle]},
        index=pd.IntervalIndex.from_arrays(days[:1], days[1:], closed="both", name="datetime"),
        geometry="shape",
        crs=4326,
    )
    write_index(index, tmp_path / "index.parquet", {"tile_size": 12})
    table = read_index(tmp_path / "index.parquet")[0]
    assert table[list(BOX)].iloc[0].tolist() == [3, 1, 4, 2]
    tiles = Places(table, tile_size=12)
    assert tiles.index.geometry.iloc[0] == triangle
    assert tiles.index.index[0] == index.index[0]
    assert tiles.resolve((slice(3.2, 3.4), slice(1.2, 1.4))) == 0
    with pytest.raises(IndexError, match="not found"):
        tiles.resolve((slice(3.8, 3.9), slice(1.8, 1.9)))  # in the box, beside the triangle


def test_cut_and_changed_files_are_one_sentence(path, tmp_path):
    """Half a kilobyte cut off at the end, or 40 bytes changed at the start of the footer."""
    content = path.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-500])
    (tmp_path / "changed.parquet").write_bytes(content[:-3000] + bytes(40) + content[-2960:])
    for name in ("cut", "changed"):
        with pytest.raises(TerraFMError, match=r"cannot be read|no tile index of ours"):
            read_index(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("seed", range(4))
def test_any_place_finds_its_tile(seed):
    """Turned, overlapping tiles of several zones, sizes and dates, against every polygon in turn."""
    rng = np.random.default_rng(seed)
    count = 400
    size = rng.integers(100, 900, count)
    start = np.datetime64("2021-01-01", "us") + rng.integers(0, 300, count).astype("m8[D]")
    grids = pd.DataFrame(
        {"cell": "0U_0R", "quadrant": 0, "epsg": rng.choice([32632, 32633], count), "has_s2l2a": True}
        | {"x": rng.uniform(200_000, 240_000, count), "y": rng.uniform(5_000_000, 5_040_000, count)}
        | {"xres": 10.0, "yres": 10.0, "height": size, "width": size}
        | dict(zip(TIMES, (start, start + np.timedelta64(90, "D")), strict=True))
    )
    index = as_index(grids)
    tiles = Places(as_table(index).drop(columns="geometry"))
    half, middles = size * 5, np.empty((count, 2))  # of each square, on the ground
    for epsg, rows in grids.groupby("epsg"):
        to_lonlat, i = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True), rows.index
        middles[i] = np.transpose(to_lonlat.transform(rows.x + half[i], rows.y - half[i]))
    found = 0
    for place in index.geometry.sample(60, random_state=seed).apply(lambda tile: tile.representative_point()):
        x, y = place.x + rng.normal(0, 0.05), place.y + rng.normal(0, 0.05)
        t = pd.Timestamp("2021-04-01") + pd.Timedelta(days=int(rng.integers(200)))
        over = index.geometry.intersects(shapely.Point(x, y)).to_numpy()
        over = over & (grids[TIMES[0]] <= t).to_numpy() & (grids[TIMES[1]] >= t).to_numpy()
        query = slice(x - 1e-3, x + 1e-3), slice(y - 1e-3, y + 1e-3), slice(t, t)
        if over.any():
            apart = pyproj.Geod(ellps="WGS84").inv(*middles.T, np.full(count, x), np.full(count, y))[2]
            assert tiles.resolve(query) == np.where(over, apart, np.inf).argmin()
            found += 1
        else:
            with pytest.raises(IndexError):
                tiles.resolve(query)
    assert 10 < found < 60

"""Every form of an embedding product gives the same vectors at the same places."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from data.embedding_products import ABOUT, PLACE, UTM, middle, values, write_cog, write_product, write_table, write_zarr
from refusals import refused
from terrafm_tg.inference.products.parquet import write_table as store_table
from terrafm_tg.inference.use import open_embeddings
from terrafm_tg.inference.use import vectors as module
from terrafm_tg.inference.use.vectors import MapLayer, distances


def whole(path: Path, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, places and degrees of a product, in the order of places."""
    parts = [part for _, part in open_embeddings(path, **options).parts()]
    x, place = np.concatenate([p.x for p in parts]), np.concatenate([p.place for p in parts])
    degrees = np.stack([np.concatenate([p.lon for p in parts]), np.concatenate([p.lat for p in parts])], 1)
    order = place.argsort()
    return x[order], place[order], degrees[order]


@pytest.mark.parametrize("form", ["cog", "zarr", "int8"])
def test_maps(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(20, 24)
    x[7, 5, 2] = np.nan  # missing in one dimension is missing
    path = tmp_path / ("map.zarr" if form == "zarr" else "map.tif")
    write_zarr(path, x) if form == "zarr" else write_cog(path, x, scale=0.1 if form == "int8" else None)
    for most in (module.PART, 8 * 5):  # whole blocks, or five pixels at a time
        monkeypatch.setattr(module, "PART", most)
        assert max(len(part.x) for _, part in open_embeddings(path).parts()) <= most // 8
        found, place, degrees = whole(path)
        there = np.isfinite(x).all(-1)
        np.testing.assert_array_equal(place, np.flatnonzero(there))
        np.testing.assert_allclose(found, x[there], atol=0.0501 if form == "int8" else 0)
        row, column = np.nonzero(there)
        np.testing.assert_allclose(degrees, np.stack(middle(row, column), 1), atol=1e-9)
    layer = open_embeddings(path).layers[0]
    assert (layer.dims, layer.date, layer.about["model"]) == (8, "2024-05-01", "terrafm_tiny")
    asked = np.array([23, 0, 19 * 24 + 5, 7 * 24 + 5])
    np.testing.assert_allclose(layer.take(asked)[[0, 2]], x[[0, 19], [23, 5]], atol=0.0501)
    assert np.isnan(layer.take(asked)[[1, 3]]).all()


@pytest.mark.parametrize("ending", [".tif", ".zarr"])
@pytest.mark.parametrize(("dtype", "pca"), [("float32", None), ("float16", None), ("int8", None), ("int8", 5)])
def test_maps_as_they_are_written(ending: str, dtype: str, pca: int | None, tmp_path: Path) -> None:
    """By `terrafm embed`'s own writers: what is read is what was stored, and its PCA is known."""
    x = values(70, 50, 12)
    path = tmp_path / f"m{ending}"
    reduction = write_product(path, x, dtype, pca)
    found, place, degrees = whole(path)
    there = np.isfinite(x).all(-1)
    np.testing.assert_array_equal(place, np.flatnonzero(there))
    np.testing.assert_allclose(found, reduction.decode(reduction.encode(x))[there], rtol=1e-6)
    np.testing.assert_allclose(degrees, np.stack(middle(*np.nonzero(there)), 1), atol=1e-9)
    layer = open_embeddings(path).layers[0]
    assert (layer.date, layer.about["model"], layer.about["window"]) == ("2024-05-01", "terrafm_tiny", 14)
    assert ("components" in layer.about["reduction"]) == (pca is not None)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([UTM, "EPSG:32733", "EPSG:4326", "EPSG:3857", "EPSG:32601"]),
    st.integers(0, 19),
    st.integers(0, 23),
    st.floats(0, 3000),
)
def test_a_point_finds_its_pixel_and_those_around(crs: str, row: int, column: int, meters: float) -> None:
    """Of every kind of grid, across 180 degrees too."""
    geographic = crs == "EPSG:4326"
    to = Affine(0.002, 0, 179.98, 0, -0.0015, -16.0) if geographic else PLACE
    layer = Held(crs, to)
    lon, lat = middle(row, column, to, crs)
    assert layer.find(lon, lat) == row * 24 + column
    assert layer.find(lon + 360, lat) == row * 24 + column
    lons, lats = layer.lonlat(np.arange(480))
    assert np.abs(lons).max() <= 180
    np.testing.assert_array_equal(
        layer.near(lon, lat, meters), np.flatnonzero(distances(lons, lats, lon, lat) < meters)
    )
    assert layer.find(lon, lat + 20) is None
    west, south, east, north = layer.bounds()
    assert west < (lon if lon > west else lon + 360) < east
    assert south < lat < north


class Held(MapLayer):
    """A grid without values."""

    def __init__(self, crs: str, transform: Affine) -> None:
        super().__init__(Path("x.tif"), module.CRS(crs), transform, (20, 24, 8), (16, 16), "", {})

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        raise NotImplementedError


def test_distances_are_those_on_the_ground() -> None:
    from pyproj import Geod

    for a, b in (((13, 52), (13.1, 52.1)), ((179.99, -16), (-179.99, -16)), ((0, 89.99), (180, 89.99))):
        true = Geod(ellps="WGS84").inv(*a, *b)[2]
        assert distances(*a, *b) == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("columns", [("embedding",), ("embedding_class", "embedding_mean")])
def test_tables(columns: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(1, 31)[0]
    path = write_table(tmp_path / "t.parquet", x, columns)
    monkeypatch.setattr("terrafm_tg.inference.use.tables.PART", 8 * 4)
    found, place, degrees = whole(path)
    there = np.flatnonzero(np.isfinite(x).all(-1))
    np.testing.assert_array_equal(place, there)
    np.testing.assert_array_equal(found, x[there])
    np.testing.assert_allclose(degrees, np.stack([13 + 0.01 * there, np.full(len(there), 52.0)], 1))
    layer = open_embeddings(path).layers[0]
    np.testing.assert_array_equal(layer.take(np.array([30, 4, 0])), x[[30, 4, 0]])
    assert (layer.find(13.1501, 52.0001), layer.find(14.5, 52), layer.date_of(3)) == (15, None, "2024-06-02")


@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_a_window_takes_the_memory_of_a_window(ending: str, tmp_path: Path) -> None:
    """Not that of the map, 16 MB."""
    write_product(tmp_path / f"m{ending}", np.ones((256, 256, 64), np.float32))
    layer = open_embeddings(tmp_path / f"m{ending}").layers[0]
    assert isinstance(layer, MapLayer)
    tracemalloc.start()
    try:
        assert layer.read(slice(64, 96), slice(32, 64)).shape == (32, 32, 64)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("dtype", "pca"), [("float32", None), ("float16", None), ("int8", 5)])
def test_tables_as_they_are_written(dtype: str, pca: int | None, tmp_path: Path) -> None:
    """By `terrafm embed`'s own writer, in the order of its curve."""
    x = values(1, 40, 12)[0]
    boxes = shapely.box(13 + 0.01 * np.arange(40), 52.0, 13.009 + 0.01 * np.arange(40), 52.01)
    columns = {"place": np.arange(40), "embedding_class": [*x], "embedding_mean": [*-x]}
    frame = gpd.GeoDataFrame(columns, geometry=boxes, crs=4326)
    reductions = store_table([frame], tmp_path / "t.parquet", ABOUT, dtype, pca)
    for pooling, vectors in (("class", x), (None, -x)):
        reduction = reductions[f"embedding_{pooling or 'mean'}"]
        found, place, _ = whole(tmp_path / "t.parquet", pooling=pooling)
        layer = open_embeddings(tmp_path / "t.parquet", pooling).layers[0]
        order = layer.values("place")
        want = reduction.decode(reduction.encode(vectors))[order]
        np.testing.assert_array_equal(place, np.flatnonzero(np.isfinite(want).all(1)))
        np.testing.assert_allclose(found, want[place], rtol=1e-6)
        assert ("components" in layer.about["reduction"]) == (pca is not None)
        assert layer.find(13.175, 52.005) == np.flatnonzero(order == 17)[0]
        assert layer.find(13.1755, 52.02) is None


def test_a_table_of_class_tokens_and_means(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", values(1, 9)[0], ("embedding_class",))
    assert len(whole(path, pooling="class")[0]) == 6
    with refused(match="has no embedding_mean: its vectors are in embedding_class"):
        open_embeddings(path, "mean")


def test_a_folder_and_its_collection(tmp_path: Path) -> None:
    """Files without embeddings are passed over; a file that is damaged is not."""
    write_cog(tmp_path / "b.tif", values())
    write_zarr(tmp_path / "a.zarr", values(seed=1))
    (tmp_path / "deep").mkdir()
    write_table(tmp_path / "deep/c.parquet", values(1, 9)[0])
    with rasterio.open(tmp_path / "classes.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8",
                       crs=UTM, transform=PLACE) as dst:  # fmt: skip
        dst.write(np.zeros((1, 4, 4), np.uint8))
    opened = open_embeddings(tmp_path)
    assert [layer.name for layer in opened.layers] == ["a", "b", "c"]
    assert opened.count == 480 * 2 + 9
    layers, places = opened.places(np.array([0, 479, 480, 961]))
    assert layers.tolist() == [0, 0, 1, 2]
    assert places.tolist() == [0, 479, 0, 1]
    (tmp_path / "b.json").write_text(json.dumps({"type": "Feature", "assets": {"embeddings": {"href": "./b.tif"}}}))
    links = [{"rel": "item", "href": "./b.json"}, {"rel": "root", "href": "./collection.json"}]
    (tmp_path / "collection.json").write_text(json.dumps({"type": "Collection", "links": links}))
    assert [x.path for x in open_embeddings(tmp_path / "collection.json").layers] == [tmp_path / "b.tif"]
    before = opened.fingerprint
    write_cog(tmp_path / "b.tif", values(seed=5))
    assert open_embeddings(tmp_path).fingerprint != before
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:100])
    with refused(match="b.tif cannot be read as embeddings"):
        open_embeddings(tmp_path)


def test_only_some_parts_are_read_for_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 8 * 24)
    path = write_cog(tmp_path / "m.tif", values(60, 24))
    places = np.concatenate([part.place for _, part in open_embeddings(path).parts(120)])
    assert 90 < len(places) < 240
    assert places.max() - places.min() > 1000


def image(path: Path, dtype: str = "uint16", count: int = 12) -> Path:
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=count, dtype=dtype) as dst:
        dst.write(np.zeros((count, 4, 4), dtype))
    return path


def no_file(path: Path) -> Path:
    return path / "nothing.tif"


def text(path: Path) -> Path:
    (path / "a.tif").write_text("no image")
    return path / "a.tif"


def plain_table(path: Path) -> Path:
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(path / "a.parquet")
    return path / "a.parquet"


def empty_table(path: Path) -> Path:
    table = pq.read_table(write_table(path / "a.parquet", values(1, 9)[0]))
    pq.write_table(table.slice(0, 3), path / "a.parquet")  # those that are missing
    return path / "a.parquet"


def hostile_item(path: Path) -> Path:
    (path / "i.json").write_text(json.dumps({"type": "Feature", "assets": {"x": {"href": "../secret.tif"}}}))
    return path / "i.json"


def empty_zarr(path: Path) -> Path:
    import zarr

    zarr.open_group(path / "a.zarr", mode="w", zarr_format=3)
    return path / "a.zarr"


def two_widths(path: Path) -> Path:
    write_cog(path / "a.tif", values(dims=8))
    write_cog(path / "b.tif", values(dims=4))
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_file, "There is no file or folder"),
        (lambda path: path, "holds no embeddings: give the folder"),
        (lambda path: image(path / "a.tif"), "holds 12 bands of uint16, and no embeddings"),
        (lambda path: image(path / "a.tif", "float32", 1), "holds 1 band of float32, and no embeddings"),
        (lambda path: image(path / "a.tif", "float32"), "has no CRS and regular grid"),
        (text, "cannot be read as embeddings"),
        (plain_table, "holds the columns a, and no embeddings"),
        (hostile_item, "is no file below its folder"),
        (empty_zarr, "holds no array, and no embeddings"),
        (two_widths, r"embeddings of 8 values \(a.tif\) and of 4 \(b.tif\)"),
        (empty_table, "its column embedding is empty"),
    ],
)
def test_what_is_no_product_is_said_in_a_sentence(make: Any, said: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with refused(match=said):
        open_embeddings(path)

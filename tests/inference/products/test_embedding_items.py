"""STAC items and collections, as their schemas want them and pystac reads them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import shapely
from affine import Affine
from pyproj import Transformer
from shapely.geometry import Point, shape

from inference.products.conftest import ABOUT, PLACES
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products import Reduction, write_collection, write_item, write_table, write_table_item
from terrafm_tg.inference.products.stac import _extent
from terrafm_tg.inference.use.opened import open_embeddings

Make = Callable[..., MapParts]
SCHEMAS = Path(__file__).parents[2] / "data" / "schemas" / "stac"
TIMES = ["2023-03-02T09:50:29", "2023-05-01", "2023-04-01"]
RUN = {"run": "0123456789abcdef", "min_valid": 0.5, "overlap": 0.25, "weights": "terrafm_base", "license": "mit"}


@pytest.fixture(scope="session")
def validate() -> Callable[[dict[str, Any]], list[str]]:
    """Lists what the schemas of a document's version and of its extensions find, without a network."""
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource

    def files() -> Iterator[Path]:
        yield from SCHEMAS.glob("*.json")
        yield from (Path(pystac.__file__).parent / "validation" / "jsonschemas").rglob("*.json")

    found = {}
    for content in (json.loads(file.read_text()) for file in files()):
        resource = Resource.from_contents(content)
        found[content["$id"].rstrip("#").replace("commonjson", "common.json")] = resource
    registry = Registry().with_resources((uri, one) for uri, one in found.items())

    def check(document: dict[str, Any]) -> list[str]:
        kind = "item" if document["type"] == "Feature" else "collection"
        version = document["stac_version"]
        core = f"https://schemas.stacspec.org/v{version}/{kind}-spec/json-schema/{kind}.json"
        return [
            f"{uri}: {error.message[:300]}"
            for uri in (core, *document["stac_extensions"])
            for error in jsonschema.Draft7Validator({"$ref": uri}, registry=registry).iter_errors(document)
        ]

    return check


def write(parts: MapParts, folder: Path, dtype: str = "float32", name: str = "m.tif", **more: Any) -> dict[str, Any]:
    """Writes an item of a product that is bytes, and reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"pixels")
    path = (folder / name).with_suffix(".json")
    write_item(parts, folder / name, path, Reduction.fit_maps([parts], dtype, more.pop("pca", None)), **more)
    return json.loads(path.read_text())


def write_points(folder: Path, lon: list[float], lat: list[float], about: dict[str, Any], dtype: str = "int8") -> Path:
    frame = gpd.GeoDataFrame(
        {"place": range(len(lon)), "date_s2l2a": np.array(TIMES[: len(lon)], "M8[us]")},
        geometry=gpd.points_from_xy(lon, lat), crs=4326,
    )  # fmt: skip
    frame["embedding"] = list(np.random.default_rng(3).normal(size=(len(lon), 6)).astype(np.float32))
    folder.mkdir(exist_ok=True)
    reductions = write_table([frame], folder / "embeddings.parquet", about, dtype)
    path = folder / "embeddings.json"
    write_table_item(folder / "embeddings.parquet", path, about, reductions, folder / "collection.json")
    return path


@pytest.mark.parametrize(
    ("place", "dtype", "pca"),
    [("utm33", "float32", None), ("utm60 over 180", "int8", 5), ("utm21s", "float16", None), ("degrees", "int8", None)],
)
def test_an_item_is_valid(make_map: Make, tmp_path: Path, validate: Any, place: str, dtype: str, pca: int) -> None:
    parts = make_map(place=place, **RUN)
    (tmp_path / "m.preview.tif").write_bytes(b"picture")
    item = write(parts, tmp_path, dtype, pca=pca, preview=tmp_path / "m.preview.tif")
    assert validate(item) == []
    assert validate(item | {"stac_version": "1.1.0", "stac_extensions": item["stac_extensions"][1:]}) == []
    for key, wrong in (("file:size", "6"), ("raster:sampling", "center"), ("proj:shape", [43.5, 57])):
        spoiled = json.loads(json.dumps(item))
        spoiled["assets"]["embeddings"][key] = wrong
        assert validate(spoiled), key  # the schemas look at these
    spoiled = json.loads(json.dumps(item))
    spoiled["properties"]["emb:dimensions"] = 12
    assert validate(spoiled)


@pytest.mark.parametrize("kind", ["map", "table", "bare"])
def test_a_collection_and_its_model_are_valid(make_map: Make, tmp_path: Path, validate: Any, kind: str) -> None:
    about, folder = ABOUT | RUN, tmp_path / "made"
    if kind == "bare":
        about = {"products": {"s2l2a": ["https://example.org/items/a"]}, "dates": {}, "license": "my own"}
    if kind == "table":
        item = write_points(folder, [179.0, -179.0], [1.0, 2.0], about)
    else:
        item = folder / "m.json"
        write(make_map(**about), folder, collection=folder / "collection.json")
    written = write_collection([item], folder / "collection.json", about)
    assert len(written) == (1 if kind == "bare" else 2)
    for path in (item, *written):
        assert validate(json.loads(path.read_text())) == []
    collection = json.loads(written[0].read_text())
    assert validate(collection | {"links": collection["links"][:2]})
    assert validate({key: value for key, value in collection.items() if key != "data_type"})
    if kind != "bare":
        model = json.loads(written[1].read_text())
        model["properties"]["mlm:input"][0]["bands"] = [1]
        assert validate(model)


@pytest.mark.parametrize("place", PLACES)
def test_it_lies_where_the_map_lies(make_map: Make, tmp_path: Path, place: str) -> None:
    parts = make_map(place=place)
    item = write(parts, tmp_path)
    geometry = shape(item["geometry"])
    west, south, east, north = item["bbox"]
    lon, lat = Transformer.from_crs(parts.crs, 4326, always_xy=True).transform(
        *(parts.affine * (np.array([0, 57, 57, 0, 20.0]), np.array([0, 0, 43, 43, 21.0])))
    )
    lon = (np.asarray(lon) + 180) % 360 - 180
    assert geometry.is_valid
    assert all(geometry.distance(Point(x, y)) < 1e-6 for x, y in zip(lon, lat, strict=True))
    assert (south, north) == pytest.approx((geometry.bounds[1], geometry.bounds[3]))
    over = "180" in place
    assert (west > east) == over
    assert (east - west) % 360 < 0.5
    assert geometry.geom_type == ("MultiPolygon" if over else "Polygon")
    assert all(part.exterior.is_ccw for part in shapely.get_parts(geometry))
    asset = item["assets"]["embeddings"]
    assert item["properties"]["proj:code"] == f"EPSG:{parts.epsg}"
    assert asset["proj:shape"] == [43, 57]
    assert asset["proj:transform"] == list(parts.transform)
    assert item["properties"]["gsd"] == pytest.approx(160 if "utm" in place else 166.8, abs=0.1)


def test_an_item_says_what_the_map_is_made_of(make_map: Make, tmp_path: Path) -> None:
    item = write(make_map(**RUN, other={"a": 1}, odd=float("inf")), tmp_path, "int8")
    said, asset = item["properties"], item["assets"]["embeddings"]
    assert (said["datetime"], said["start_datetime"]) == (None, "2023-03-01T05:10:00Z")
    assert said["end_datetime"] == "2023-03-02T09:50:29Z"
    assert said["terrafm:run"] == RUN["run"]
    assert {key: said[f"terrafm:{key}"] for key in ("window", "overlap", "stride", "min_valid", "pooling")} == {
        "window": 224, "overlap": 0.25, "stride": 16, "min_valid": 0.5, "pooling": "mean"
    }  # fmt: skip
    assert said["terrafm:modalities"] == ["s2l2a", "s1rtc"]
    assert said["terrafm:products"] == ABOUT["products"]
    assert (said["terrafm:other"], said["terrafm:odd"]) == ({"a": 1}, None)
    assert said["processing:software"] == {"terrafm-tg": "0.1.0"}
    assert said["license"] == "MIT"
    assert item["links"] == [{"rel": "license", "href": "https://spdx.org/licenses/MIT.html", "type": "text/html"}]
    assert asset["href"] == "./m.tif"
    assert (asset["data_type"], asset["nodata"], asset["file:size"]) == ("int8", -128, 6)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(b"pixels").hexdigest()
    reduction = Reduction.fit_maps([make_map(name="n")], "int8")
    scales = [band["raster:scale"] for band in asset["bands"]]
    np.testing.assert_array_equal(np.float32(scales), reduction.scale)
    assert said["emb:quantization"]["scale"] == scales


def test_one_time_unknown_times_and_addresses(make_map: Make, tmp_path: Path) -> None:
    one = write(make_map(dates={"s2l2a": ["2023-03-02T11:50:29+02:00"]}), tmp_path)
    assert one["properties"]["datetime"] == "2023-03-02T09:50:29Z"
    assert "start_datetime" not in one["properties"]
    address = "https://example.org/items/a"
    bare = write(make_map(name="n", dates={}, products={"s2l2a": [address]}, license=None), tmp_path, name="n.tif")
    assert bare["properties"]["end_datetime"].startswith("9999")
    assert {(link["rel"], link["href"]) for link in bare["links"]} == {
        ("derived_from", address), ("emb:source-data", address)
    }  # fmt: skip
    write_collection([tmp_path / "n.json"], tmp_path / "collection.json", {})
    collection = json.loads((tmp_path / "collection.json").read_text())
    assert collection["extent"]["temporal"]["interval"] == [[None, None]]


def test_a_store_has_no_checksum_and_a_wide_map_no_list_of_bands(make_map: Make, tmp_path: Path) -> None:
    parts = make_map(depth=130)
    (tmp_path / "m.zarr").mkdir()
    write_item(parts, tmp_path / "m.zarr", tmp_path / "m.json", Reduction.fit_maps([parts], "int8"))
    item = json.loads((tmp_path / "m.json").read_text())
    asset = item["assets"]["embeddings"]
    assert asset["type"] == "application/vnd.zarr; version=3"
    assert not {"file:size", "file:checksum", "bands"} & {*asset}
    assert "scale" not in item["properties"]["emb:quantization"]


@pytest.mark.parametrize("weights", ["terrafm_base", "last.ckpt"])
def test_a_collection_of_two_zones(make_map: Make, tmp_path: Path, weights: str) -> None:
    about, folder = ABOUT | RUN | {"weights": weights}, tmp_path / "made"
    for name, place in (("a", "utm33"), ("b", "utm21s")):
        parts = make_map(place=place, name=name, **RUN)
        write(parts, folder, name=f"{name}.tif", collection=folder / "collection.json")
    items = [folder / "a.json", folder / "b.json"]
    common = {key: value for key, value in about.items() if key not in ("dates", "products", "modalities", "cloud")}
    written = write_collection(items, folder / "collection.json", common)
    model = next(link for link in json.loads(written[0].read_text())["links"] if link["rel"] == "emb:model")
    assert model["href"] == ("./model.json" if weights == "terrafm_base" else "./README.md")
    assert len(written) == (2 if weights == "terrafm_base" else 1)
    (tmp_path / "made").rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    collection = pystac.Collection.from_file(folder / "collection.json")
    read = {item.id: item for item in collection.get_items()}
    assert {*read} == {"a", "b"}
    assert read["a"].get_collection() is collection
    assert Path(read["b"].assets["embeddings"].get_absolute_href()) == folder / "b.tif"
    assert collection.extra_fields["terrafm:run"] == RUN["run"]
    assert collection.extra_fields["emb:dimensions"] == 12
    assert collection.extra_fields["emb:chip_layout"] == {
        "layout_type": "regular_grid", "chip_size": [16, 16], "stride": [16, 16]
    }  # fmt: skip
    assert collection.summaries.get_list("proj:code") == ["EPSG:32633", "EPSG:32721"]
    bounds = np.array([item.bbox for item in read.values()])
    expected = [*bounds[:, :2].min(0), *bounds[:, 2:].max(0)]
    assert collection.extent.spatial.bboxes == [pytest.approx(expected)]
    first, last = collection.extent.temporal.intervals[0]
    assert (first.isoformat(), last.isoformat()) == ("2023-03-01T05:10:00+00:00", "2023-03-02T09:50:29+00:00")


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[10, 1, 12, 2], [-5, 0, -4, 1]], [-5, 0, 12, 2]),
        ([[179, 1, 180, 2], [-180, 0, -179.5, 1]], [179, 0, -179.5, 2]),
        ([[179, 1, 180, 2], [-180, 0, -179.5, 1], [170, 0, 171, 1]], [170, 0, -179.5, 2]),
        ([[170, 0, 171, 1], [-171, 0, -170, 1]], [170, 0, -170, 1]),
        ([[-180, -90, 180, 90]], [-180, -90, 180, 90]),
        ([[-100, 0, -90, 1], [0, 0, 1, 1], [90, 0, 91, 1]], [-100, 0, 91, 1]),
        ([[0, 0, 50, 1], [10, 0, 20, 1], [60, 0, 61, 1]], [0, 0, 61, 1]),
    ],
)
def test_the_extent_is_the_narrowest_box(boxes: list[list[float]], expected: list[float]) -> None:
    for turned in (boxes, boxes[::-1]):
        assert _extent(np.array(turned, float)) == expected


@pytest.mark.parametrize(("lon", "over"), [([10.0, 14.5, 12.0], False), ([179.9, -179.8, 179.0], True), ([5.0], False)])
def test_an_item_of_a_table(tmp_path: Path, lon: list[float], over: bool) -> None:
    about = {key: value for key, value in (ABOUT | RUN).items() if key not in ("dates", "products")}
    path = write_points(tmp_path / "t", lon, [-3.0, 4.0, 5.0][: len(lon)], about)
    written = write_collection([path], path.with_name("collection.json"), about)
    item, collection = (json.loads(file.read_text()) for file in (path, written[0]))
    assert (item["bbox"][0] > item["bbox"][2]) == over
    geometry = shape(item["geometry"])
    assert geometry.is_valid
    assert geometry.area > 0
    assert all(geometry.intersects(Point(x, y)) for x, y in zip(lon, [-3.0, 4.0, 5.0], strict=False))
    said = item["properties"]
    names = [column["name"] for column in said["table:columns"]]
    assert {"place", "geometry", "bbox", "embedding", "date_s2l2a"} == {*names}
    assert said["table:row_count"] == len(lon)
    assert said["start_datetime" if len(lon) > 1 else "datetime"] == "2023-03-02T09:50:29Z"
    assert len(said["emb:quantization"]["scale"]) == 6
    assert item["assets"]["embeddings"]["type"] == "application/vnd.apache.parquet"
    assert collection["emb:chip_layout"] == {"layout_type": "variable_grid", "chip_size": [224, 224]}


def test_the_same_map_gives_the_same_bytes(make_map: Make, tmp_path: Path) -> None:
    parts, found = make_map(place="utm60 over 180", **RUN), []
    for folder in (tmp_path / "one" / "made", tmp_path / "two" / "made"):
        write(parts, folder, "int8", collection=folder / "collection.json")
        written = write_collection([folder / "m.json"], folder / "collection.json", ABOUT | RUN)
        found.append([path.read_bytes() for path in (folder / "m.json", *written)])
    assert found[0] == found[1]


def test_the_reader_of_products_follows_them(make_map: Make, tmp_path: Path) -> None:
    from terrafm_tg.inference.products import write_cog

    paths = []
    for name in ("a", "b"):
        parts = make_map(name=name)
        write_cog(parts, tmp_path / f"{name}.tif", Reduction(12))
        paths.append(tmp_path / f"{name}.json")
        write_item(parts, tmp_path / f"{name}.tif", paths[-1], Reduction(12), None, tmp_path / "collection.json")
    write_collection(paths, tmp_path / "collection.json", ABOUT)
    assert [layer.path.name for layer in open_embeddings(tmp_path / "collection.json").layers] == ["a.tif", "b.tif"]
    assert [layer.path.name for layer in open_embeddings(tmp_path / "a.json").layers] == ["a.tif"]


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_a_map_around_a_pole_has_an_outline(crs):
    from terrafm_tg.inference.products.footprints import footprint

    found = footprint(crs, Affine(160, 0, -5000, 0, -160, 5000), 64, 64)
    assert found.is_valid
    south, north = found.bounds[1::2]
    assert (max(abs(south), abs(north)), found.bounds[0], found.bounds[2]) == (90, -180, 180)

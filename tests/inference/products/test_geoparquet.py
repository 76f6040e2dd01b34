"""Tables of embeddings, as geopandas, DuckDB and TorchGeo read them."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from affine import Affine
from pyproj import CRS, Transformer
from shapely.geometry import Point, box
from torchgeo.datasets import ClayEmbeddings, EarthEmbeddings, EarthIndexEmbeddings, MajorTOMEmbeddings

from inference.products.conftest import ABOUT, PLACES
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products.footprints import footprint, split, tile_rows
from terrafm_tg.inference.products.parquet import read_reductions, write_table
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.utils.parquet import read_table

TIME = "2023-03-02T09:50:29Z"
RNG = np.random.default_rng(5)


def points(count: int, depth: int = 8, **columns: object) -> gpd.GeoDataFrame:
    lon, lat = RNG.uniform(-20, 40, count), RNG.uniform(-30, 60, count)
    frame = gpd.GeoDataFrame({"name": [f"p{i}" for i in range(count)]} | columns, geometry=gpd.points_from_xy(lon, lat),
        crs="EPSG:4326")  # fmt: skip
    frame["embedding"] = list(RNG.normal(size=(count, depth)).astype(np.float32))
    return frame


def tiles(place: str = "utm33", count: int = 12) -> gpd.GeoDataFrame:
    crs, transform = PLACES[place]
    boxes = [(x, y, x + 14, y + 14) for y in range(0, 42, 14) for x in range(0, 56, 14)][:count]
    frame = tile_rows(int(crs[5:]), Affine(*transform), boxes, "S2B_x", TIME, "terrafm_base")
    frame["embedding"] = list(RNG.normal(size=(len(frame), 8)).astype(np.float32))
    return frame


def test_geopandas_reads_it_near_ones_together(tmp_path: Path) -> None:
    frame = points(3000)
    write_table([frame[:1000], frame[1000:]], tmp_path / "t.parquet", ABOUT)
    read = gpd.read_parquet(tmp_path / "t.parquet")
    assert read.crs == "EPSG:4326"
    assert [*read.columns] == ["name", "geometry", "embedding"]  # it hides the column of boxes
    merged = read.merge(frame, on="name", suffixes=("", "_given"))
    assert len(merged) == 3000
    assert (merged.geometry == gpd.GeoSeries(merged.geometry_given)).all()
    np.testing.assert_array_equal(np.stack(merged.embedding), np.stack(merged.embedding_given))

    def walk(rows: gpd.GeoDataFrame) -> float:
        return float(np.hypot(np.diff(rows.geometry.x), np.diff(rows.geometry.y)).mean())

    assert walk(read) < walk(frame) / 10
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert {file.metadata.row_group(0).column(i).compression for i in range(file.metadata.num_columns)} == {"ZSTD"}
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["Point"]
    np.testing.assert_allclose(geo["columns"]["geometry"]["bbox"], frame.total_bounds)
    assert json.loads(file.schema_arrow.metadata[b"terrafm"])["model"] == "terrafm_base"
    read_table(tmp_path / "t.parquet")  # our own checks of strangers' files
    part = gpd.read_parquet(tmp_path / "t.parquet", bbox=(0, 0, 10, 10))  # by the covering of GeoParquet 1.1
    inside = frame[frame.geometry.within(box(0, 0, 10, 10))]
    assert sorted(part.name) == sorted(inside.name)


def test_row_groups_hold_places_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrafm_tg.inference.products.parquet._GROUP", 8 * 4 * 100)
    write_table([points(1000)], tmp_path / "t.parquet", {})
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100] * 10
    at = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    sizes = []
    for i in range(10):
        low, high = ([metadata.row_group(i).column(at[f"bbox.{edge}"]).statistics for edge in pair] for pair in
            (("xmin", "ymin"), ("xmax", "ymax")))  # fmt: skip
        sizes.append(np.prod([b.max - a.min for a, b in zip(low, high, strict=True)]))
    assert np.mean(sizes) < 60 * 90 / 5


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [None, 3])
def test_vectors_are_stored_as_asked(tmp_path: Path, dtype: str, pca: int | None) -> None:
    frame = points(500).rename(columns={"embedding": "embedding_class"})
    frame["embedding_mean"] = [2 * vector[:5] for vector in frame.embedding_class]
    frame.loc[3, "embedding_mean"] = None
    kept = write_table([frame], tmp_path / "t.parquet", ABOUT, dtype, pca)
    schema = pq.read_schema(tmp_path / "t.parquet")
    kind = schema.field("embedding_class").type
    assert kind.list_size == (pca or 8)
    assert kind.value_type.to_pandas_dtype() == np.dtype(dtype).type
    read = gpd.read_parquet(tmp_path / "t.parquet").sort_values("name", ignore_index=True)
    frame = frame.sort_values("name", ignore_index=True)
    reductions = read_reductions(schema)
    assert {name: one.to_json() for name, one in reductions.items()} == {n: one.to_json() for n, one in kept.items()}
    missing = read.embedding_mean.isna()
    assert read.name[missing].tolist() == ["p3"]
    for name, one in reductions.items():
        given, got = np.stack(frame[name][~missing]), np.stack(read[name][~missing])
        assert got.dtype == dtype or name == "embedding_mean"  # Arrow turns int8 with nulls into float64
        np.testing.assert_array_equal(one.decode(got), one.decode(one.encode(given)))


def test_torchgeo_reads_tiles_with_major_toms_columns(tmp_path: Path) -> None:
    frame = tiles()
    write_table([frame], tmp_path / "t.parquet", ABOUT)
    by_place = {(round(row.centre_lon, 9), round(row.centre_lat, 9)): row for row in frame.itertuples()}
    for kind in (MajorTOMEmbeddings, EarthEmbeddings):
        dataset = kind(tmp_path / "t.parquet")
        assert len(dataset) == len(frame)
        for i in range(len(dataset)):
            sample = dataset[i]
            row = by_place[round(dataset.data.centre_lon[i], 9), round(dataset.data.centre_lat[i], 9)]
            torch.testing.assert_close(sample["embedding"], torch.tensor(row.embedding))
            assert sample["t"].item() == pytest.approx(pd.Timestamp(TIME).timestamp(), abs=64)  # TorchGeo's is float32
            assert sample["x"].item() == pytest.approx(row.centre_lon)
            assert sample["y"].item() == pytest.approx(row.centre_lat)
    clay = ClayEmbeddings(tmp_path / "t.parquet")[0]
    assert clay["embedding"].shape == (8,)
    write_table([points(20)], tmp_path / "p.parquet", ABOUT)
    assert EarthIndexEmbeddings(tmp_path / "p.parquet")[3]["embedding"].dtype == torch.float32


@pytest.mark.parametrize("place", PLACES)
def test_tiles_lie_where_their_pixels_lie(place: str) -> None:
    crs, transform = PLACES[place]
    frame = tiles(place)
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    assert frame.pixel_bbox[5] == [14, 14, 28, 28]
    x, y = Affine(*transform) * (21, 21)
    lon, lat = to_degrees.transform(x, y)
    assert frame.centre_lat[5] == pytest.approx(lat, abs=1e-12)
    assert (frame.centre_lon[5] - lon + 180) % 360 - 180 == pytest.approx(0, abs=1e-9)
    assert -180 <= frame.centre_lon[5] < 180
    assert frame.geometry.is_valid.all()
    assert (np.abs(frame.geometry.bounds[["minx", "maxx"]]) <= 180).all(axis=None)
    assert shapely.contains_xy(frame.geometry.array, frame.centre_lon, frame.centre_lat).all()
    here = shapely.from_wkt(frame.utm_footprint[5])
    left, top = Affine(*transform) * (14, 14)
    np.testing.assert_allclose((here.bounds[0], here.bounds[3]), (left, top), atol=0.001)
    assert frame.utm_crs[5] == crs
    assert frame.unique_id.nunique() == len(frame)
    crossing = frame.geometry.geom_type == "MultiPolygon"
    assert crossing.any() == ("180" in place)


def test_a_cell_is_major_toms() -> None:
    frame = tiles(count=1)
    row, column = frame.grid_row_u[0], frame.grid_col_r[0]
    assert frame.grid_cell[0] == f"{row}U_{column}R"
    assert row == int(np.floor(frame.centre_lat[0] * 2004 / 180))


def test_a_footprint_follows_curved_edges_and_splits_at_180() -> None:
    # The edge of an MGRS tile far from its zone's meridian bends by hundreds of meters in degrees.
    ground = footprint("EPSG:32633", Affine(160, 0, 300_000, 0, -160, 7_800_000), 686, 686)
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    for x in np.linspace(300_000, 300_000 + 686 * 160, 50):
        assert ground.exterior.distance(Point(to_degrees.transform(x, 7_800_000))) < 1e-4
    halves = footprint("EPSG:32660", Affine(160, 0, 600_000, 0, -160, 7_200_000), 500, 500)
    assert halves.geom_type == "MultiPolygon"
    west, east = sorted(halves.geoms, key=lambda half: half.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    moved = split(np.array([box(170, 0, 190, 10), box(-190, 0, -170, 10), box(0, 0, 1, 1)]))
    assert moved[0].equals(moved[1])
    assert moved[0].area == 200
    assert moved[2].equals(box(0, 0, 1, 1))


def test_duckdb_reads_it(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    frame = points(50)
    write_table([frame], tmp_path / "t.parquet", ABOUT, "int8")
    name, vector, west = duckdb.sql(
        f"SELECT name, embedding, bbox.xmin FROM '{tmp_path / 't.parquet'}' WHERE name = 'p7'"
    ).fetchall()[0]
    assert name == "p7"
    assert len(vector) == 8
    assert west == pytest.approx(frame.geometry[7].x)


def test_the_same_rows_give_the_same_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    frame = points(300)
    for name in ("a", "b"):
        write_table([frame[:100], frame[100:]], tmp_path / f"{name}.parquet", ABOUT, "int8", 4)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_other_crss_and_heights(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[Point(600_000, 5_700_000, 12), Point(600_500, 5_700_000, 3)], crs="EPSG:32633")
    frame["embedding"] = [np.ones(3, np.float32)] * 2
    write_table([frame], tmp_path / "t.parquet", {})
    read = gpd.read_parquet(tmp_path / "t.parquet")
    expected = frame.to_crs(4326)
    assert not read.geometry.has_z.any()
    np.testing.assert_allclose(sorted(read.geometry.x), sorted(expected.geometry.x))


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    frame = points(5)
    with pytest.raises(TerraFMError, match="there is no row"):
        write_table([], tmp_path / "t.parquet", {})
    with pytest.raises(TerraFMError, match="CRS is None"):
        write_table([frame.set_crs(None, allow_override=True)], tmp_path / "t.parquet", {})
    hole = frame.copy()
    hole.loc[2, "geometry"] = None
    with pytest.raises(TerraFMError, match="1 of 5 rows lack a geometry"):
        write_table([hole], tmp_path / "t.parquet", {})
    with pytest.raises(TerraFMError, match="vectors of no dimensions"):
        write_table([frame.drop(columns="embedding")], tmp_path / "t.parquet", {})
    with pytest.raises(TerraFMError, match="'embedding': 4"):
        write_table([frame, points(5, depth=4)], tmp_path / "t.parquet", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_memory_is_bounded(tmp_path: Path) -> None:
    script = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
import numpy as np, geopandas as gpd
from pathlib import Path
from terrafm_tg.inference.products.parquet import write_table
rng = np.random.default_rng(0)
def frames(count):
    for start in range(0, count, 20_000):
        frame = gpd.GeoDataFrame({{"id": np.arange(start, start + 20_000)}}, crs="EPSG:4326",
            geometry=gpd.points_from_xy(rng.uniform(0, 9, 20_000), rng.uniform(0, 9, 20_000)))
        frame["embedding"] = list(rng.normal(size=(20_000, 256)).astype("f4"))
        yield frame
peaks = []
for count in (100_000, 400_000):
    write_table(frames(count), Path({str(tmp_path)!r}) / "t.parquet", {{}}, "int8", 64)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""
    small, large = map(
        int, subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout.split()
    )
    assert large < small * 1.1


def test_a_reduction_is_used_again(tmp_path: Path) -> None:
    frame = points(200)
    first = write_table([frame], tmp_path / "a.parquet", {}, "int8", 3)["embedding"]
    again = write_table([points(10)], tmp_path / "b.parquet", {}, "int8", first)["embedding"]
    assert again is first
    assert isinstance(first, Reduction)


@pytest.mark.parametrize("frame", [points(20), tiles("degrees over 180")], ids=["points", "tiles"])
def test_the_metadata_is_as_geoparquet_wants_it(tmp_path: Path, frame: gpd.GeoDataFrame) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    write_table([frame], tmp_path / "t.parquet", ABOUT)
    geo = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"geo"])
    schema = json.loads((Path(__file__).parents[2] / "data" / "schemas" / "geoparquet-1.1.0.json").read_text())
    anything = referencing.Resource.from_contents({"$schema": schema["$schema"]})  # PROJJSON: pyproj reads it below
    registry = referencing.Registry().with_resource("https://proj.org/schemas/v0.7/projjson.schema.json", anything)
    validator = jsonschema.Draft7Validator(schema, registry=registry)
    assert [*validator.iter_errors(geo)] == []
    assert [*validator.iter_errors(geo | {"version": "1.0.0"})]
    assert CRS.from_json_dict(geo["columns"]["geometry"]["crs"]) == CRS("EPSG:4326")

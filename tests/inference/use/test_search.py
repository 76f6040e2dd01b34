"""Nearest places, beside a brute-force search in plain NumPy."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from pyproj import Geod

from data.embedding_products import middle, values, write_cog, write_table, write_zarr
from refusals import refused
from terrafm_tg.inference.use import search
from terrafm_tg.inference.use import vectors as module


def brute_force(x: np.ndarray, row: int, column: int, k: int, meters: float = 0) -> list[tuple[int, float]]:
    """The nearest pixels but the query's own, and those within a distance: all compared in float64."""
    flat = x.reshape(-1, x.shape[-1]).astype(float)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosines = flat @ flat[row * x.shape[1] + column]
    rows, columns = np.divmod(np.arange(len(flat)), x.shape[1])
    lon, lat = middle(rows, columns)
    same = np.ones(len(flat))
    away = Geod(ellps="WGS84").inv(
        lon, lat, lon[row * x.shape[1] + column] * same, lat[row * x.shape[1] + column] * same
    )
    cosines[(away[2] < meters) | (np.arange(len(flat)) == row * x.shape[1] + column) | np.isnan(cosines)] = -2
    order = np.argsort(-cosines)[:k]
    return [(int(place), float(cosines[place])) for place in order]


@pytest.mark.parametrize("form", ["cog", "zarr", "ivf"])
@pytest.mark.parametrize("meters", [0, 800])
def test_nearest_places(form: str, meters: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 8 * 37)
    x = values(seed=3)
    path = write_zarr(tmp_path / "m.zarr", x) if form == "zarr" else write_cog(tmp_path / "m.tif", x)
    found = search(
        path, [middle(9, 4), middle(3, 20)], k=7, min_distance=meters, index="ivf" if form == "ivf" else "exact"
    )
    assert found["query"].tolist() == [1] * 7 + [2] * 7
    assert found["rank"].tolist() == [*range(1, 8)] * 2
    true = brute_force(x, 9, 4, 7, meters) + brute_force(x, 3, 20, 7, meters)
    np.testing.assert_allclose(
        found["similarity"], [cosine for _, cosine in true], atol=2e-3 if form == "ivf" else 1e-6
    )
    if form != "ivf":
        assert found["place"].tolist() == [place for place, _ in true]
    np.testing.assert_allclose(found[["lon", "lat"]].T, middle(*np.divmod(found["place"].to_numpy(), 24)), atol=1e-9)
    assert set(found["date"]) == {"2024-05-01"}


def test_what_several_points_have_in_common(tmp_path: Path) -> None:
    x = values(seed=3)
    found = search(write_cog(tmp_path / "m.tif", x), [middle(9, 4), middle(12, 3)], k=5, together=True)
    unit = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, 8)
    cosines = unit @ (unit[9 * 24 + 4] + unit[12 * 24 + 3])
    cosines[[9 * 24 + 4, 12 * 24 + 3]] = np.nan
    assert found["place"].tolist() == np.argsort(-np.nan_to_num(cosines, nan=-9))[:5].tolist()


def test_an_index_is_kept_measured_and_refused_when_out_of_date(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "m.tif", values(70, 70, seed=1))
    first = search(path, middle(9, 4), index="ivf")
    assert first.attrs["made"]
    assert first.attrs["recall"] >= 0.95
    again = search(path, middle(9, 4), index="ivf")
    assert not again.attrs["made"]
    pd.testing.assert_frame_equal(first, again)
    exact = search(path, middle(9, 4))
    assert len({*exact["place"]} & {*again["place"]}) >= 8
    write_cog(path, values(70, 70, seed=2))
    with refused(match="is out of date"):
        search(path, middle(9, 4), index="ivf")
    assert search(path, middle(9, 4), index="ivf", rebuild=True).attrs["made"]
    (tmp_path / "m.tif.faiss").write_bytes(b"IwFl no index")
    with refused(match="m.tif.faiss is damaged"):
        search(path, middle(9, 4), index="ivf")


def test_the_recall_is_that_of_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a goal of nothing one list is looked through: less is found, and is said."""
    monkeypatch.setattr("terrafm_tg.inference.use.index.RECALL", 0.0)
    x = np.random.default_rng(0).normal(size=(70, 70, 32)).astype(np.float32)  # no structure: the hardest case
    found = search(write_cog(tmp_path / "m.tif", x), middle(9, 4), index="ivf")
    assert 0.02 < found.attrs["recall"] < 0.6


def test_a_folder_with_a_map_and_a_table(tmp_path: Path) -> None:
    x = values()
    write_cog(tmp_path / "m.tif", x)
    write_table(tmp_path / "t.parquet", x[5, :9])
    for index in ("exact", "ivf"):
        found = search(tmp_path, (13.04, 52.0), k=2, index=index)
        assert found["file"][0] == "m.tif"  # the very vector, in the map
        assert found["place"][0] == 5 * 24 + 4
        assert found["similarity"][0] == pytest.approx(1, abs=1e-3)
    assert (tmp_path / "embeddings.faiss").is_file()


@pytest.mark.parametrize("ending", [".geojson", ".parquet", ".csv"])
def test_places_are_written(ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"found{ending}"
    found = search(write_cog(tmp_path / "m.tif", values()), middle(9, 4), k=3, out=out)
    if ending == ".csv":
        written = pd.read_csv(out)
    else:
        written = gpd.read_file(out) if ending == ".geojson" else gpd.read_parquet(out)
        assert written.crs.to_epsg() == 4326
        np.testing.assert_allclose(written.geometry.x, found["lon"])
    assert written["place"].tolist() == found["place"].tolist()
    assert written["similarity"].tolist() == pytest.approx(found["similarity"].tolist())


def test_points_from_a_file_in_another_crs(tmp_path: Path) -> None:
    x, y = 400_000 + 160 * 4.5, 5_800_000 - 160 * 9.5
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [x, y]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    content = {"type": "FeatureCollection", "features": [feature]}
    (tmp_path / "p.geojson").write_text(json.dumps(content | {"crs": crs}))
    path = write_cog(tmp_path / "m.tif", values(seed=3))
    pd.testing.assert_frame_equal(search(path, tmp_path / "p.geojson"), search(path, middle(9, 4)))
    (tmp_path / "p.geojson").write_text(json.dumps(content))
    with refused(match="no degrees of longitude and latitude: say their CRS"):
        search(path, tmp_path / "p.geojson")


def test_fewer_places_than_asked_for(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", values(1, 6)[0])
    for index in ("exact", "ivf"):
        assert len(search(path, (13.04, 52.0), k=10, index=index)) == 2  # of six, three are missing, one is the query


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ((2.0, 52.0), "`at` lies (2,52) outside of .*m.tif, which reaches 13.*: give places in it"),
        ("exchanged", "longitude and latitude are exchanged, it seems: did you mean"),
        ("missing", "is missing in .*m.tif"),
        ((200.0, 99.0), "outside of"),
        ((1.0, 2.0, 3.0), "must be points of two numbers"),
    ],
)
def test_points_that_have_no_embedding(at: object, said: str, tmp_path: Path) -> None:
    path = write_cog(tmp_path / "m.tif", values())
    point = {"exchanged": middle(9, 4)[::-1], "missing": middle(0, 0)}.get(at, at) if isinstance(at, str) else at
    with refused(match=said.replace("(2,52)", r"\(2,52\)")):
        search(path, point)


def test_a_map_without_any_embedding(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "m.tif", np.full((20, 24, 8), np.nan, np.float32))
    with refused(match="is missing in"):
        search(path, middle(9, 4))

"""A map from a few labels, beside scikit-learn by hand; labels as people have them."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from data.embedding_products import ABOUT, PLACE, UTM, middle, strips, values, write_cog, write_table, write_zarr
from refusals import refused
from terrafm_tg.inference.use import classify, open_embeddings
from terrafm_tg.inference.use.labels import read_labels

NAMES = ("Forest", "Town", "Water")
PIXELS = [(4, 2), (15, 3), (9, 5), (5, 10), (16, 11), (10, 13), (3, 18), (12, 20), (17, 22)]


def points(path: Path, pixels: list[tuple[int, int]] = PIXELS, names: list[str] | None = None, **more: Any) -> Path:
    """Labels at pixels, of the class of their strip unless named."""
    found = [NAMES[strips()[pixel]] for pixel in pixels] if names is None else names
    shapes = [shapely.Point(middle(*pixel)) for pixel in pixels]
    frame = gpd.GeoDataFrame({"class": found}, geometry=shapes, crs=4326)
    if path.suffix == ".csv":
        pd.DataFrame({"lon": frame.geometry.x, "lat": frame.geometry.y, "class": found}).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_crs(more.get("crs", 4326)).to_parquet(path)
    else:
        path.write_text(frame.to_json())
    return path


def by_hand(x: np.ndarray, method: str, balance: bool, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities of all pixels that are there, from the labels at PIXELS."""
    flat = x.reshape(-1, x.shape[-1])
    there = np.isfinite(flat).all(1)
    scaled = StandardScaler().fit(flat[there].astype(float)).transform(flat[there])
    known = np.cumsum(there)[[row * x.shape[1] + column for row, column in PIXELS]] - 1
    if method == "logistic":
        model = LogisticRegression(class_weight="balanced" if balance else None, max_iter=2000)
        p = model.fit(scaled[known], y).predict_proba(scaled)
    else:
        unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        p = KNeighborsClassifier(5, weights="distance").fit(unit[known], y).predict_proba(unit)
        if balance:
            p = p / np.bincount(y)
            p /= p.sum(1, keepdims=True)
    classes, sure = np.full(len(flat), 255), np.full(len(flat), np.nan)
    classes[there], sure[there] = p.argmax(1), p.max(1)
    return classes.reshape(x.shape[:2]), sure.reshape(x.shape[:2])


@pytest.mark.parametrize("method", ["knn", "logistic"])
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("form", ["cog", "zarr"])
def test_the_map_is_scikit_learns(
    method: Any, balance: bool, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values(seed=2) + np.random.default_rng(5).normal(size=(20, 24, 8)).astype(np.float32)  # not easy
    labels = points(tmp_path / "l.geojson", names=["a", "b", "b", "b", "a", "c", "c", "b", "b"])
    y = np.array([0, 1, 1, 1, 0, 2, 2, 1, 1])
    source = write_cog(tmp_path / "m.tif", x) if form == "cog" else write_zarr(tmp_path / "m.zarr", x)
    monkeypatch.setattr("terrafm_tg.inference.use.map_output.PART", 8 * 49)
    found = classify(source, labels, tmp_path / "out.tif", method=method, balance=balance, picture=False)
    classes, sure = by_hand(x, method, balance, y)
    with rasterio.open(tmp_path / "out.tif") as src, rasterio.open(tmp_path / "out_confidence.tif") as confidence:
        np.testing.assert_array_equal(src.read(1), classes)
        np.testing.assert_allclose(confidence.read(1), sure, atol=1e-4)
        assert (src.nodata, src.crs.to_epsg(), src.transform) == (255, 32633, PLACE)
        assert src.colormap(1)[0][:3] != src.colormap(1)[1][:3]
        assert json.loads(src.tags()["classes"]) == {"0": "a", "1": "b", "2": "c"}
    assert "<Category>b</Category>" in (tmp_path / "out.tif.aux.xml").read_text()
    shares = np.bincount(classes[classes < 255], minlength=3) / (classes < 255).sum()
    np.testing.assert_allclose(found.shares, shares)
    assert found.missing == pytest.approx((classes == 255).mean())
    assert found.labels == (2, 5, 2)


@pytest.mark.parametrize("name", ["l.geojson", "l.csv", "l.parquet", "utm.parquet"])
def test_ten_points_make_the_map(name: str, tmp_path: Path) -> None:
    """In every form and CRS; the picture and the score lie beside it."""
    labels = points(tmp_path / name, crs=UTM if name == "utm.parquet" else 4326)
    found = classify(write_cog(tmp_path / "m.tif", values()), labels, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as src:
        got = src.read(1)
    there = got < 255
    assert (got == strips())[there].mean() > 0.98
    assert [path.name for path in found.files] == ["out.tif", "out_confidence.tif", "out.png", "out_score.json"]
    assert found.score.balanced_accuracy == 1
    assert found.score.guess == pytest.approx(1 / 3)
    assert 0.5 < found.score.low < 0.8
    assert json.loads((tmp_path / "out_score.json").read_text())["balanced_accuracy"] == 1
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_polygons_give_all_pixels_in_them(tmp_path: Path) -> None:
    corner = PLACE * (2, 3)
    square = shapely.box(corner[0], corner[1] - 160 * 4, corner[0] + 160 * 3, corner[1])
    tiny = shapely.Point(*(PLACE * (20.2, 10.3))).buffer(5)
    frame = gpd.GeoDataFrame({"kind": [3.0, 7.0]}, geometry=[square, tiny], crs=UTM)
    frame.to_parquet(tmp_path / "l.parquet")
    opened = open_embeddings(write_cog(tmp_path / "m.tif", values()))
    labels = read_labels(opened, tmp_path / "l.parquet")
    assert labels.classes == ("3", "7")
    assert np.bincount(labels.y).tolist() == [12, 1]
    assert np.bincount(labels.place).tolist() == [12, 1]
    want = values()[3:7, 2:5].reshape(-1, 8)
    np.testing.assert_array_equal(labels.x[:12], want)
    np.testing.assert_array_equal(labels.x[12], values()[10, 20])


def test_a_large_polygon_is_thinned(tmp_path: Path) -> None:
    box = shapely.box(*(PLACE * (0, 40)), *(PLACE * (40, 0)))
    frame = gpd.GeoDataFrame({"a": ["x", "y"]}, geometry=[box, shapely.Point(*(PLACE * (50.5, 1.5)))], crs=UTM)
    frame.to_parquet(tmp_path / "l.parquet")
    labels = read_labels(open_embeddings(write_cog(tmp_path / "m.tif", values(60, 60))), tmp_path / "l.parquet")
    assert 240 <= np.bincount(labels.y)[0] <= 256
    assert labels.lat[:-1].max() - labels.lat[:-1].min() > 0.05


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Outside, missing, of two classes in one pixel, the same twice, without a class."""
    pixels = [*PIXELS, (0, 0), (4, 2), (15, 3), (50, 50), (6, 6)]
    names = [NAMES[strips()[p]] for p in PIXELS] + ["Town", "Forest", "Water", "Town", None]
    labels = points(tmp_path / "l.geojson", pixels, names)
    found = read_labels(open_embeddings(write_cog(tmp_path / "m.tif", values())), labels)
    text = " ".join(found.said)
    assert "1 label of 13 outside of the embeddings: left out." in text
    assert "1 label where m.tif is missing" in text
    assert "1 pixel or row with labels of different classes: left out, and so 2 labels." in text
    assert np.bincount(found.y).tolist() == [2, 3, 3]
    assert len(found.place) == len({*found.place})


def test_tables_get_classes(tmp_path: Path) -> None:
    rows = values()[9]
    source = write_table(tmp_path / "t.parquet", rows)
    pixels = [(13.02 + 0.04 * i, 52.0) for i in range(6)]
    shapes = [shapely.Point(*pixel) for pixel in pixels]
    names = [NAMES[i // 2] for i in range(6)]
    gpd.GeoDataFrame({"label": names}, geometry=shapes, crs=4326).to_parquet(tmp_path / "l.parquet")
    found = classify(source, tmp_path / "l.parquet", tmp_path / "out.parquet", method="knn", k=1)
    table = gpd.read_parquet(tmp_path / "out.parquet")
    assert table["class"].tolist() == [NAMES[c] for c in strips()[9]]
    assert table["probability"].between(0.3, 1).all()
    assert table["grid_cell"][3] == "3U_7R"
    assert table.geometry.x[3] == pytest.approx(13.03)
    assert [path.name for path in found.files] == ["out.parquet", "out.png", "out_score.json"]


def test_a_folder_of_maps(tmp_path: Path) -> None:
    """Labels lie in either; each gets its map, and the folder can be read as before."""
    (tmp_path / "e").mkdir()
    write_cog(tmp_path / "e/a.tif", values())
    write_cog(tmp_path / "e/b.tif", values(seed=1), transform=PLACE * PLACE.translation(30, 0))
    labels = points(tmp_path / "l.geojson")
    found = classify(tmp_path / "e", labels, tmp_path / "e", picture=False)
    assert {path.name for path in found.files} == {
        "a_classes.tif", "a_classes_confidence.tif", "b_classes.tif", "b_classes_confidence.tif", "e_score.json",
    }  # fmt: skip
    assert len(open_embeddings(tmp_path / "e").layers) == 2
    with refused(match="holds 2 files of embeddings: give a folder"):
        classify(tmp_path / "e", labels, tmp_path / "x.tif")


def one_class(path: Path) -> Path:
    return points(path / "l.geojson", names=["a"] * 9)


def outside(path: Path) -> Path:
    return points(path / "l.geojson", [(500, 500)] * 3, ["a", "b", "a"])


def exchanged(path: Path) -> Path:
    (path / "l.csv").write_text("lon,lat,class\n" + "\n".join(f"{b},{a},x" for a, b in [middle(9, 4), middle(5, 5)]))
    return path / "l.csv"


def meters(path: Path) -> Path:
    (path / "l.csv").write_text("x,y,class\n400720,5798480,a\n402000,5798000,b\n")
    return path / "l.csv"


def unknown_crs(path: Path) -> Path:
    content = json.loads(points(path / "l.geojson").read_text())
    return text(path, json.dumps(content | {"crs": {"type": "name", "properties": {"name": "EPSG:999999"}}}))


def conflicts(path: Path) -> Path:
    return points(path / "l.geojson", [(4, 4), (4, 4)], ["a", "b"])


def text(path: Path, content: str, name: str = "l.geojson") -> Path:
    (path / name).write_text(content)
    return path / name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_class, "has labels of one class, a"),
        (outside, "All labels of .* outside of .*m.tif, which reaches"),
        (exchanged, "longitude and latitude are exchanged, it seems: did you mean 13.5"),
        (meters, "no degrees of longitude and latitude: say their CRS"),
        (conflicts, "on no embedding that is there .*labels of different classes"),
        (lambda path: path / "none.geojson", "There is no file"),
        (lambda path: text(path, ""), "cannot be read as points or polygons"),
        (lambda path: text(path, "{}"), "cannot be read as points or polygons"),
        (lambda path: text(path, '{"type":"FeatureCollection","features":[]}'), "holds no points or polygons"),
        (lambda path: text(path, "a,b\n1,2\n", "l.csv"), "its columns are a, b"),
        (lambda path: text(path, "", "l.csv"), "cannot be read as points or polygons"),
        (lambda path: text(path, "", "l.shp"), "is not read: give points or polygons in .geojson"),
        (lambda path: text(path, "lon,lat\n13,52\n", "l.csv"), "has no column of classes"),
        (lambda path: text(path, "no parquet", "l.parquet"), "cannot be read as points or polygons"),
        (unknown_crs, r"cannot be read as points or polygons \(Invalid projection: EPSG:999999"),
    ],
)
def test_labels_that_make_no_map(make: Any, said: str, tmp_path: Path) -> None:
    source = write_cog(tmp_path / "m.tif", values())
    labels = make(tmp_path)
    with refused(match=said):
        classify(source, labels, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_labels_in_meters_with_their_crs(tmp_path: Path) -> None:
    source = write_cog(tmp_path / "m.tif", values())
    found = classify(source, meters(tmp_path), tmp_path / "out.tif", labels_crs=UTM, picture=False)
    assert found.classes == ("a", "b")
    with refused(match="`labels_crs` is EPSG:32634: leave that out"):
        classify(source, points(tmp_path / "u.parquet", crs=UTM), tmp_path / "out.tif", labels_crs="EPSG:32634")
    with refused(match="cannot be read as points or polygons .Invalid projection: meters"):
        classify(source, points(tmp_path / "u.parquet", crs=UTM), tmp_path / "out.tif", labels_crs="meters")
    write_cog(source, np.full_like(values(), np.nan))
    with refused(match="has labels on no embedding that is there .9 labels where m.tif is missing"):
        classify(source, points(tmp_path / "l.geojson"), tmp_path / "out.tif")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "m.tif"}, "the embeddings themselves"),
        ({"out": "x.parquet"}, "of m.tif it ends in .tif"),
        ({"column": "kind"}, "has no column kind: its columns are class"),
        ({"k": 0}, "`k` is 0"),
        ({"method": "forest"}, "one of knn, logistic"),
        ({"colors": {"Lake": "#0000ff"}}, "names 'Lake', which is no class"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_cog(tmp_path / "m.tif", values())
    out = tmp_path / options.pop("out", "out.tif")
    with refused(match=said):
        classify(tmp_path / "m.tif", points(tmp_path / "l.geojson"), out, **options)


def test_the_window_is_the_buffer(tmp_path: Path) -> None:
    source = write_cog(tmp_path / "m.tif", values(), about=ABOUT | {"window": 60})
    found = classify(source, points(tmp_path / "l.geojson"), tmp_path / "out.tif", picture=False)
    assert found.score.buffer == 600
    assert not found.said
    found = classify(source, points(tmp_path / "l.geojson"), tmp_path / "out.tif", picture=False, buffer=100)
    assert found.score.buffer == 100
    assert "nearer than 600 m share pixels: the score is too good" in found.said[0]

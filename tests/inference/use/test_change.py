"""Change where it was planted, and nowhere else; products that cannot be compared."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject

from data.embedding_products import ABOUT, PLACE, UTM, values, write_cog, write_table, write_zarr
from refusals import refused
from terrafm_tg.inference.products import Reduction
from terrafm_tg.inference.use import change
from terrafm_tg.inference.use.change import distance, robust_threshold

LATER = ABOUT | {"dates": {"s2l2a": ["2025-05-01"]}}


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Two dates of one scene: noise, a changed block in rows 5 to 8 and columns 3 to 6, and missing pixels."""
    x = values(seed=1)
    y = x + 0.1 * np.random.default_rng(7).normal(size=x.shape).astype(np.float32)
    y[5:9, 3:7] = values(seed=2)[5:9, 18:22]
    y[15, :4] = np.nan
    return x, y


def cosine_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """In float64, as the books have it."""
    x, y = x.astype(float), y.astype(float)
    return 1 - (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


@pytest.mark.parametrize("form", ["cog", "zarr", "int8"])
def test_planted_change(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrafm_tg.inference.use.map_output.PART", 8 * 49)
    x, y = planted()
    a = write_zarr(tmp_path / "a.zarr", x) if form == "zarr" else write_cog(tmp_path / "a.tif", x)
    b = write_cog(tmp_path / "b.tif", y, scale=0.08 if form == "int8" else None, about=LATER)
    found = change(a, b, tmp_path / "out.tif", threshold="robust")
    with rasterio.open(tmp_path / "out.tif") as src:
        scores = src.read(1)
        assert (src.crs.to_epsg(), src.transform, np.isnan(src.nodata)) == (32633, PLACE, True)
        assert src.units == ("cosine distance",)
    want = cosine_distance(x, y)
    np.testing.assert_allclose(scores, want, atol=1e-2 if form == "int8" else 1e-6)
    assert np.isnan(scores).sum() == 6 + 4
    assert found.missing == pytest.approx(10 / 480)
    known = want[np.isfinite(want)]
    np.testing.assert_allclose(found.quantiles, np.quantile(known, (0.05, 0.5, 0.95)), atol=3e-3)
    limit = np.median(known) + 3 * 1.4826 * np.median(np.abs(known - np.median(known)))
    assert found.threshold == pytest.approx(limit, rel=0.2 if form == "int8" else 1e-3)
    areas = gpd.read_file(tmp_path / "out_polygons.geojson")
    assert len(areas) == found.areas
    block = areas.to_crs(UTM).iloc[areas["pixels"].argmax()]
    square = shapely.box(*(PLACE * (3, 9)), *(PLACE * (7, 5)))
    assert block.geometry.symmetric_difference(square).area < 3 * 160**2
    assert block["max"] == pytest.approx(want[5:9, 3:7].max(), abs=1e-2)
    assert found.changed == pytest.approx((known > found.threshold).mean(), abs=0.02)
    assert not found.said


def test_two_of_the_same_are_the_same(tmp_path: Path) -> None:
    """Distances keep their digits near 0, which 1 - cosine in float32 does not."""
    x = values()
    a, b = write_cog(tmp_path / "a.tif", x), write_cog(tmp_path / "b.tif", x, about=LATER)
    found = change(a, b, tmp_path / "out.tif", threshold="robust", picture=False)
    assert found.quantiles == (0, 0, 0)
    assert (found.threshold, found.areas, found.changed) == (0, 0, 0)
    near = x[10] + 1e-5
    np.testing.assert_allclose(distance(x[10], near), cosine_distance(x[10], near), rtol=0.05, atol=1e-15)
    assert np.isnan(distance(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)))


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, Affine(160, 0, 400_000 + 320, 0, -160, 5_800_000 - 160)),
        (UTM, Affine(90, 0, 399_975, 0, -90, 5_800_025)),
        ("EPSG:32632", Affine(160, 0, 808_000, 0, -160, 5_810_000)),
        ("EPSG:4326", Affine(0.002, 0, 13.53, 0, -0.0014, 52.34)),
    ],
)
def test_another_grid_is_warped(crs: str, transform: Affine, tmp_path: Path) -> None:
    """As GDAL's nearest neighbor does, up to pixels whose edge goes through a middle."""
    x, y = planted()
    y = np.tile(y, (2, 2, 1))
    a, b = write_cog(tmp_path / "a.tif", x), write_cog(tmp_path / "b.tif", y, transform, crs, about=LATER)
    found = change(a, b, tmp_path / "out.tif", picture=False)
    assert "b.tif lies on another grid" in found.said[0]
    warped = np.full((8, 20, 24), np.nan, np.float32)
    with rasterio.open(b) as src:
        reproject(src.read(), warped, src_transform=transform, src_crs=crs, dst_transform=PLACE, dst_crs=UTM,
                  src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.nearest, tolerance=0)  # fmt: skip
    want = cosine_distance(x, np.moveaxis(warped, 0, -1))
    with rasterio.open(tmp_path / "out.tif") as src:
        same = np.isclose(src.read(1), want, atol=1e-5, equal_nan=True)
    assert same.mean() > 0.99
    assert np.isfinite(want).mean() > 0.3


def test_tables_are_joined_by_their_places(tmp_path: Path) -> None:
    x, y = (part[9] for part in planted())
    turned = np.random.default_rng(0).permutation(24)[:20]
    points = shapely.points(13 + 0.01 * np.arange(24), 52.0)
    a = write_table(tmp_path / "a.parquet", x, geometry=points)
    b = write_table(tmp_path / "b.parquet", y[turned], geometry=points[turned])
    found = change(a, b, tmp_path / "out.parquet", threshold=0.2)
    table = gpd.read_parquet(tmp_path / "out.parquet")
    want = np.where(np.isin(np.arange(24), turned), cosine_distance(x, y), np.nan)
    np.testing.assert_allclose(table["change"], want, atol=1e-6)
    assert table["changed"].tolist() == (want > 0.2).tolist()
    assert "20 of 24 and 20 rows are of one place, by geometry." in found.said
    b = write_table(tmp_path / "b.parquet", y, geometry=shapely.points(13 + 0.01 * np.arange(24), 52.001))
    assert "by grid_cell" not in change(a, b, tmp_path / "out.parquet").said  # all are found
    np.testing.assert_allclose(gpd.read_parquet(tmp_path / "out.parquet")["change"], cosine_distance(x, y), atol=1e-6)


def reduced(seed: int, dtype: str = "int8") -> dict[str, Any]:
    x = np.random.default_rng(seed).normal(size=(50, 12)).astype(np.float32)
    return LATER | {"TERRAFM_REDUCTION": Reduction.fit([x], 12, dtype, 8).to_json()}


def test_one_pca_in_two_types_is_one_pca(tmp_path: Path) -> None:
    x, y = planted()
    a = write_cog(
        tmp_path / "a.tif", x, about=ABOUT | {"TERRAFM_REDUCTION": reduced(0, "float32")["TERRAFM_REDUCTION"]}
    )
    b = write_cog(tmp_path / "b.tif", y, about=reduced(0))
    assert not change(a, b, tmp_path / "out.tif", picture=False).said


@pytest.mark.parametrize(
    ("about", "dims", "said"),
    [
        (LATER | {"model": "terrafm_base"}, 8, r"differ in their model \(terrafm_tiny and terrafm_base\)"),
        (LATER | {"pooling": "class"}, 8, "differ in their pooling"),
        (reduced(1), 8, r"differ in their PCA \(none and [0-9a-f]{8}\).*by `--pca`"),
        (LATER, 4, "embeddings of 8 and of 4 values, which cannot be compared"),
    ],
)
def test_vectors_of_different_makers_are_refused(about: dict[str, Any], dims: int, said: str, tmp_path: Path) -> None:
    a = write_cog(tmp_path / "a.tif", values())
    b = write_cog(tmp_path / "b.tif", values(dims=dims), about=about)
    with refused(match=said):
        change(a, b, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    a = write_cog(tmp_path / "a.tif", values(), about={"modalities": ["s2l2a"], "dates": ["2024-01-02"]})
    b = write_cog(tmp_path / "b.tif", values(), about={"modalities": ["s1rtc"], "dates": ["2024-01-02"]})
    text = " ".join(change(a, b, tmp_path / "out.tif", picture=False).said)
    assert "Not both say which model" in text
    assert "Sensors differ" in text
    assert "Both are of 2024-01-02" in text


@pytest.mark.parametrize(
    ("second", "out", "said"),
    [
        ("far.tif", "out.tif", "share no place with an embedding in both"),
        ("empty.tif", "out.tif", "share no place with an embedding in both"),
        ("t.parquet", "out.tif", "are a map and a table"),
        ("a.tif", "a.tif", "the embeddings themselves"),
        ("far.tif", "far.tif", "the embeddings themselves"),
        (".", "out.tif", "holds 4 files of embeddings, and change takes one"),
        ("far.tif", "out.parquet", "ends in .tif"),
    ],
)
def test_products_that_give_no_change(second: str, out: str, said: str, tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", values())
    write_cog(tmp_path / "far.tif", values(), PLACE * Affine.translation(500, 0), about=LATER)
    write_cog(tmp_path / "empty.tif", np.full_like(values(), np.nan), about=LATER)
    write_table(tmp_path / "t.parquet", values()[5])
    with refused(match=said):
        change(tmp_path / "a.tif", tmp_path / second, tmp_path / out)


def test_the_threshold_is_the_distribution_s_not_the_change_s() -> None:
    noise = np.abs(np.random.default_rng(0).normal(1, 0.1, 10_000))
    assert robust_threshold(noise) == pytest.approx(1.3, abs=0.01)
    assert robust_threshold(np.append(noise, np.full(500, 50.0))) == pytest.approx(1.31, abs=0.02)

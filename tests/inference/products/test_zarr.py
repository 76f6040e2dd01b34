"""Zarr stores of embeddings, as zarr, xarray, rioxarray and GDAL read them, and as the conventions want them."""

import json
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr

from inference.products.conftest import PLACES
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.inference.products.zarr import write_zarr

Make = Callable[..., MapParts]
SCHEMAS = Path(__file__).parents[2] / "data" / "schemas"


def whole(parts: MapParts) -> np.ndarray:
    return np.concatenate([values for _, values in parts.rows()])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [None, 5])
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_alone_reads_the_vectors(
    make_map: Make, tmp_path: Path, dtype: str, pca: int | None, sharded: bool
) -> None:
    parts = make_map(70, 57, 20, part=24)  # whose edges are no multiples of the chunks'
    reduction = Reduction.fit_maps([parts], dtype, pca)
    write_zarr(parts, tmp_path / "m.zarr", reduction, sharded)
    group = zarr.open_group(tmp_path / "m.zarr", mode="r")
    array = group["embeddings"]
    assert array.shape == (pca or 20, 70, 57)
    assert array.metadata.dimension_names == ("embedding", "y", "x")
    assert array.chunks == (pca or 20, 64, 64)
    assert (array.shards is not None) == sharded
    np.testing.assert_array_equal(array[:].transpose(1, 2, 0), reduction.encode(whole(parts)))
    kept = Reduction.from_json(json.dumps(group.attrs["terrafm"]["reduction"]))
    assert kept.to_json() == reduction.to_json()
    assert group.attrs["terrafm"]["model"] == "terrafm_base"
    if dtype == "int8":
        np.testing.assert_array_equal(group["scale"][:], reduction.scale)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("place", PLACES)
def test_xarray_reads_values_in_their_places(make_map: Make, tmp_path: Path, place: str, dtype: str) -> None:
    parts = make_map(place=place, depth=4)
    reduction = Reduction.fit_maps([parts], dtype)
    write_zarr(parts, tmp_path / "m.zarr", reduction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cube = xr.open_zarr(tmp_path / "m.zarr")
    values = cube.embeddings * cube.scale if dtype == "int8" else cube.embeddings
    expected = reduction.decode(reduction.encode(whole(parts)))
    np.testing.assert_allclose(values.transpose("y", "x", "embedding").values, expected, rtol=1e-6)
    for row, column in ((40, 3), (12, 50)):
        x, y = parts.affine * (column + 0.5, row + 0.5)
        vector = values.sel(x=x, y=y, method="nearest").values
        np.testing.assert_allclose(vector, expected[row, column], rtol=1e-6)
        assert float(cube.x[column]) == pytest.approx(x, abs=0.01 * parts.transform[0])
        assert float(cube.y[row]) == pytest.approx(y, abs=0.01 * parts.transform[0])
    assert [*cube.data_vars] == ["embeddings"]


@pytest.mark.parametrize("place", PLACES)
def test_rioxarray_knows_the_place(make_map: Make, tmp_path: Path, place: str) -> None:
    pytest.importorskip("rioxarray")
    parts = make_map(place=place, depth=4)
    write_zarr(parts, tmp_path / "m.zarr", Reduction(4))
    array = xr.open_zarr(tmp_path / "m.zarr").embeddings
    assert array.rio.crs.to_epsg() == parts.epsg
    np.testing.assert_allclose(~array.rio.transform() * (parts.affine * (10, 20)), (10, 20), atol=0.01)
    assert array.rio.shape == (43, 57)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("place", PLACES)
def test_gdal_reads_it(make_map: Make, tmp_path: Path, place: str, dtype: str) -> None:
    parts = make_map(place=place, depth=4)
    reduction = Reduction.fit_maps([parts], dtype)
    write_zarr(parts, tmp_path / "m.zarr", reduction)
    with rasterio.open(tmp_path / "m.zarr") as src:
        assert src.crs.to_epsg() == parts.epsg
        np.testing.assert_allclose(~src.transform * (parts.affine * (10, 20)), (10, 20), atol=0.01)
        assert src.count == 4
        assert src.nodata == -128 if dtype == "int8" else np.isnan(src.nodata)
        np.testing.assert_array_equal(src.read().transpose(1, 2, 0), reduction.encode(whole(parts)))


def test_many_chunks_are_put_into_shards(make_map: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_map(200, 330, 4, part=64)
    monkeypatch.setattr("terrafm_tg.inference.products.zarr._MANY", 23)
    monkeypatch.setattr("terrafm_tg.inference.products.zarr._SHARD", 128 * 128 * 4 * 4)
    write_zarr(parts, tmp_path / "m.zarr", Reduction(4))
    array = zarr.open_group(tmp_path / "m.zarr", mode="r")["embeddings"]
    assert array.shards == (4, 128, 128)
    assert array.chunks == (4, 64, 64)
    np.testing.assert_array_equal(array[:].transpose(1, 2, 0), whole(parts))
    write_zarr(parts, tmp_path / "m.zarr", Reduction(4), sharded=False)
    assert zarr.open_group(tmp_path / "m.zarr", mode="r")["embeddings"].shards is None


def _document(path: Path) -> dict[str, Any]:
    return json.loads((path / "zarr.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("place", PLACES)
def test_the_store_is_as_the_conventions_want_it(make_map: Make, tmp_path: Path, place: str, dtype: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    parts = make_map(place=place, depth=4)
    write_zarr(parts, tmp_path / "m.zarr", Reduction.fit_maps([parts], dtype, 3))
    document = _document(tmp_path / "m.zarr")
    for name in ("proj", "spatial"):
        schema = json.loads((SCHEMAS / f"zarr-{name}-0.1.json").read_text())
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
        assert [*kind(schema).iter_errors(document)] == []
        document["attributes"] |= {"proj:code": "32633"} if name == "proj" else {"spatial:transform": [160.0]}
        assert [*kind(schema).iter_errors(document)]  # the schema looks at these


def test_geoemb(make_map: Make, tmp_path: Path) -> None:
    """By hand what schema.json of geoemb, whose repository has no license, wants (version 1 of 2026)."""
    parts = make_map(depth=6)
    write_zarr(parts, tmp_path / "m.zarr", Reduction.fit_maps([parts], "int8"))
    attributes = _document(tmp_path / "m.zarr")["attributes"]
    base = "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json"
    (said,) = [one for one in attributes["zarr_conventions"] if one["uuid"] == "61c12cc5-0e28-4056-999a-480cf3fb7e4c"]
    assert (said["schema_url"], said["name"]) == (base, "geoemb:")
    assert {*said} == {"schema_url", "spec_url", "uuid", "name", "description"}
    own = {key.removeprefix("geoemb:"): value for key, value in attributes.items() if key.startswith("geoemb:")}
    assert own["type"] == "chip"
    assert own["dimensions"] == 6
    assert own["data_type"] == "int8"
    assert own["gsd"] == 160
    assert own["chip_layout"] == {"layout_type": "regular_grid", "chip_size": [16, 16], "stride": [16, 16]}
    assert own["quantization"] == {
        "method": "per_dimension_scale",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": {"type": "array", "array_name": "scale"},
    }
    for uri in (own["model"], *own["source_data"]):
        assert urlsplit(uri).scheme in ("hf", "https", "urn")
    assert [uri.rpartition("/")[2] for uri in own["source_data"]] == ["Sentinel1.html", "Sentinel2.html"]


def test_pixels_of_a_map_in_degrees_have_a_size_in_meters(make_map: Make, tmp_path: Path) -> None:
    write_zarr(make_map(place="degrees", depth=2), tmp_path / "m.zarr", Reduction(2))
    assert _document(tmp_path / "m.zarr")["attributes"]["geoemb:gsd"] == pytest.approx(0.0015 * 111195, rel=1e-3)


def test_weights_on_a_disk_are_named_not_shown(make_map: Make, tmp_path: Path) -> None:
    write_zarr(make_map(depth=2, weights="/home/me/runs/a b.ckpt", model="my model"), tmp_path / "m.zarr", Reduction(2))
    assert _document(tmp_path / "m.zarr")["attributes"]["geoemb:model"] == "urn:terrafm-tg:model:my%20model"


def test_the_same_map_gives_the_same_bytes_in_the_place_of_an_old_store(make_map: Make, tmp_path: Path) -> None:
    parts = make_map(100, 90, 30, part=32)
    reduction = Reduction.fit_maps([parts], "int8", 8)
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "old").write_text("old")
    (tmp_path / ".b.zarr.0.work").mkdir()  # of one that was killed
    prints = []
    for name in ("a", "b"):
        write_zarr(parts, tmp_path / f"{name}.zarr", reduction, sharded=name == "c")
        files = sorted(file for file in (tmp_path / f"{name}.zarr").rglob("*") if file.is_file())
        prints.append(
            [(str(f.relative_to(tmp_path / f"{name}.zarr")), sha256(f.read_bytes()).hexdigest()) for f in files]
        )
    assert prints[0] == prints[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "m.parts"]


def test_an_error_leaves_the_old_store(make_map: Make, tmp_path: Path) -> None:
    parts = make_map(depth=2)
    write_zarr(parts, tmp_path / "m.zarr", Reduction(2))
    before = (tmp_path / "m.zarr" / "zarr.json").read_bytes()
    parts.path(1, 1).unlink()
    with pytest.raises(FileNotFoundError):
        write_zarr(parts, tmp_path / "m.zarr", Reduction(2))
    assert (tmp_path / "m.zarr" / "zarr.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parts", "m.zarr"]

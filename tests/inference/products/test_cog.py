"""COGs of embeddings, as GDAL, rioxarray and TorchGeo read them."""

import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.enums import Resampling
from torchgeo.datasets import RasterDataset

from inference.products.conftest import PLACES
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.cog import block_size, write_cog
from terrafm_tg.inference.products.reduce import Reduction

Make = Callable[..., MapParts]


def whole(parts: MapParts) -> np.ndarray:
    return np.concatenate([values for _, values in parts.rows()])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [None, 5])
def test_gdal_reads_the_vectors(make_map: Make, tmp_path: Path, dtype: str, pca: int | None) -> None:
    parts = make_map(depth=20)
    reduction = Reduction.fit_maps([parts], dtype, pca)
    write_cog(parts, tmp_path / "m.tif", reduction)
    expected = reduction.decode(reduction.encode(whole(parts)))
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert src.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "ZSTD"
        assert src.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == ("3" if dtype == "float32" else "2")
        assert src.descriptions == tuple(f"d{band:03d}" for band in range(pca or 20))
        assert src.dtypes[0] in (("int8",) if dtype == "int8" else (dtype, "float32"))
        assert src.nodata == -128 if dtype == "int8" else np.isnan(src.nodata)
        numbers = src.read(masked=True)
        assert (numbers.mask == np.isnan(expected).transpose(2, 0, 1)).all()
        values = numbers.astype("f4") * np.float32(src.scales)[:, None, None] + np.float32(src.offsets)[:, None, None]
        np.testing.assert_allclose(values.filled(np.nan), expected.transpose(2, 0, 1), rtol=1e-6)
        tags = src.tags()
    assert tags["TERRAFM_MODEL"] == "terrafm_base"
    assert tags["TERRAFM_MODALITIES"] == '["s2l2a", "s1rtc"]'
    kept = Reduction.from_json(tags["TERRAFM_REDUCTION"])
    np.testing.assert_allclose(kept.restore(kept.decode(numbers.data.transpose(1, 2, 0))), reduction.restore(expected))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parts", "m.tif"]


@pytest.mark.parametrize("place", PLACES)
def test_a_pixel_lies_where_it_lay(make_map: Make, tmp_path: Path, place: str) -> None:
    parts = make_map(place=place, depth=3)
    write_cog(parts, tmp_path / "m.tif", Reduction(3))
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.crs.to_epsg() == parts.epsg
        assert src.transform.e < 0
        for row, column in ((40, 3), (12, 50), (42, 56)):
            x, y = parts.affine * (column + 0.5, row + 0.5)
            assert next(src.sample([(x, y)]))[0] == row * 1000 + column
        np.testing.assert_allclose(~src.transform * (parts.affine * (10, 20)), (10, 20), atol=0.01)


@pytest.mark.parametrize("place", PLACES)
def test_torchgeo_reads_it_in_its_place(make_map: Make, tmp_path: Path, place: str) -> None:
    parts = make_map(place=place, depth=4)
    (tmp_path / "data").mkdir()
    write_cog(parts, tmp_path / "data" / "m.tif", Reduction(4))
    dataset = RasterDataset(tmp_path / "data")
    assert dataset.crs.to_epsg() == parts.epsg
    assert dataset.res == pytest.approx((parts.transform[0], parts.transform[0]))
    image = dataset[dataset.bounds]["image"].numpy()
    expected = whole(parts).transpose(2, 0, 1)
    assert image.shape == expected.shape
    there = np.isfinite(image)  # TorchGeo interpolates by 1e-12 of a pixel of degrees, which spreads what is missing
    np.testing.assert_allclose(image[there], expected[there], rtol=1e-5, atol=1e-4)
    assert not (np.isfinite(image) & ~np.isfinite(expected)).any()
    assert (np.isfinite(expected) & ~there).sum() <= 4 * 25
    left, top = parts.affine * (20, 24)
    right, bottom = parts.affine * (30, 40)
    window = dataset[left:right, bottom:top]["image"]
    np.testing.assert_allclose(window.numpy(), whole(parts)[24:40, 20:30].transpose(2, 0, 1), rtol=1e-5, atol=1e-4)


def test_torchgeo_warps_it_into_another_zone(make_map: Make, tmp_path: Path) -> None:
    parts = make_map(depth=2)
    (tmp_path / "data").mkdir()
    write_cog(parts, tmp_path / "data" / "m.tif", Reduction(2))
    dataset = RasterDataset(tmp_path / "data", crs="EPSG:32634")
    image = dataset[dataset.bounds]["image"][0].numpy()
    there = np.argwhere(np.isfinite(image) & (image > 0))
    row, column = there[len(there) // 2]
    left, top = dataset.bounds[0].start, dataset.bounds[1].stop
    x, y = left + (column + 0.5) * dataset.res[0], top - (row + 0.5) * dataset.res[1]
    x, y = Transformer.from_crs(32634, 32633, always_xy=True).transform(x, y)
    expected = ~parts.affine * (x, y)
    assert abs(image[row, column] // 1000 - expected[1]) < 1.1
    assert abs(image[row, column] % 1000 - expected[0]) < 1.1


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rioxarray_reads_it(make_map: Make, tmp_path: Path, dtype: str) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    parts = make_map(place="utm21s", depth=4)
    reduction = Reduction.fit_maps([parts], dtype)
    write_cog(parts, tmp_path / "m.tif", reduction)
    with rioxarray.open_rasterio(tmp_path / "m.tif", mask_and_scale=True) as array:
        assert array.rio.crs.to_epsg() == 32721
        assert array.rio.transform() == parts.affine
        expected = reduction.decode(reduction.encode(whole(parts)))
        np.testing.assert_allclose(array.values, expected.transpose(2, 0, 1), rtol=1e-6)
        assert array.y.values[0] > array.y.values[-1]
        assert array.long_name == ("d000", "d001", "d002", "d003")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_overviews_are_means_over_what_is_there(make_map: Make, tmp_path: Path, dtype: str) -> None:
    height, width, depth = 70, 101, 700
    parts = make_map(height, width, depth, part=64)
    reduction = Reduction.fit_maps([parts], dtype)
    write_cog(parts, tmp_path / "m.tif", reduction)
    values = reduction.encode(whole(parts)).astype(np.float64)
    values[values == reduction.missing] = np.nan
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.overviews(1) == ([2, 4] if dtype == "float32" else [2])
        block = src.block_shapes[0][0]
        assert block == (32 if dtype == "float32" else 64)
    with rasterio.open(tmp_path / "m.tif", overview_level=0) as src:
        assert src.shape == (35, 51)
        level = src.read(masked=True)
        assert src.bounds == rasterio.open(tmp_path / "m.tif").bounds
    # The plain way: the share of each pixel that lies in a pixel of the overview, one by one.
    for row, column in ((20, 30), (34, 50), (7, 12), (0, 0), (17, 25), (6, 13)):
        total, weight = np.zeros(depth), 0.0
        for y in range(height):
            for x in range(width):
                down = min(y + 1, (row + 1) * height / 35) - max(y, row * height / 35)
                across = min(x + 1, (column + 1) * width / 51) - max(x, column * width / 51)
                if down > 1e-9 and across > 1e-9 and not np.isnan(values[y, x, 0]):
                    total, weight = total + down * across * values[y, x], weight + down * across
        got = level[:, row, column]
        assert got.mask.all() == (weight == 0)
        if weight:
            tolerance = {"rtol": 1e-5} if dtype == "float32" else {"atol": 0.51}
            np.testing.assert_allclose(got.data, total / weight, **tolerance)


def test_the_same_map_gives_the_same_bytes(make_map: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_map(40, 70, 300, part=32)
    reduction = Reduction.fit_maps([parts], "int8", 64)
    write_cog(parts, tmp_path / "a.tif", reduction)
    monkeypatch.setenv("GDAL_NUM_THREADS", "ALL_CPUS")
    (tmp_path / ".b.tif.0.work").mkdir()  # of one that was killed
    (tmp_path / ".b.tif.0.work" / "map.tif").write_bytes(b"part")
    write_cog(parts, tmp_path / "b.tif", Reduction.fit_maps([parts], "int8", 64))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif", "m.parts"]


def test_a_map_that_is_missing_as_a_whole(make_map: Make, tmp_path: Path) -> None:
    parts = make_map(20, 20, 3)
    for row, column in np.ndindex(parts.grid):
        parts.write(row, column, np.full_like(parts.read(row, column), np.nan))
    write_cog(parts, tmp_path / "m.tif", Reduction(3))
    with rasterio.open(tmp_path / "m.tif") as src, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert src.read(masked=True).mask.all()
        assert src.read(1, out_shape=(5, 5), resampling=Resampling.nearest, masked=True).mask.all()


def test_blocks_hold_less_than_8_mb_of_all_bands() -> None:
    sizes = {(768, "float32"): 32, (768, "int8"): 64, (64, "int8"): 256, (3, "float32"): 512, (9000, "float32"): 16}
    for (depth, dtype), size in sizes.items():
        assert block_size(Reduction(depth, dtype)) == size


@pytest.mark.parametrize("limit", [1 << 14, 1 << 19, 1 << 21])
def test_a_full_disk_is_said_and_leaves_nothing(make_map: Make, tmp_path: Path, limit: int) -> None:
    parts = make_map(60, 70, 50, part=64)  # 840 kB, kept in blocks of 2.6 MB for a time
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(TerraFMError, match=r"was not written .* make room, or name another place"):
            write_cog(parts, tmp_path / "m.tif", Reduction(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["m.parts"]
    write_cog(parts, tmp_path / "m.tif", Reduction(50))

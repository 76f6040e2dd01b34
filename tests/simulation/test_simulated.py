import io
import json
import signal
import time
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio.warp
from PIL import Image
from rasterio.io import MemoryFile
from shapely import Polygon, from_wkb

from processes import start
from terrafm_tg.datasets import ESAWorldCover, MajorTOM
from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import LIKELY, offset_evidence, offsets_by_name
from terrafm_tg.simulation import SimulatedWorld, simulate
from terrafm_tg.simulation.planet import Planet
from terrafm_tg.simulation.surface import render_ground

CELLS, SIZE = 30, 96
SIMULATE = partial(simulate, progress=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """30 cells of 96 px, in several Parquet parts."""
    return SIMULATE(tmp_path_factory.mktemp("simulated"), CELLS, SIZE, part_bytes=2**20)


def metadata(root, modality):
    return pq.read_table(root / FOLDERS[modality] / "metadata.parquet").to_pandas()


def rows(root, modality):
    """Metadata and image row of every cell of a product, by the metadata's own address."""
    for meta in metadata(root, modality).itertuples():
        file = pq.ParquetFile(root / FOLDERS[modality] / meta.parquet_url)
        yield meta, file.read_row_group(meta.parquet_row).to_pylist()[0]


def pixels(blob):
    with MemoryFile(blob) as memory, memory.open() as src:
        return src.read(1)


# --- The files are what Major-TOM and WorldCover publish


def test_columns_and_types_are_those_of_the_published_files(world, real_data):
    published = real_data / "major_tom" / "Core-S2L2A"
    ours = world / "Core-S2L2A"
    for name in ("metadata.parquet", "images/part_00001.parquet"):
        theirs, mine = pq.read_schema(published / name), pq.read_schema(ours / name)
        assert set(theirs.names) == set(mine.names)
        for field in theirs:
            assert str(mine.field(field.name).type).removeprefix("large_") == str(field.type).removeprefix("large_")
    blobs = pq.ParquetFile(published / "images/part_00001.parquet").read_row_group(0).to_pylist()[0]
    mine = next(row for _, row in rows(world, "s2l2a"))
    for name in ("B02", "B05", "B09", "cloud_mask"):
        with MemoryFile(blobs[name]) as a, a.open() as theirs, MemoryFile(mine[name]) as b, b.open() as src:
            for key in ("driver", "dtype", "count", "nodata", "tiled", "compress", "interleave"):
                assert src.profile[key] == theirs.profile[key], key
            assert src.crs.is_projected
            assert src.res == theirs.res


@pytest.mark.parametrize("modality", FOLDERS)
def test_each_cell_is_a_row_group_with_its_bands_in_native_size(world, modality):
    images = world / FOLDERS[modality] / "images"
    parts = sorted(path.name for path in images.iterdir())
    assert parts == [f"part_{i + 1:05d}.parquet" for i in range(len(parts))]
    assert len(parts) > 1
    table = metadata(world, modality)
    for part in parts:
        file = pq.ParquetFile(images / part)
        assert file.num_row_groups == file.metadata.num_rows == (table.parquet_url == f"images/{part}").sum()
    stored = dict(zip(map(str.lower, MODALITIES[modality].bands), MODALITIES[modality].resolutions, strict=True))
    more = {"s1rtc": {}, "s2l1c": {"b10": 60, "cloud_mask": 10}, "s2l2a": {"cloud_mask": 10}}[modality]
    for meta, row in list(rows(world, modality))[::7]:
        assert (row["grid_cell"], row["product_id"]) == (meta.grid_cell, meta.product_id)
        assert row["product_datetime"] == str(meta.timestamp)
        with Image.open(io.BytesIO(row["thumbnail"])) as picture:
            assert (picture.size, picture.mode) == ((SIZE // 2, SIZE // 2), "RGB")
        blobs = {k.lower(): v for k, v in row.items() if isinstance(v, bytes) and k != "thumbnail"}
        assert set(blobs) == set(stored | more)
        for band, res in (stored | more).items():
            with MemoryFile(blobs[band]) as memory, memory.open() as src:
                assert src.shape == (SIZE * 10 // res,) * 2
                assert src.res == (res, res)
                assert f"EPSG:{src.crs.to_epsg()}" == meta.crs
                expected = "float32" if modality == "s1rtc" else "uint8" if band == "cloud_mask" else "uint16"
                assert src.dtypes == (expected,)
                assert src.nodata == (-32768 if modality == "s1rtc" else None)


def test_a_cell_lies_where_the_published_one_of_that_name_lies():
    cell = GridCell(199, 1099)  # corner and CRS of the published TIFFs of 199U_1099R
    assert (cell.name, cell.epsg) == ("199U_1099R", 32648)
    transform = cell.transform()
    assert (transform.c, transform.f) == pytest.approx((362612.19686, 1987088.20643), abs=0.01)
    small = cell.transform(264)
    assert (small.c - transform.c, transform.f - small.f) == pytest.approx((4020, 4020))  # the same middle
    assert GridCell(-3, -7).name == "3D_7L"


def test_footprints_lie_over_their_pixels(world):
    for meta, row in list(rows(world, "s2l2a"))[::5]:
        with MemoryFile(row["B02"]) as memory, memory.open() as src:
            bounds = rasterio.warp.transform_bounds(src.crs, 4326, *src.bounds)
        footprint = from_wkb(meta.geometry)
        assert footprint.bounds == pytest.approx(bounds, abs=2e-5)
        assert footprint.centroid.coords[0] == pytest.approx((meta.centre_lon, meta.centre_lat), abs=1e-4)


def test_worldcover_has_the_picture_s_land_cover_in_the_map_s_own_grid(world):
    worldcover = ESAWorldCover(world / "WorldCover")
    cells = Planet(0).cells(CELLS)
    for cell in cells[::4]:
        ground = render_ground(Planet(0), cell, SIZE)
        expected = np.bincount(np.where(ground.open_sea, 11, ground.land_cover).ravel(), minlength=12)
        corners = cell.lonlat(SIZE, [(0, 0), (1, 0), (1, 1), (0, 1)])
        counts = worldcover.histogram(Polygon(corners))
        np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), atol=0.02)
    for path in (world / "WorldCover").iterdir():
        with rasterio.open(path) as src:
            assert (src.crs.to_epsg(), src.shape, src.dtypes) == (4326, (36000, 36000), ("uint8",))
            west, south, east, north = (round(side, 9) for side in src.bounds)
        assert (east - west, north - south, south % 3, west % 3) == (3, 3, 0, 0)
        name = f"{'NS'[south < 0]}{abs(south):02.0f}{'EW'[west < 0]}{abs(west):03.0f}"
        assert path.stem.split("_")[5] == name
        assert path.stat().st_size < 2**20  # blocks without cells take no space


def test_maps_of_climate_and_regions_cover_all_tiles(world):
    index = SimulatedWorld(world).index
    assert index["region"].between(0, 7).all()
    assert index.loc[index["land_cover"] != 11, "climate"].between(1, 30).mean() > 0.9


# --- What is in them


def test_same_settings_give_the_same_bytes_whatever_the_workers(dask_from_server, tmp_path):
    alone = SIMULATE(tmp_path / "alone", 8, 48, seed=3, workers=0)
    pair = SIMULATE(tmp_path / "pair", 8, 48, seed=3, workers=2)
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(pair) for path in pair.rglob("*") if path.is_file())
    for file in files:
        assert (alone / file).read_bytes() == (pair / file).read_bytes(), file


def test_a_cell_does_not_depend_on_how_many_there_are_but_on_the_seed(tmp_path):
    def cells(root):
        return {meta.grid_cell: row for meta, row in rows(root, "s2l2a")}

    few, many = (cells(SIMULATE(tmp_path / str(n), n, 24, seed=3, workers=0)) for n in (4, 8))
    assert few.items() <= many.items()
    assert not few.keys() & cells(SIMULATE(tmp_path / "other", 8, 24, seed=4, workers=0)).keys()


def test_offset_is_in_the_numbers_exactly_where_the_product_s_name_says_so(world):
    found = {modality: [] for modality in ("s2l1c", "s2l2a")}
    for modality, offsets in found.items():
        for meta, row in rows(world, modality):
            named = int(offsets_by_name(pd.Series([meta.product_id]))[0])
            bands = {name: pixels(row[name]) for name in row if name.startswith("B")}
            seen = offset_evidence({band: np.where(x > 0, x, np.nan) for band, x in bands.items()}, modality)
            assert seen.offset in (named, -1) or seen.strength < LIKELY, meta.product_id
            offsets.append(named)
    assert {0, 1000} == set(found["s2l1c"]) == set(found["s2l2a"])
    assert found["s2l1c"] != found["s2l2a"]  # the levels of a cell may come from different baselines


def test_statistics_lie_where_the_satellites_do(world):
    for name, modality in MODALITIES.items():
        dataset = MajorTOM(world, [name], tile_size=SIZE // 2)
        images = [dataset[dataset.tile_slice(row)][modality.key].numpy() for row in range(len(dataset))]
        mean = np.nanmean(np.stack(images), axis=(0, 2, 3))
        away = np.abs(mean - modality.mean) / modality.std
        assert away.max() < 1, (name, mean.round(1).tolist())


# --- A root is complete or absent


def test_a_complete_world_is_kept_and_another_is_never_overwritten(tmp_path):
    root = SIMULATE(tmp_path / "world", 2, 24, workers=0)
    before = (root / "world.json").stat().st_mtime_ns
    assert SIMULATE(root, 2, 24) == root
    assert (root / "world.json").stat().st_mtime_ns == before
    with pytest.raises(TerraFMError, match=r"another simulated world \(seed 0, not 1; cells 2, not 3\): name"):
        SIMULATE(root, 3, 24, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(TerraFMError, match="is no simulated world: name a folder that is absent or empty"):
        SIMULATE(tmp_path / "mine", 2, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 0}, "`cells` is 0: it must be from 1"),
        ({"cells": 10**6}, "holds at most"),
        ({"cell_size": 100}, "multiple of 12 from 24 to 1068, got 100"),
        ({"cell_size": 1080}, "multiple of 12 from 24 to 1068, got 1080"),
    ],
)
def test_impossible_settings_are_named(tmp_path, settings, message):
    with pytest.raises(TerraFMError, match=message):
        SIMULATE(tmp_path / "world", **{"cells": 1, "cell_size": 24} | settings)
    assert not (tmp_path / "world").exists()


def test_killed_in_the_middle_the_root_is_absent_and_the_next_run_makes_it(tmp_path):
    root = tmp_path / "world"
    child = start(simulate, root, 3000, 48, workers=0, progress=False)
    partial_images = tmp_path / "world.partial" / "Core-S2L2A" / "images" / "part_00001.parquet"
    deadline = time.monotonic() + 120
    while not partial_images.exists() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert partial_images.exists()
    assert not root.exists()
    SIMULATE(root, 2, 24, workers=0)
    assert json.loads((root / "world.json").read_text())["cells"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]


# --- As a dataset


def test_dataset_writes_world_and_index_then_reads_it_as_major_tom(tmp_path):
    made = SimulatedWorld(tmp_path / "world", cells=3, cell_size=48, native=True)
    assert len(made) == 12
    assert set(made.index["land_cover"]) <= set(range(12))
    again = SimulatedWorld(tmp_path / "world")  # takes the settings of what is there
    assert (len(again), again.tile_size) == (12, 24)
    plain = MajorTOM(tmp_path / "world", native=True, tile_size=24)
    ours, theirs = made[made.tile_slice(5)], plain[plain.tile_slice(5)]
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)
    assert ours["image_s2l2a_60m"].shape == (2, 4, 4)
    with pytest.raises(TerraFMError, match="cells 3, not 4"):
        SimulatedWorld(tmp_path / "world", cells=4)

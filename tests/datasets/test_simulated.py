import json
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio.warp
from PIL import Image
from rasterio.io import MemoryFile
from scipy.ndimage import uniform_filter
from shapely import Polygon, from_wkb

from terrafm_tg.datasets import ESAWorldCover, MajorTOM, SimulatedWorld, simulate
from terrafm_tg.datasets.baseline import offset_by_pixels, offsets_by_name
from terrafm_tg.datasets.major_tom_rows import FOLDERS
from terrafm_tg.datasets.simulation import optics, radar
from terrafm_tg.datasets.simulation.cell import GridCell
from terrafm_tg.datasets.simulation.encode import CODES
from terrafm_tg.datasets.simulation.latents import draw_latents
from terrafm_tg.datasets.simulation.planet import Planet
from terrafm_tg.datasets.simulation.product import plan_products
from terrafm_tg.datasets.simulation.sky import Sun, clouds, swath_edge
from terrafm_tg.datasets.simulation.surface import render_ground
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES

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


def ground_of(cell, size, seed=0):
    return render_ground(draw_latents(Planet(seed), cell, size))


# --- The files are what Major-TOM and WorldCover publish


def test_columns_and_types_are_those_of_the_published_files(world, real_data):
    published = real_data / "major_tom" / "Core-S2L2A"
    ours = world / "Core-S2L2A"
    for name in ("metadata.parquet", "images/part_00001.parquet"):
        theirs, mine = pq.read_schema(published / name), pq.read_schema(ours / name)
        assert set(theirs.names) == set(mine.names)
        for field in theirs:
            assert str(mine.field(field.name).type).removeprefix("large_") == str(field.type).removeprefix(
                "large_"
            )
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
    stored = {band.lower(): res for band, res in zip(
        MODALITIES[modality].bands, MODALITIES[modality].resolutions, strict=True)}  # fmt: skip
    more = {"s1rtc": {}, "s2l1c": {"b10": 60, "cloud_mask": 10}, "s2l2a": {"cloud_mask": 10}}[modality]
    for meta, row in list(rows(world, modality))[::7]:
        assert (row["grid_cell"], row["product_id"]) == (meta.grid_cell, meta.product_id)
        assert row["product_datetime"] == str(meta.timestamp)
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


def test_worldcover_has_the_picture_s_land_cover(world):
    worldcover = ESAWorldCover(world / "WorldCover")
    cells = Planet(0).cells(CELLS)
    for cell in cells[::4]:
        ground = ground_of(cell, SIZE)
        expected = np.bincount(np.where(ground.open_sea, 11, ground.land_cover).ravel(), minlength=12)
        corners = cell.lonlat(SIZE, [(0, 0), (1, 0), (1, 1), (0, 1)])
        counts = worldcover.histogram(Polygon(corners))
        np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), atol=0.02)


def test_worldcover_tiles_are_the_map_s_own_grid(world):
    paths = sorted((world / "WorldCover").iterdir())
    for path in paths:
        with rasterio.open(path) as src:
            assert (src.crs.to_epsg(), src.shape, src.dtypes) == (4326, (36000, 36000), ("uint8",))
            west, south, east, north = src.bounds
            assert (round(east - west, 9), round(north - south, 9), south % 3, west % 3) == (3, 3, 0, 0)
            lat, lon = path.stem.split("_")[5][:3], path.stem.split("_")[5][3:]
            assert int(lat[1:]) * (1 if lat[0] == "N" else -1) == south
            assert int(lon[1:]) * (1 if lon[0] == "E" else -1) == west
    assert max(path.stat().st_size for path in paths) < 2**20  # blocks without cells take no space


def test_maps_of_climate_and_regions_cover_all_tiles(world):
    index = SimulatedWorld(world).index
    assert index["region"].between(0, 7).all()
    assert index.loc[index["land_cover"] != 11, "climate"].between(1, 30).mean() > 0.9


# --- What is in them


def test_same_settings_give_the_same_bytes_whatever_the_workers(tmp_path):
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


def test_pictures_of_neighbours_agree_where_they_overlap():
    """0.68 km of two full pictures show the same ground, in half-pixel shifted grids."""
    west = next(c for c in Planet(0).cells(60) if len(np.unique(ground_of(c, 264).land_cover)) > 3)
    east = GridCell(west.row, west.col + 1)
    a, b = ground_of(west, 1068).land_cover, ground_of(east, 1068).land_cover
    ta, tb = west.transform(1068), east.transform(1068)
    cols, rows_ = round((tb.c - ta.c) / 10), round((ta.f - tb.f) / 10)
    assert 980 < cols < 1068  # columns in the overlap: 1068 - cols
    height = 1068 - abs(rows_)
    left = a[max(rows_, 0) :][:height, cols:]
    right = b[max(-rows_, 0) :][:height, : 1068 - cols]
    assert len(np.unique(left)) > 1
    assert (left == right).mean() > 0.97


def test_edges_of_all_sensors_and_resolutions_coincide():
    """Correlation with the land's own boundary between water and land is best without a shift."""
    shifts = {}
    for cell in Planet(0).cells(120):
        ground, products = ground_of(cell, 144), plan_products(0, cell)
        water = ground.land_cover == 7
        scene = optics.observe(ground, products["s2l2a"], cell.corner[0])
        if not 0.2 < water.mean() < 0.8 or products["s1rtc"] is None or scene.cloud_mask.any():
            continue
        bands = optics.sample(scene, "L2A", 0)
        vh = np.log(np.maximum(radar.observe(ground, products["s1rtc"])[1], 1e-4))
        pictures = {"vh": vh, "B08": bands["B08"], "B8A": bands["B8A"], "B09": bands["B09"]}
        for name, picture in pictures.items():
            factor = 144 // len(picture)
            fine = np.kron(picture, np.ones((factor, factor))) if factor > 1 else picture
            inner = fine[12:-12, 12:-12].astype(float).ravel()
            scores = {
                (dy, dx): abs(
                    np.corrcoef(np.roll(water, (dy, dx), (0, 1))[12:-12, 12:-12].ravel(), inner)[0, 1]
                )
                for dy in range(-4, 5)
                for dx in range(-4, 5)
            }
            shifts.setdefault(name, []).append(max(scores, key=scores.get))
    assert len(shifts["B08"]) >= 4
    for name, found in shifts.items():
        assert np.abs(np.median(found, axis=0)).max() <= (1 if name in ("vh", "B09") else 0), (name, found)


def test_clouds_hide_the_optical_pictures_only():
    """Under a thick cloud the blue band is bright; radar there is as it is beside it."""
    change = {"B02": [], "vv": []}
    for cell in Planet(0).cells(250):
        product, lat = plan_products(0, cell), cell.corner[0]
        if product["s1rtc"] is None:
            continue
        sun = Sun.at(lat, product["s2l2a"].time.timetuple().tm_yday)
        opacity, shadow = clouds((264, 264), product["s2l2a"], sun)
        cloud, clear = opacity > 0.8, (opacity < 0.15) & (shadow < 0.1)
        if min(cloud.mean(), clear.mean()) < 0.1:
            continue
        ground = ground_of(cell, 264)
        blue = optics.sample(optics.observe(ground, product["s2l2a"], lat), "L2A", 0)["B02"] / 1e4
        vv = radar.observe(ground, product["s1rtc"])[0]
        change["B02"].append(blue[cloud].mean() - blue[clear & (blue > 0)].mean())
        change["vv"].append(10 * np.log10(vv[cloud & (vv > 0)].mean() / vv[clear & (vv > 0)].mean()))
    assert len(change["B02"]) > 5
    assert np.median(change["B02"]) > 0.4
    assert abs(np.median(change["vv"])) < 1


def test_offset_is_in_the_numbers_exactly_where_the_product_s_name_says_so(world):
    found = {modality: [] for modality in ("s2l1c", "s2l2a")}
    for modality, offsets in found.items():
        for meta, row in rows(world, modality):
            named = int(offsets_by_name(pd.Series([meta.product_id]))[0])
            bands = {name: pixels(row[name]) for name in row if name.startswith("B")}
            measured = offset_by_pixels(bands)
            assert measured in (named, -1), meta.product_id
            offsets.append(named)
    assert {0, 1000} == set(found["s2l1c"]) == set(found["s2l2a"])
    assert found["s2l1c"] != found["s2l2a"]  # the levels of a cell may come from different baselines


def test_the_offset_adds_exactly_1000():
    cell = Planet(0).cells(1)[0]
    scene = optics.observe(ground_of(cell, 48), plan_products(0, cell)["s2l1c"], cell.corner[0])
    for level in ("L1C", "L2A"):
        without, with_offset = optics.sample(scene, level, 0), optics.sample(scene, level, 1000)
        for name, band in without.items():
            valid = band > 1  # 1 is where a number that would be 0 or less ends
            assert (with_offset[name][valid] - band[valid] == 1000).all()


def test_products_differ_by_sensor_as_an_archive_s_do():
    plans = [plan_products(0, cell) for cell in Planet(0).cells(400)]
    without = np.mean([p["s1rtc"] is None for p in plans])
    assert 0.15 < without < 0.35
    assert all(p["s1rtc"] is None or p["s1rtc"].time.date() != p["s2l2a"].time.date() for p in plans)
    same = np.mean([p["s2l1c"].time == p["s2l2a"].time for p in plans])
    assert 0.7 < same < 0.9
    assert all((p["s2l1c"].key == p["s2l2a"].key) == (p["s2l1c"].time == p["s2l2a"].time) for p in plans)
    baselines = [p[m].id.split("_")[3] for p in plans for m in ("s2l1c", "s2l2a")]
    assert {"N0300", "N0400", "N0500"} == set(baselines)
    assert min(np.mean([b == name for b in baselines]) for name in set(baselines)) > 0.1
    months = {p["s2l2a"].time.month for p in plans}
    assert len(months) == 12


def test_swath_edges_leave_nodata_and_some_pixels_in_every_quarter():
    plans = {cell: plan_products(0, cell) for cell in Planet(0).cells(1000)}
    for modality, sensor in (("s1rtc", radar), ("s2l2a", optics)):
        products = {cell: plan[modality] for cell, plan in plans.items() if plan[modality]}
        cut = {cell: swath_edge((48, 48), product, sensor.SWATH_EDGES) for cell, product in products.items()}
        cut = {cell: outside for cell, outside in cut.items() if outside is not None}
        assert len(cut) / len(products) == pytest.approx(sensor.SWATH_EDGES, rel=0.4)
        for outside in cut.values():
            assert outside.any()
            assert not any(outside[i : i + 24, j : j + 24].all() for i in (0, 24) for j in (0, 24))
        for cell, outside in list(cut.items())[:3]:
            if modality == "s1rtc":
                power = radar.observe(ground_of(cell, 48), products[cell])
                assert (power[:, outside] == -32768).all()
                assert (power[:, ~outside] > 0).all()
            else:
                scene = optics.observe(ground_of(cell, 48), products[cell], cell.corner[0])
                bands = optics.sample(scene, "L2A", 1000)
                assert ((bands["B02"] == 0) == outside).all()
                assert {(band == 0).any() for band in bands.values()} == {True}


def test_speckle_is_gamma_noise_of_the_sensor_s_looks():
    """Over an even surface the squared mean over the variance is the number of looks."""
    looks = []
    for cell in Planet(0).cells(250):
        product, ground = plan_products(0, cell)["s1rtc"], ground_of(cell, 96)
        if product is None or (ground.land_cover != 7).any():
            continue
        power = radar.observe(ground, product)[1].astype(float)  # cross-polarised water: thermal noise
        if (power > 0).all():
            local = uniform_filter(power, 9)[8:-8, 8:-8]
            looks.append(local.mean() ** 2 / (uniform_filter(power**2, 9)[8:-8, 8:-8] - local**2).mean())
    assert len(looks) >= 3
    assert np.median(looks) == pytest.approx(radar.LOOKS, rel=0.15)


def test_statistics_lie_where_the_satellites_do(world):
    for name, modality in MODALITIES.items():
        dataset = MajorTOM(world, [name], tile_size=SIZE // 2)
        images = [dataset[dataset.tile_slice(row)][modality.key].numpy() for row in range(len(dataset))]
        mean = np.nanmean(np.stack(images), axis=(0, 2, 3))
        away = np.abs(mean - modality.mean) / modality.std
        assert away.max() < 1, (name, mean.round(1).tolist())


# --- Hard enough to mean something


def tile_statistics(count, size, seed=0):
    """Band means and deviations of every tile, its majority class, and its cluster."""
    cells = Planet(seed).cells(count)
    far = [0] + [max(abs(a.row - b.row), abs(a.col - b.col)) > 5 for a, b in pairwise(cells)]
    stats, labels, clusters = {name: [] for name in MODALITIES}, [], []
    for cell, cluster in zip(cells, np.cumsum(far), strict=True):
        ground, products = ground_of(cell, size), plan_products(seed, cell)
        pictures = {"s1rtc": {}}
        for level in ("l1c", "l2a"):
            product = products[f"s2{level}"]
            pictures[f"s2{level}"] = optics.sample(
                optics.observe(ground, product, cell.corner[0]), level.upper(), 0
            )
        pictures["s2l1c"].pop("B10")
        if products["s1rtc"] is not None:
            pictures["s1rtc"] = dict(zip(("VV", "VH"), radar.observe(ground, products["s1rtc"]), strict=True))
        for quarter in range(4):

            def cut(picture, q=quarter):
                half = len(picture) // 2
                return picture[q // 2 * half :, q % 2 * half :][:half, :half]

            classes = np.bincount(cut(np.where(ground.open_sea, 11, ground.land_cover)).ravel(), minlength=12)
            labels.append(classes.argmax())
            clusters.append(cluster)
            for name, bands in pictures.items():
                values = [v[v > 0].astype(float) for v in map(cut, bands.values())]
                values = [10 * np.log10(v) if name == "s1rtc" else v for v in values]
                row = [(v.mean(), v.std()) if v.size else (np.nan, np.nan) for v in values]
                stats[name].append(row or [(np.nan, np.nan)] * 2)
    return {k: np.array(v) for k, v in stats.items()}, np.array(labels), np.array(clusters)


def check_difficulty(count, size):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    stats, labels, clusters = tile_statistics(count, size)
    complete = np.all([np.isfinite(s).all(axis=(1, 2)) for s in stats.values()], axis=0)
    use = complete & (labels < 11)
    truth, groups = labels[use], clusters[use]
    report = {"majority": np.bincount(truth).max() / len(truth)}
    for name, sensors in {**{m: [m] for m in stats}, "all": list(stats)}.items():
        means = np.concatenate([stats[m][use, :, 0] for m in sensors], axis=1)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=10))
        report[name] = np.mean(
            cross_val_predict(probe, means, truth, groups=groups, cv=GroupKFold(5)) == truth
        )
    # What two sensors' raw pictures have in common to be compared by: brightness and contrast.
    held_out = groups % 4 == 0
    common = {m: StandardScaler().fit_transform(s[use].mean(axis=1)) for m, s in stats.items()}
    for bank, query in (("s1rtc", "s2l2a"), ("s2l2a", "s1rtc"), ("s1rtc", "s2l1c")):
        knn = KNeighborsClassifier(20, weights="distance").fit(common[bank][~held_out], truth[~held_out])
        guess = knn.predict(common[query][held_out])
        report[f"{bank} to {query}"] = np.mean(guess == truth[held_out])
        report[f"{bank} to {query}, balanced"] = balanced_accuracy_score(truth[held_out], guess)
    return report, np.bincount(labels, minlength=12) / len(labels)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(("count", "size"), [(120, 132), pytest.param(700, 264, marks=pytest.mark.soak)])
def test_raw_statistics_do_not_give_the_land_cover_away(count, size):
    report, shares = check_difficulty(count, size)
    print({name: round(float(value), 3) for name, value in report.items()}, shares.round(3))
    assert max(report[name] for name in ("s1rtc", "s2l1c", "s2l2a", "all")) < 0.8
    assert report["all"] > report["majority"] + 0.1  # but they are no noise either
    for name, value in report.items():
        if "balanced" in name:
            assert value < 2.2 / 11, name
        elif " to " in name:
            assert value < report["majority"] + 0.1, name
    assert (shares > 0).all()  # all 11 classes and ocean
    assert shares[[0, 7]].min() > 0.08  # tree cover and water are common
    assert shares[[8, 9, 10]].max() < 0.08  # wetland, mangroves, moss and lichen are rare


# --- A root is complete or absent


def test_a_complete_world_is_kept_and_another_is_never_overwritten(tmp_path):
    root = SIMULATE(tmp_path / "world", 2, 24, workers=0)
    before = (root / "world.json").stat().st_mtime_ns
    assert SIMULATE(root, 2, 24) == root
    assert (root / "world.json").stat().st_mtime_ns == before
    with pytest.raises(
        TerraFMError, match=r"another simulated world \(seed 0, not 1; cells 2, not 3\): remove it"
    ):
        SIMULATE(root, 3, 24, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(TerraFMError, match="is no simulated world: name a folder that is absent or empty"):
        SIMULATE(tmp_path / "mine", 2, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 0}, "`cells` must be at least 1, got 0"),
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
    settings = f"{str(root)!r}, 3000, 48, workers=0, progress=False"
    code = f"from terrafm_tg.datasets import simulate; simulate({settings})"
    child = subprocess.Popen([sys.executable, "-c", code])
    partial_images = tmp_path / "world.partial" / "Core-S2L2A" / "images" / "part_00001.parquet"
    deadline = time.monotonic() + 120
    while not partial_images.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
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


def test_thumbnails_show_the_picture(world):
    for modality in FOLDERS:
        _, row = next(rows(world, modality))
        path = world / "thumbnail.png"
        path.write_bytes(row["thumbnail"])
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((SIZE // 2, SIZE // 2), "RGB")
        path.unlink()


def test_cells_spread_over_the_planet_in_clusters():
    cells = Planet(0).cells(700)
    assert len(set(cells)) == 700
    places = np.array([cell.corner for cell in cells])
    assert places[:, 0].min() > -60
    assert np.ptp(places[:, 0]) > 100
    assert np.ptp(places[:, 1]) > 300
    grid_rows = np.array([(c.row, c.col) for c in cells])
    beside = [(np.abs(grid_rows - cell).max(axis=1) == 1).sum() for cell in grid_rows]
    assert np.mean(beside) > 2  # most cells have neighbours
    assert CODES.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]

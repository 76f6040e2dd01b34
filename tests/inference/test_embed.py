"""``terrafm embed``: products of scenes, tiles and places, whatever interrupts it."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from datetime import datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from pyproj import Transformer

from datasets.scenes import stac_world
from inference.scenes import CORNER, KNOWN, pattern, write_optical, write_radar
from terrafm_tg.cli import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference import engine
from terrafm_tg.inference.embed import FORMATS, embed, without_secrets
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import build_encoder

QUIET = {"progress": False, "window": 96, "device": "cpu", **KNOWN}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights of a nano encoder in a file."""
    path = tmp_path_factory.mktemp("model") / "nano.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_encoder("terrafm_nano").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two optical scenes of other dates, the first with radar over its left half."""
    folder = tmp_path_factory.mktemp("scenes")
    radar = pattern(288, 200, 2, -18, -8, 1) - np.array([0, 7])[:, None, None]
    write_optical(folder, pattern(288, 320, 12, 200, 4000), "20230302")
    write_radar(folder, radar, "20230303")
    write_optical(
        folder, pattern(160, 176, 12, 300, 3000, 5), "20230601", transform=CORNER * Affine.translation(600, 0)
    )
    return folder


def digest(folder: Path) -> dict[str, str]:
    """Names of all files below a folder, with a hash of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_folder_of_scenes_becomes_a_folder_of_maps(tmp_path, scenes, model):
    found = embed(scenes, tmp_path / "out", model, **QUIET)
    assert found.images == 2
    assert found.area == pytest.approx(2.88 * 3.2 + 1.6 * 1.76)
    assert not list(tmp_path.rglob(".*"))
    maps = [path for path in found.paths if path.suffix == ".tif"]
    with rasterio.open(next(path for path in maps if "20230302" in path.name)) as file:
        assert file.shape == (18, 20)
        assert file.count == 192
        assert file.crs == "EPSG:32633"
        assert file.transform == Affine(160, 0, 399960, 0, -160, 5400000)
        assert np.isfinite(file.read()).all()
    previews = sorted((tmp_path / "out").glob("*.preview.tif"))
    assert len(previews) == 2
    with rasterio.open(previews[0]) as file:
        assert file.count == 3
        assert file.read().min() > 0
        assert file.bounds.left == 399960


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_run_again_does_nothing_and_another_is_refused(tmp_path, scenes, model, format):
    out = tmp_path / "out"
    embed(scenes, out, model, format=format, **QUIET)
    before = digest(tmp_path)
    with pytest.warns(UserWarning, match="nothing is done"):
        assert embed(scenes, out, model, format=format, **QUIET).area == 0
    with pytest.raises(TerraFMError, match="not of this run"):
        embed(scenes, out, model, format=format, **QUIET | {"window": 112})
    assert digest(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
def test_stopped_at_any_part_it_ends_in_the_same_bytes(tmp_path, scenes, model, format, monkeypatch):
    monkeypatch.setattr(engine, "_PART", 112)
    monkeypatch.setattr("terrafm_tg.inference.table.rows._CHUNK", 4)
    settings = QUIET | {"format": format, "dtype": "int8", "pca": 8}
    embed(scenes, tmp_path / "whole" / "out", model, **settings)
    expected = digest(tmp_path / "whole" / "out")
    module = "terrafm_tg.inference.table.rows" if format == "parquet" else "terrafm_tg.inference.parts"
    atomic = __import__(module, fromlist=["atomic_write"]).atomic_write
    left = [3]

    def failing(*args, **more):
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device", str(tmp_path))
        return atomic(*args, **more)

    monkeypatch.setattr(f"{module}.atomic_write", failing)
    stops, each = 0, 2 if format == "parquet" else 8
    for _ in range(40):
        try:
            embed(scenes, tmp_path / "out", model, **settings)
            break
        except OSError:
            stops, left[0] = stops + 1, each
    assert stops >= 2
    assert digest(tmp_path / "out") == expected


@pytest.mark.soak
@pytest.mark.parametrize("format", FORMATS)
def test_killed_at_twenty_moments_it_ends_in_the_same_bytes(tmp_path, model, format):
    write_optical(tmp_path / "in", pattern(1500, 1400, 12, 200, 4000))
    fork = multiprocessing.get_context("fork")  # a process that has imported everything: kills hit the work itself

    def begin(out: str) -> BaseProcess:
        settings = QUIET | {"format": format, "window": 96, "offset": 0, "batch_size": 2}
        process = fork.Process(target=embed, args=(tmp_path / "in", tmp_path / out, model), kwargs=settings)
        process.start()
        return process

    def lasts(process: BaseProcess) -> float:
        start = time.monotonic()
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - start

    whole, expected = lasts(begin("whole/out")), digest(tmp_path / "whole" / "out")
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = begin("out")
        process.join(rng.uniform(0.05, 0.6) * whole)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        assert digest(tmp_path / "out") == expected
        os.rename(tmp_path / "out", tmp_path / f"done{kills}")
    lasts(begin("out"))
    assert digest(tmp_path / "out") == expected


@pytest.mark.soak
def test_two_workers_write_what_one_process_writes(tmp_path, scenes, model):
    embed(scenes, tmp_path / "one" / "out", model, **QUIET)
    embed(scenes, tmp_path / "two" / "out", model, workers=2, **QUIET)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


@pytest.mark.soak
def test_a_cluster_that_loses_a_worker_writes_the_same_bytes(tmp_path, model):
    """Two Dask workers, of which one is killed as soon as it has written a few parts."""
    from distributed import LocalCluster

    write_optical(tmp_path / "in", pattern(4200, 1000, 12, 200, 4000))
    settings = QUIET | {"batch_size": 4}
    embed(tmp_path / "in", tmp_path / "one" / "out", model, **settings)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        victims = [worker.pid for worker in cluster.workers.values()]

        def kill() -> None:
            while len(list((tmp_path / "two").rglob("r*.npy"))) < 3:
                time.sleep(0.05)
            os.kill(victims[0], signal.SIGKILL)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        embed(tmp_path / "in", tmp_path / "two" / "out", model, scheduler=cluster.scheduler_address, **settings)
        thread.join()
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_places_have_the_vector_of_the_window_around_them(tmp_path, scenes, model):
    from terrafm_tg.inference.predictor import Encoder
    from terrafm_tg.inference.sources import find_images

    to = Transformer.from_crs("EPSG:32633", 4326, always_xy=True)
    lon, lat = to.transform(*(CORNER * (150, 120)))
    table = tmp_path / "places.csv"
    table.write_text(f"name,lon,lat\nfield,{lon},{lat}\nfar,0,0\n")
    with pytest.warns(UserWarning, match="1 of 2 places lie in no image"):
        embed(scenes, tmp_path / "places.parquet", model, points=table, pooling="both", **QUIET)
    (row,) = gpd.read_parquet(tmp_path / "places.parquet").to_dict("records")
    assert row["name"] == "field"
    assert row["sensors"] == "s1rtc+s2l2a"
    assert (row["geometry"].x, row["geometry"].y) == pytest.approx((lon, lat))
    image = next(i for i in find_images(scenes, **KNOWN) if "20230302" in i.name)
    encoder = Encoder(model, device="cpu")
    left, top, right, bottom = row["pixel_bbox"]
    assert (right - left, bottom - top) == (96, 96)
    assert abs((left + right) / 2 - 150) <= 16
    assert abs((top + bottom) / 2 - 120) <= 16
    pixels, _ = image.read(slice(top, bottom), slice(left, right))
    there = {
        name: torch.from_numpy(np.isfinite(x[0]).reshape(6, 16, 6, 16).mean((1, 3)) >= 0.5)
        for name, x in pixels.items()
    }
    batch = {name: x[None] for name, x in encoder.prepare(pixels).items()}
    tokens = encoder.features(batch, {name: x[None] for name, x in there.items()})[0]
    np.testing.assert_allclose(row["embedding_class"], tokens[0], atol=1e-4)
    np.testing.assert_allclose(row["embedding_mean"], tokens[1:].mean(0), atol=1e-4)


def test_a_polygon_has_the_mean_of_the_tokens_in_it(tmp_path, scenes, model):
    """A polygon of whole tokens: the mean of those of the window around it."""
    import shapely

    from terrafm_tg.inference.predictor import Encoder
    from terrafm_tg.inference.sources import find_images

    corners = [CORNER * point for point in ((112, 96), (160, 96), (160, 128), (112, 128))]
    frame = gpd.GeoDataFrame({"crop": ["wheat"]}, geometry=[shapely.Polygon(corners)], crs="EPSG:32633")
    embed(scenes, tmp_path / "fields.parquet", model, points=frame, pooling="mean", **QUIET)
    (row,) = gpd.read_parquet(tmp_path / "fields.parquet").to_dict("records")
    image = next(i for i in find_images(scenes, **KNOWN) if "20230302" in i.name)
    encoder = Encoder(model, device="cpu")
    left, top, right, bottom = row["pixel_bbox"]
    pixels, _ = image.read(slice(top, bottom), slice(left, right))
    there = {name: torch.ones(1, 6, 6, dtype=torch.bool) for name in pixels}
    tokens = encoder.predict({name: x[None] for name, x in encoder.prepare(pixels).items()}, there)[0]
    own = tokens[(96 - top) // 16 : (128 - top) // 16, (112 - left) // 16 : (160 - left) // 16]
    assert own.shape[:2] == (2, 3)
    np.testing.assert_allclose(row["embedding"], own.mean((0, 1)), atol=1e-4)
    assert row["crop"] == "wheat"


def test_tiles_of_an_archive_become_a_table(tmp_path, small_world, model):
    settings = {"progress": False, "window": 80, "device": "cpu", "modalities": ["s1rtc"]}
    found = embed(small_world, tmp_path / "tiles.parquet", model, **settings)
    table = gpd.read_parquet(tmp_path / "tiles.parquet")
    assert found.images == len(table) > 100  # a window of 80 px holds a tile of 72
    assert found.spent.windows == len(table)
    assert min(found.spent.computing, found.spent.reading, found.spent.writing) > 0
    assert set(table["sensors"]) == {"s1rtc"}
    assert np.isfinite(np.stack(table["embedding"])).all()
    assert table["valid_share"].between(0.5, 0.82).all()


def test_a_search_of_twenty_scenes(tmp_path, model, capsys):
    """All optical scenes of a static catalog in two months, each with the radar nearest in time."""
    side, catalog = 96, pystac.Catalog("world", "Twenty scenes")
    extent = pystac.Extent(
        pystac.SpatialExtent([[11.6, 47.9, 12.0, 48.2]]), pystac.TemporalExtent([[datetime(2023, 5, 1), None]])
    )
    for name in ("sentinel-2-l2a", "sentinel-1-rtc"):
        catalog.add_child(pystac.Collection(name, name, extent))
    images: dict = {band: stac_world.optics(band, side) for band in MODALITIES["s2l2a"].bands}
    for number in range(22):
        date = datetime(2023, 5, 1, 10, 15, 59) + timedelta(days=3 * number)
        name = f"S2B_MSIL2A_{date:%Y%m%dT%H%M%S}_R065_T32UPU_{date:%Y%m%d}T140000"
        item = stac_world.write_item(
            tmp_path / "world" / "s2" / name, name, "sentinel-2-l2a", date, images, side,
            s2__processing_baseline="05.09", eo__cloud_cover=5.0, s2__mgrs_tile="32UPU",
            s2__product_uri=name.replace("_R065", "_N0509_R065") + ".SAFE",
        )  # fmt: skip
        catalog.get_child("sentinel-2-l2a").add_item(item)
        images = {key: Path(asset.href) for key, asset in item.assets.items()}
    name = "S1A_IW_GRDH_1SDV_20230502T052640_20230502T052705_048352_05D0D4_rtc"
    radar = {band.lower(): stac_world.radar(band, side) for band in ("VV", "VH")}
    item = stac_world.write_item(
        tmp_path / "world" / "s1" / name, name, "sentinel-1-rtc", datetime(2023, 5, 2, 5, 26, 40), radar, side
    )
    catalog.get_child("sentinel-1-rtc").add_item(item)
    catalog.normalize_hrefs(str(tmp_path / "world"), skip_unresolved=True)
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    words = ["--model", str(model), "--window", "96", "--dates", "2023-05-01/2023-06-28", "--max_days", "2"]
    main(["embed", str(tmp_path / "world" / "catalog.json"), str(tmp_path / "out"), *words])
    assert "20 images" in capsys.readouterr().out
    items = list(pystac.Collection.from_file(str(tmp_path / "out" / "collection.json")).get_items())
    items = [item for item in items if "embeddings" in item.assets and item.id != "model"]
    assert len(items) == 20
    joined = [item.id for item in items if "s1rtc" in item.properties["terrafm:modalities"]]
    assert len(joined) == 1
    assert joined[0].startswith("S2B_MSIL2A_20230501")
    for item in items:
        with rasterio.open(tmp_path / "out" / item.assets["embeddings"].href) as file:
            assert file.crs == "EPSG:32632"
            assert (file.bounds.left, file.bounds.top) == (stac_world.X, stac_world.Y)
            assert np.isfinite(file.read()).all()


def test_the_command(tmp_path, scenes, model, capsys):
    out = tmp_path / "out.parquet"
    main(["embed", str(scenes), str(out), "--model", str(model), "--window", "96", "--offset", "0"])
    said = capsys.readouterr().out
    assert "2 images" in said
    assert "km²/s" in said
    assert f"terrafm view {out}" in said
    for words, sentence in (
        ([str(scenes), str(tmp_path / "x.tif")], "holds 2 images"),
        ([str(scenes), str(tmp_path / "x.jpg")], "ends in .jpg"),
        ([str(scenes), str(tmp_path / "y"), "--pooling", "max"], "`pooling` is 'max'"),
        ([str(scenes), str(tmp_path / "y"), "--stride", "5"], "`stride` is 5"),
        ([str(scenes), str(tmp_path / "y.tif"), "--points", "a.csv"], "make a table"),
        ([str(tmp_path / "none"), str(tmp_path / "y")], "does not exist"),
        ([str(scenes), str(tmp_path / "y"), "--model", "nothing.ckpt"], "is no file and no name"),
    ):
        with pytest.raises(SystemExit):
            main(["embed", *words, *(["--model", str(model)] if "--model" not in words else []), "--offset", "0"])
        error = capsys.readouterr().err
        assert sentence in error.replace("\n", " "), error
        assert "Traceback" not in error


def test_unfinished_work_of_other_settings_is_refused(tmp_path):
    settings = {"crs": "EPSG:32633", "transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), "height": 4, "width": 4, "part": 4}
    MapParts(tmp_path / "a", "a", depth=2, **settings).begin()
    MapParts(tmp_path / "a", "a", depth=2, **settings).begin()
    with pytest.raises(TerraFMError, match="made with other settings"):
        MapParts(tmp_path / "a", "a", depth=3, **settings).begin()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("scenes/a b", "scenes/a b"),
        ("earth-search", "earth-search"),
        ("https://me:secret@host.org:8000/items/x.json?sig=abc&se=1#y", "https://host.org:8000/items/x.json"),
        ("s3://bucket/key.tif?X-Amz-Signature=abc", "s3://bucket/key.tif"),
    ],
)
def test_no_secret_of_an_address_enters_a_product(source, said):
    assert without_secrets(source) == said

"""What a stopped or repeated `terrafm index` computes again, and that it ends in the same bytes."""

import multiprocessing
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_files import product, write_major_tom

from data.geotiff import write_geotiff
from terrafm_tg.datasets import build_index
from terrafm_tg.datasets.index import build as index_build

WEST, EAST = "536U_101R", "536U_104R"


@pytest.fixture
def counted(monkeypatch):
    """How many tiles each unit of work had."""
    tiles: list[int] = []
    count = index_build.count_unit

    def count_and_note(unit, **how):
        tiles.append(len(unit))
        return count(unit, **how)

    monkeypatch.setattr(index_build, "count_unit", count_and_note)
    return tiles


def write_map(folder: Path, name: str, west: float, east: float, code: int) -> None:
    """A file of the map from 47 to 49 degrees north, half of it without data."""
    codes = np.full((400, round((east - west) * 200)), code, np.uint8)
    codes[:, ::2] = 0
    path = folder / f"ESA_WorldCover_10m_2021_v200_{name}_Map.tif"
    write_geotiff(path, codes, resolution=1 / 200, epsg=4326, corner=(west, 49), nodata=0)


@pytest.fixture
def root(tmp_path):
    """The western cell alone, and a map of it."""
    write_map(tmp_path / "map", "N48E012", 12, 15, 10)
    return write_major_tom(tmp_path / "root", {"s2l2a": [product("s2l2a", WEST, size=900)]})


def build(root: Path, **settings) -> bytes:
    settings = {"tile_size": 450, "workers": 0, "progress": False} | settings
    build_index(root, root.parent / "map", **settings)
    assert not list(root.glob("index.parquet.*"))  # no work folder, no part
    return (root / "index.parquet").read_bytes()


def afresh(root: Path) -> bytes:
    """The index of a copy of the root."""
    copy = root.parent / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("index.parquet"))
    whole = build(copy)
    shutil.rmtree(copy)
    return whole


def test_only_new_tiles_are_counted(root, counted):
    before = build(root)
    assert sum(counted) == 4
    counted.clear()
    assert build(root) == before
    assert not counted
    write_major_tom(root, {"s2l2a": [product("s2l2a", cell, size=900) for cell in (WEST, EAST)]})
    after = build(root)
    assert sum(counted) == 4  # the eastern cell's
    assert after == afresh(root)


@pytest.mark.parametrize(("name", "west", "east"), [("N48E012", 12, 14.9), ("N48E015", 15, 16)])
def test_a_changed_map_is_counted_anew(root, counted, name, west, east):
    build(root)
    counted.clear()
    write_map(root.parent / "map", name, west, east, 30)
    assert build(root) == afresh(root)
    assert sum(counted) == 8  # 4 each


def test_what_was_kept_is_used_unless_damaged(root, counted, monkeypatch):
    undisturbed = build(root)
    counted.clear()
    (root / "index.parquet").unlink()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("terrafm_tg.datasets.index.build.write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            build(root)
    (kept,) = (root / "index.parquet.work").iterdir()
    content = kept.read_bytes()
    assert sum(counted) == 4
    counted.clear()
    assert build(root) == undisturbed
    assert not counted
    (root / "index.parquet").unlink()
    kept.parent.mkdir()
    kept.write_bytes(content[: len(content) // 2])
    assert build(root) == undisturbed
    assert sum(counted) == 4


def killed_runs(world: Path, out: Path, times: int) -> list[float]:
    """Build the index of a world with `times` SIGKILLs at random moments; each rerun's share of the whole work."""
    random, fork = np.random.default_rng(0), multiprocessing.get_context("fork")
    run, whole = partial(build_index, world, workers=0, progress=False), out.with_name("undisturbed.parquet")
    run(out=whole)
    work = out.with_name(f"{out.name}.work")
    kept = []
    for _ in range(times):
        process, some = fork.Process(target=run, kwargs={"out": out}), random.integers(8)
        process.start()
        while process.is_alive() and len(list(work.glob("*.npy"))) < some:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        kept.append(len(list(work.glob("*.npy"))))
        run(out=out)
        assert out.read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in out.parent.iterdir()) == ["index.parquet", "undisturbed.parquet"]
        out.unlink()
    return kept


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments(small_world, tmp_path, times, monkeypatch):
    monkeypatch.setattr(index_build, "_UNIT", 20)  # a dozen units, so that many moments differ
    kept = killed_runs(small_world, tmp_path / "index.parquet", times)
    assert any(kept) or times < 20  # at least one rerun had something to take up

"""Packing of many cells: each goes into one shard, memory stays small, and a second process takes half of the work."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
from packing_checks import digests, source
from tiny_files import SIZE, tiff

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.store.plan import plan_shards
from terrafm_tg.modalities import S1RTC

PART = 500  # cells


def write_many(root: Path, count: int) -> Path:
    """Radar of so many neighbouring cells in zone 33, in parts of 500."""
    places = [
        (row, column)
        for row in range(400, 640)
        for column in range(int(12.2 / 360 * grid.cells_per_row(row)), int(17.8 / 360 * grid.cells_per_row(row)))
    ][:count]
    names = grid.names(*np.array(places).T)
    lat, lon = grid.corners(*np.array(places).T)
    x, y = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(lon, lat)
    x, y = x + 5000 - SIZE * 5, y + 5000 + SIZE * 5
    images, draws = root / "Core-S1RTC/images", np.random.default_rng(0)
    images.mkdir(parents=True)
    for part, start in enumerate(range(0, count, PART), 1):
        rows = [
            {"grid_cell": names[i], **{
                band: tiff(draws.gamma(2, 0.1, (SIZE, SIZE)).astype(np.float32), 32633, x[i], y[i], 10, -32768.0)
                for band in ("vv", "vh")
            }}
            for i in range(start, min(start + PART, count))
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), images / f"part_{part:05}.parquet", row_group_size=1)
    pd.DataFrame({
        "grid_cell": names, "product_id": [f"S1A_{name}" for name in names], "crs": "EPSG:32633", "nodata": 0.0,
        "timestamp": pd.Timestamp("20210501"), "parquet_row": np.arange(count) % PART,
        "parquet_url": [f"https://host/images/part_{i // PART + 1:05}.parquet" for i in range(count)],
    }).to_parquet(root / "Core-S1RTC/metadata.parquet")  # fmt: skip
    return root


def test_units_of_a_million_tiles_are_planned_in_seconds() -> None:
    """Each tile once, in the order of its part, at most so many together, and the same when a part comes later."""
    tiles, limit = 1_000_000, 160
    part = np.arange(tiles) // 2000
    table = pd.DataFrame({
        "part_s1rtc": pd.Categorical([f"images/part_{i:05}.parquet" for i in range(part.max() + 1)])[part],
        "group_s1rtc": np.random.default_rng(0).permutation(500)[np.arange(tiles) // 4 % 500],
    })  # fmt: skip
    names, todo = np.arange(1, tiles + 1, dtype=np.uint64), part > 0
    began = time.process_time()
    units = list(plan_shards(table, S1RTC, names, todo, limit))
    print(f"planned in {time.process_time() - began:.1f} s of processor time")
    rows = np.concatenate([unit.rows for unit in units])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(todo))
    for unit in units:
        assert len(np.unique(part[unit.rows])) == 1
        assert (np.diff(table["group_s1rtc"].to_numpy()[unit.rows]) >= 0).all()
        assert len(unit.rows) <= limit
        assert len(unit.rows) % 4 == 0
    later = list(plan_shards(table, S1RTC, names, np.ones(tiles, bool), limit))
    assert len({unit.name for unit in later}) == len(later)
    assert {unit.name for unit in units} < {unit.name for unit in later}


@pytest.mark.soak
def test_ten_thousand_cells_on_one_process_and_on_two(tmp_path: Path) -> None:
    from distributed import LocalCluster

    root = write_many(tmp_path / "root", 10_000)
    warm = source(write_many(tmp_path / "warm", 40))
    seconds, cpu, parent = {}, {}, {}
    for workers in (1, 2):
        with LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            how = {"scheduler": cluster.scheduler_address, "progress": False}
            pack(warm, tmp_path / f"warm{workers}", shard_mb=0.01, **how)  # until both have imported what they need
            processes = [psutil.Process(nanny.pid) for nanny in cluster.workers.values()]
            before = [sum(process.cpu_times()[:2]) for process in processes]
            mine, began = time.process_time(), time.monotonic()
            pack(source(root), tmp_path / f"store{workers}", shard_mb=0.2, **how)
            seconds[workers], parent[workers] = time.monotonic() - began, time.process_time() - mine
            after = [sum(process.cpu_times()[:2]) for process in processes]
            cpu[workers] = [b - a for a, b in zip(before, after, strict=True)]
    ratio = seconds[1] / seconds[2]
    print(f"10,000 cells: {seconds[1]:.1f} s with one process, {seconds[2]:.1f} s with two: {ratio:.2f} times as fast;")
    print(f"processor time of the workers {cpu}, of the process that waits for them {parent}")
    assert digests(tmp_path / "store1") == digests(tmp_path / "store2")

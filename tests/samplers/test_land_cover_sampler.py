"""Draws against counts made by hand; ranks against the whole list."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from terrafm_tg.datasets import TileDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler


class Index(TileDataset):
    """Tiles with an index only."""

    def _read(self, row, modality):
        raise AssertionError("a sampler reads no pixels")


def make_tiles(land_cover, cells=None, **columns) -> Index:
    count = len(land_cover)
    times = np.full(count, np.datetime64("2021-06-01"), "datetime64[ns]")
    x = np.linspace(0, 1, count)
    index = gpd.GeoDataFrame(
        {
            "cell": [f"0U_{i // 4}R" for i in range(count)] if cells is None else cells,
            "quadrant": np.arange(count) % 4,
            "epsg": 32631,
            "has_s2l2a": True,
            "land_cover": land_cover,
            **columns,
        },
        index=pd.IntervalIndex.from_arrays(times, times, closed="both", name="datetime"),
        geometry=shapely.box(x, 0, x + 0.01, 0.01),
        crs=4326,
    )
    return Index(index)


def drawn_rows(sampler) -> np.ndarray:
    return np.array([tile.row for tile in sampler])


@settings(max_examples=60, deadline=None)
@given(
    land_cover=st.lists(st.integers(-1, 10), min_size=1, max_size=60),
    length=st.integers(1, 300),
    power=st.floats(-1, 2),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
@example(land_cover=[0] * 8 + [1] * 2, length=274, power=0.0, seed=0, epoch=0)
def test_every_tile_appears_floor_or_ceil_of_its_weight(land_cover, length, power, seed, epoch) -> None:
    sampler = LandCoverSampler(make_tiles(land_cover), length=length, power=power, seed=seed)
    sampler.set_epoch(epoch)
    _, group, size = np.unique(land_cover, return_inverse=True, return_counts=True)
    weight = (size[group] / len(land_cover)) ** -power
    expected = length * weight / weight.sum()
    counts = np.bincount(drawn_rows(sampler), minlength=len(land_cover))
    assert counts.sum() == length
    assert (counts >= np.floor(expected - 1e-6)).all()
    assert (counts <= np.ceil(expected + 1e-6)).all()
    if power:  # A group as a whole is as near to its expectation; at power 0 all tiles are one group.
        assert np.abs(np.bincount(group, counts) - np.bincount(group, expected)).max() < 1 + 1e-6
    np.testing.assert_allclose(sampler.expected_counts, expected, rtol=1e-6, atol=1e-6)


def test_powers_by_hand() -> None:
    land_cover = [0] * 12 + [9] * 3 + [-1]
    tiles = make_tiles(land_cover)
    once = LandCoverSampler(tiles, power=0)
    assert sorted(drawn_rows(once)) == list(range(16))
    # power 1: each of the three groups a third of 48 draws
    equal = LandCoverSampler(tiles, power=1, length=48)
    assert np.add.reduceat(np.bincount(drawn_rows(equal)), [0, 12, 15]).tolist() == [16, 16, 16]
    np.testing.assert_allclose(equal.expected_counts, [16 / 12] * 12 + [16 / 3] * 3 + [16])
    np.testing.assert_allclose(equal.land_cover_share(), np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]) / 3)


def test_share_is_that_of_the_draws() -> None:
    land_cover = np.random.default_rng(0).choice([0, 3, 9, -1], 400, p=[0.6, 0.25, 0.05, 0.1])
    sampler = LandCoverSampler(make_tiles(land_cover), power=0.5, length=1000)
    drawn = land_cover[drawn_rows(sampler)]
    counts = np.bincount(drawn[drawn >= 0], minlength=12) / 1000
    np.testing.assert_allclose(sampler.land_cover_share(), counts, atol=1.01e-3)


def test_joint_groups_and_unknown_columns() -> None:
    climate, region = np.array([1, 1, 1, 2, 2, 2, 2, 2]), np.array([0, 0, 1, 0, 0, 0, 0, -1])
    tiles = make_tiles([0] * 8, climate=climate, region=region)
    sampler = LandCoverSampler(tiles, power=1, by=("land_cover", "climate", "region"), length=12)
    np.testing.assert_allclose(sampler.expected_counts, [1.5, 1.5, 3, 0.75, 0.75, 0.75, 0.75, 3])
    with pytest.raises(TerraFMError, match="no column 'soil'"):
        LandCoverSampler(tiles, by=("soil",))


def test_missing_land_cover_is_said(caplog) -> None:
    tiles = make_tiles([0] * 8)
    tiles.index = tiles.index.drop(columns="land_cover")
    sampler = LandCoverSampler(tiles)
    assert "Land cover is unknown for all 8 tiles" in caplog.text
    assert sorted(drawn_rows(sampler)) == list(range(8))
    assert sampler.land_cover_share().sum() == 0


def test_epochs_differ_and_repeat() -> None:
    tiles = make_tiles([0] * 90 + [9] * 10)
    lists = []
    for epoch in (0, 1, 0):
        sampler = LandCoverSampler(tiles, seed=3)
        sampler.set_epoch(epoch)
        slices = list(sampler)
        assert [s.position for s in slices] == list(range(100))
        assert {s.epoch for s in slices} == {epoch}
        lists.append([s.row for s in slices])
    assert lists[0] == lists[2] != lists[1]
    assert lists[0] != drawn_rows(LandCoverSampler(tiles, seed=4)).tolist()


def test_rare_draws_go_round_over_epochs() -> None:
    """A tile of weight 1/4 comes about every fourth epoch, and no epoch favours one quadrant."""
    sampler = LandCoverSampler(make_tiles([0] * 400), length=100)
    seen = np.zeros((40, 400), int)
    for epoch in range(40):
        sampler.set_epoch(epoch)
        seen[epoch] = np.bincount(drawn_rows(sampler), minlength=400)
    assert (np.abs(seen.sum(axis=0) - 10) <= 2).all()
    quadrants = seen.reshape(40, 100, 4).sum(axis=1)
    assert quadrants.max() <= 45  # 25 expected; in index order it would be 100


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_partition_the_list(ranks) -> None:
    tiles = make_tiles([0] * 40 + [5] * 10)
    whole = LandCoverSampler(tiles, length=101).global_rows()
    parts = [list(LandCoverSampler(tiles, length=101, rank=r, world_size=ranks)) for r in range(ranks)]
    assert {len(part) for part in parts} == {101 // ranks}
    positions = sorted(s.position for part in parts for s in part)
    assert positions == list(range(101 // ranks * ranks))
    assert all(s.row == whole[s.position] for part in parts for s in part)


def test_evaluation_keeps_order_and_drops_nothing() -> None:
    tiles = make_tiles([11] * 50)
    rows = np.array([40, 3, 7, 9, 21])
    parts = [LandCoverSampler(tiles, rows, power=0, ocean_keep=1, rank=r, world_size=2, shuffle=False) for r in (0, 1)]
    assert [drawn_rows(part).tolist() for part in parts] == [[40, 7, 21], [3, 9]]
    assert [len(part) for part in parts] == [3, 2]
    parts[0].set_epoch(5)
    assert drawn_rows(parts[0]).tolist() == [40, 7, 21]


def test_ocean_cells_are_kept_whole_by_seed() -> None:
    # cells of 4: ocean, ocean with one land tile, half ocean (land), unknown
    land_cover = np.tile([11] * 4 + [11, 11, 11, 0] + [11, 11, 0, 0] + [-1] * 4, 500)
    tiles = make_tiles(land_cover)
    kept = LandCoverSampler(tiles, power=0, ocean_keep=0.3, seed=1).rows
    whole = np.bincount(kept // 4, minlength=2000).reshape(500, 4)
    assert set(np.unique(whole[:, :2])) == {0, 4}
    assert (whole[:, 2:] == 4).all()
    assert 0.25 < (whole[:, :2] == 4).mean() < 0.35
    # The same cells whatever rows are asked for and however the index is ordered.
    half = LandCoverSampler(tiles, np.arange(0, 8000, 2), power=0, ocean_keep=0.3, seed=1).rows
    np.testing.assert_array_equal(half, kept[kept % 2 == 0])
    other = LandCoverSampler(tiles, power=0, ocean_keep=0.3, seed=2).rows
    assert not np.array_equal(kept, other)


def test_default_keeps_two_percent_of_the_ocean() -> None:
    kept = LandCoverSampler(make_tiles([11] * 40_000)).rows
    assert 0.015 < len(kept) / 40_000 < 0.025


def test_replacements_follow_the_weights() -> None:
    sampler = LandCoverSampler(make_tiles([0] * 90 + [9] * 10), power=1)
    rng = np.random.default_rng(0)
    rows = np.array([sampler.random_row(rng) for _ in range(2000)])
    assert 0.45 < (rows >= 90).mean() < 0.55


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"power": float("nan")}, "`power` is nan"),
        ({"ocean_keep": 1.5}, "`ocean_keep` is 1.5"),
        ({"length": 0}, "length is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"by": "cover"}, "no column 'cover'"),
        ({"rows": np.array([], int)}, "No tile is left"),
    ],
)
def test_wrong_settings(settings_, words) -> None:
    with pytest.raises(TerraFMError, match=words):
        LandCoverSampler(make_tiles([0] * 8), **settings_)


def test_more_processes_than_tiles() -> None:
    with pytest.raises(TerraFMError, match="9 processes cannot share 8 tiles"):
        len(LandCoverSampler(make_tiles([0] * 8), rank=0, world_size=9))


def test_only_ocean() -> None:
    with pytest.raises(TerraFMError, match="`ocean_keep=0` drops"):
        LandCoverSampler(make_tiles([11] * 8), ocean_keep=0)


def test_lightning_leaves_it_alone() -> None:
    """With ``ddp`` and default settings Lightning would cut another sampler's list up again."""
    trainer = Trainer(strategy="ddp", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    loader = DataLoader(Index(make_tiles([0] * 8).index), sampler=LandCoverSampler(make_tiles([0] * 8)))
    assert not trainer._data_connector._requires_distributed_sampler(loader)


def _two_processes(rank, port, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sampler = LandCoverSampler(make_tiles([0] * 40 + [5] * 10), length=60)
    sampler.set_epoch(2)
    queue.put((rank, [(s.position, s.row) for s in sampler]))
    torch.distributed.destroy_process_group()


def test_two_real_processes_partition_the_list() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_two_processes, args=(rank, port, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    parts = dict(queue.get() for _ in processes)
    whole = LandCoverSampler(make_tiles([0] * 40 + [5] * 10), length=60)
    whole.set_epoch(2)
    assert [position for position, _ in parts[0]] == list(range(0, 60, 2))
    assert sorted(parts[0] + parts[1]) == list(enumerate(whole.global_rows().tolist()))

"""Each tile decoded once, whoever reads it; the same pixels as without."""

import logging
import pickle

import numpy as np
import pytest
import torch
from memory_tiles import MemoryTiles, make_index, square

from terrafm_tg.datamodules import CachedTiles, FaultTolerant, TileDataLoader
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.samplers import LandCoverSampler

ALL = np.arange(64)


def make(damaged=(), **options) -> tuple[MemoryTiles, CachedTiles]:
    tiles = MemoryTiles(make_index(*square(4)), damaged)
    cached = CachedTiles(tiles, ALL, **options)
    tiles.reads[:] = 0
    return tiles, cached


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_same_samples_decoded_once() -> None:
    tiles, cached = make()
    for _ in range(2):
        for row in ALL:
            assert same(cached[cached.tile_slice(row, 3, 1)], MemoryTiles(tiles.index)[tiles.tile_slice(row, 3, 1)])
    has_s1 = tiles.index["has_s1rtc"].to_numpy()
    assert not has_s1.all()
    np.testing.assert_array_equal(tiles.reads, np.stack([has_s1, np.ones(64)], axis=1))


def test_what_it_hands_out_can_be_changed() -> None:
    _, cached = make()
    slice_ = cached.tile_slice(9)
    before = {key: value.clone() for key, value in cached[slice_].items()}
    for value in cached[slice_].values():
        value.zero_()
    assert same(cached[slice_], before)


def test_workers_share_it() -> None:
    """Two workers, three epochs: each tile is decoded by one of them, once."""
    tiles, cached = make()
    sampler = LandCoverSampler(tiles, seed=1)
    loader = TileDataLoader(
        FaultTolerant(cached, sampler), sampler=sampler, batch_size=8, num_workers=2, multiprocessing_context="fork"
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        rows = torch.cat([batch["row"] for batch in loader])
        np.testing.assert_array_equal(np.sort(rows), ALL)
        assert (tiles.reads[:, 1] == 1).all()
    assert tiles.reads[0, 1] == 1  # read by a worker, seen here
    cached[cached.tile_slice(0)]
    assert tiles.reads[0, 1] == 1


def test_damaged_tiles_are_reported_each_time() -> None:
    tiles, cached = make(damaged=[7])
    for _ in range(2):
        with pytest.raises(DamagedTileError, match="truncated"):
            cached[cached.tile_slice(7)]
    assert tiles.reads[7].sum() == 2


def test_rows_outside_are_decoded_each_time() -> None:
    tiles = MemoryTiles(make_index(*square(4)))
    cached = CachedTiles(tiles, ALL[:10])
    tiles.reads[:] = 0
    for _ in range(3):
        cached[cached.tile_slice(20)]
    assert tiles.reads[20, 1] == 3


def test_memory_is_said_and_limited(caplog) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    logging.getLogger("lightning.pytorch").propagate = True
    tiles, _ = make()
    s2 = 2 * (4 * 12 * 12 + 6 * 6 * 6 + 2 * 2 * 2)
    needed = (64 * s2 + int(tiles.index["has_s1rtc"].sum()) * 4 * 2 * 12 * 12) / 1e9
    assert f"64 tiles, {needed:.3g} GB" in caplog.text
    CachedTiles(tiles, ALL, limit=needed * 1.001)
    with pytest.raises(TerraFMError, match=f"{2 * needed:.3g} GB of memory.*`cache_limit`"):
        CachedTiles(tiles, ALL, limit=needed * 1.001, processes=2)


def test_spawned_workers_decode_anew_and_say_so() -> None:
    tiles, cached = make()
    cached[cached.tile_slice(3)]
    with pytest.warns(UserWarning, match="Spawned workers cannot share the cache"):
        copy = pickle.loads(pickle.dumps(cached))  # as a spawned worker receives it
    assert same(copy[copy.tile_slice(3)], cached[cached.tile_slice(3)])
    assert copy.tiles.reads[3, 1] == tiles.reads[3, 1] + 1

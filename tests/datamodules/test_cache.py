"""Each tile decoded once, whoever reads it; the same pixels as without."""

import mmap

import numpy as np
import pytest
import torch
from memory_tiles import MemoryTiles, make_index, square

from terrafm_tg.datamodules import CachedTiles
from terrafm_tg.errors import DamagedTileError, TerraFMError


def make(damaged=()) -> tuple[MemoryTiles, CachedTiles]:
    tiles = MemoryTiles(make_index(*square(4)), damaged)
    cached = CachedTiles(tiles)
    tiles.reads[:] = 0
    return tiles, cached


def test_same_samples_decoded_once_that_can_be_changed() -> None:
    tiles, cached = make()
    for _ in range(2):
        for row in range(64):
            sample = cached[cached.tile_slice(row, 3, 1)]
            expected = MemoryTiles(tiles.index)[tiles.tile_slice(row, 3, 1)]
            assert sample.keys() == expected.keys()
            assert all(torch.equal(sample[key], expected[key]) for key in sample)
            for value in sample.values():
                value.zero_()
    has_s1 = tiles.index["has_s1rtc"].to_numpy()
    assert not has_s1.all()
    np.testing.assert_array_equal(tiles.reads, np.stack([has_s1, np.ones(64)], axis=1))


def test_damaged_tiles_are_reported_each_time() -> None:
    tiles, cached = make(damaged=[0, 7])
    for _ in range(2):
        with pytest.raises(DamagedTileError, match="truncated"):
            cached[cached.tile_slice(7)]
    assert tiles.reads[7].sum() == 2


def test_memory_that_the_machine_lacks_is_named(monkeypatch) -> None:
    def refuse(number: int, size: int) -> mmap.mmap:
        raise OSError("Cannot allocate memory")

    tiles = MemoryTiles(make_index(*square(4)))
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(TerraFMError, match=r"`cache` would keep 64 tiles in .* GB of memory, more than .*: switch it"):
        CachedTiles(tiles)

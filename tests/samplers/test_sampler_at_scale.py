"""The sampler as 512 processes see it: shares against numbers made by hand, in tests with a known chance to fail."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.tiles.table import BOX, TIMES
from terrafm_tg.samplers import LandCoverSampler

COLUMNS = ("land_cover", "climate", "region")


class Index(TileDataset):
    """Tiles with a table only."""

    def _read(self, row, modality):
        raise AssertionError("a sampler reads no pixels")


def world(count: int) -> Index:
    """Tiles whose classes, zones and regions are as uneven as on Earth, and go together in a cell."""
    rng = np.random.default_rng(0)
    cells = count // 4
    groups = {
        name: np.repeat(rng.choice(size, cells, p=(p := 0.7 ** np.arange(size)) / p.sum()), 4)
        for name, size in zip(COLUMNS, (11, 12, 5), strict=True)
    }
    day = np.full(count, np.datetime64("2021-06-01", "us"))
    place = np.arange(count) / count
    return Index(
        pd.DataFrame(
            groups
            | {"cell": pd.Categorical.from_codes(np.arange(count) // 4, [f"0U_{i}R" for i in range(cells)])}
            | {"quadrant": np.arange(count) % 4, "epsg": 32631, "has_s2l2a": True}
            | dict.fromkeys(TIMES, day)
            | dict.fromkeys(BOX, place)
        )
    )


@pytest.fixture(scope="module")
def tiles() -> Index:
    return world(20_000)


@pytest.mark.parametrize("ranks", [1, 2, 7, 512])
def test_ranks_partition_the_list(tiles, ranks) -> None:
    whole = LandCoverSampler(tiles, length=20_003, by=COLUMNS)
    whole.set_epoch(3)
    parts = []
    for rank in range(ranks):
        sampler = LandCoverSampler(tiles, length=20_003, by=COLUMNS, rank=rank, world_size=ranks)
        sampler.set_epoch(3)
        parts.append(sampler.own_rows())
        if rank in (0, ranks - 1):
            assert [(s.row, s.position) for s in sampler] == [
                (row, rank + place * ranks) for place, row in enumerate(parts[-1].tolist())
            ]
    together = np.stack(parts, axis=1).ravel()
    assert len(together) == 20_003 // ranks * ranks
    np.testing.assert_array_equal(together, whole.global_rows()[: len(together)])


@pytest.mark.parametrize("rank", [0, 300, 511])
def test_shares_of_one_rank_of_many_within_sampling_error(tiles, rank) -> None:
    """Draws of 1 rank of 512, 400 of an epoch, over 80 seeds: chi-square against shares made by hand.

    Each p-value is uniform if a rank's draws are a random sample of the shares asked for; the smallest of 80 and their
    distribution may look as extreme as this once in a thousand times.
    """
    cover = tiles.table["land_cover"].to_numpy()
    wanted = (np.bincount(cover) / len(cover)) ** 0.5
    wanted /= wanted.sum()
    p_values = []
    for seed in range(80):
        sampler = LandCoverSampler(tiles, length=512 * 400, power=0.5, seed=seed, rank=rank, world_size=512)
        sampler.set_epoch(seed % 5)
        counts = np.bincount(cover[sampler.own_rows()], minlength=len(wanted))
        p_values.append(stats.chisquare(counts, 400 * wanted).pvalue)
        np.testing.assert_allclose(sampler.land_cover_share()[: len(wanted)], wanted, atol=1e-6)
    assert min(p_values) > 1e-3 / 80
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_no_group_and_no_tile_starves(tiles, power) -> None:
    """Each class x zone x region is within a draw of its share in every epoch; each tile comes round."""
    _, group, size = np.unique(tiles.table[list(COLUMNS)], axis=0, return_inverse=True, return_counts=True)
    assert (size.max() / size.min(), len(size)) > (100, 400)
    share = (size / size.sum()) ** (1 - power)
    expected = 10_000 * share / share.sum()
    sampler = LandCoverSampler(tiles, length=10_000, power=power, by=COLUMNS)
    seen = np.zeros(len(group), int)
    epochs = int(2.5 / sampler.expected_counts.min())
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        rows = sampler.global_rows()
        assert np.abs(np.bincount(group[rows], minlength=len(size)) - expected).max() < 1 + 1e-6
        seen += np.bincount(rows, minlength=len(group))
    assert seen.min() >= 1
    assert np.abs(np.bincount(group, seen) / epochs - expected).max() < 4 / epochs

"""Draws against counts made by hand; ranks against the whole list, also as 512 processes see it.

Tests of chance have a known chance to fail.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from datasets.tiny_files import Places
from terrafm_tg.datasets.tiles.outlines import BOX
from terrafm_tg.datasets.tiles.table import TIMES
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler

COLUMNS = ("land_cover", "climate", "region")


def make_tiles(land_cover, **columns) -> Places:
    """Four tiles in each cell."""
    count = len(land_cover)
    cells = pd.Categorical.from_codes(np.arange(count) // 4, [f"0U_{i}R" for i in range(-(-count // 4))])
    table = {"cell": cells, "quadrant": np.arange(count) % 4, "epsg": 32631, "has_s2l2a": True}
    table |= dict.fromkeys(TIMES, np.full(count, np.datetime64("2021-06-01", "us")))
    return Places(
        pd.DataFrame(table | dict.fromkeys(BOX, np.arange(count) / count) | {"land_cover": land_cover} | columns)
    )


@pytest.fixture(scope="module")
def world() -> Places:
    """Tiles whose classes, zones and regions are as uneven as on Earth, and go together in a cell."""
    rng = np.random.default_rng(0)
    groups = {
        name: np.repeat(rng.choice(size, 5000, p=(p := 0.7 ** np.arange(size)) / p.sum()), 4)
        for name, size in zip(COLUMNS, (11, 12, 5), strict=True)
    }
    return make_tiles(**groups)


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


def test_joint_groups_and_unknown_columns() -> None:
    climate, region = np.array([1, 1, 1, 2, 2, 2, 2, 2]), np.array([0, 0, 1, 0, 0, 0, 0, -1])
    tiles = make_tiles([0] * 8, climate=climate, region=region)
    sampler = LandCoverSampler(tiles, power=1, by=("land_cover", "climate", "region"), length=12)
    np.testing.assert_allclose(sampler.expected_counts, [1.5, 1.5, 3, 0.75, 0.75, 0.75, 0.75, 3])
    with pytest.raises(TerraFMError, match="no column 'soil'"):
        LandCoverSampler(tiles, by=("soil",))


def test_the_default_spreads_jointly_over_what_the_index_has(world) -> None:
    joint, default = LandCoverSampler(world, by=COLUMNS, length=500), LandCoverSampler(world, length=500)
    np.testing.assert_array_equal(default.global_rows(), joint.global_rows())
    assert default.by == list(COLUMNS)
    alone = LandCoverSampler(world, by="land_cover", length=500)
    assert not np.array_equal(alone.expected_counts, default.expected_counts)

    cover = np.arange(40) ** 2 % 7
    rows = [
        17,
        7,
        13,
        33,
        28,
        22,
        5,
        29,
        31,
        9,
        16,
        11,
        35,
        20,
        4,
        6,
        3,
        24,
        1,
        23,
        36,
        19,
        10,
        12,
        38,
        14,
        21,
        34,
        30,
        18,
    ]
    for unknown in ({}, dict.fromkeys(("climate", "region"), np.full(40, -1))):  # as drawn when land cover alone was it
        assert drawn_rows(LandCoverSampler(make_tiles(cover, **unknown), length=30, seed=5)).tolist() == rows


def test_missing_land_cover_is_said(caplog) -> None:
    tiles = Places(make_tiles([0] * 8).table.drop(columns="land_cover"))
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
    assert 0.015 < len(LandCoverSampler(make_tiles([11] * 40_000)).rows) / 40_000 < 0.025  # as in the paper


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
        ({"length": 0}, "`length` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"by": "cover"}, "no column 'cover'"),
        ({"rows": np.array([], int)}, "No tile is left"),
        ({"rows": np.arange(8, 16), "ocean_keep": 0}, "`ocean_keep=0` drops"),
        ({"rank": 0, "world_size": 17}, "17 processes cannot share 16 tiles"),
    ],
)
def test_wrong_settings(settings_, words) -> None:
    with pytest.raises(TerraFMError, match=words):
        len(LandCoverSampler(make_tiles([0] * 8 + [11] * 8), **{"ocean_keep": 1} | settings_))


@pytest.mark.parametrize("ranks", [1, 2, 7, 512])
def test_ranks_partition_the_list(world, ranks) -> None:
    whole = LandCoverSampler(world, length=20_003, by=COLUMNS)
    whole.set_epoch(3)
    parts = []
    for rank in range(ranks):
        sampler = LandCoverSampler(world, length=20_003, by=COLUMNS, rank=rank, world_size=ranks)
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
def test_shares_of_one_rank_of_many_within_sampling_error(world, rank) -> None:
    """Draws of 1 rank of 512, 400 of an epoch, over 80 seeds: chi-square against shares made by hand.

    Each p-value is uniform if a rank's draws are a random sample of the shares asked for; the smallest of 80 and their
    distribution may look as extreme as this once in a thousand times.
    """
    cover = world.table["land_cover"].to_numpy()
    wanted = (np.bincount(cover) / len(cover)) ** 0.5
    wanted /= wanted.sum()
    p_values = []
    for seed in range(80):
        sampler = LandCoverSampler(world, None, 512 * 400, 0.5, "land_cover", seed=seed, rank=rank, world_size=512)
        sampler.set_epoch(seed % 5)
        counts = np.bincount(cover[sampler.own_rows()], minlength=len(wanted))
        p_values.append(stats.chisquare(counts, 400 * wanted).pvalue)
        np.testing.assert_allclose(sampler.land_cover_share()[: len(wanted)], wanted, atol=1e-6)
    assert min(p_values) > 1e-3 / 80
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_no_group_and_no_tile_starves(world, power) -> None:
    """Each class x zone x region is within a draw of its share in every epoch; each tile comes round."""
    _, group, size = np.unique(world.table[list(COLUMNS)], axis=0, return_inverse=True, return_counts=True)
    group = group.ravel()  # NumPy 2.0 gives it two dimensions
    assert (size.max() / size.min(), len(size)) > (100, 400)
    share = (size / size.sum()) ** (1 - power)
    expected = 10_000 * share / share.sum()
    sampler = LandCoverSampler(world, length=10_000, power=power, by=COLUMNS)
    seen = np.zeros(len(group), int)
    epochs = int(2.5 / sampler.expected_counts.min())
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        rows = sampler.global_rows()
        assert np.abs(np.bincount(group[rows], minlength=len(size)) - expected).max() < 1 + 1e-6
        seen += np.bincount(rows, minlength=len(group))
    assert seen.min() >= 1
    assert np.abs(np.bincount(group, seen) / epochs - expected).max() < 4 / epochs

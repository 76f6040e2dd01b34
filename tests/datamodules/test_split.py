"""The split against geometry: boxes of held-out cells, widened by a cell, meet no training cell."""

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory_tiles import make_index, square
from shapely.affinity import translate

from terrafm_tg.datamodules import even_pick, split_blocks
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.errors import TerraFMError


def boxes(cells, margin=0.0) -> list[shapely.Polygon]:
    rows, cols = grid.parse(cells)
    lat, lon = grid.corners(rows, cols)
    high, wide = 180 / grid.ROWS, 360 / grid.cells_per_row(rows)
    return shapely.box(lon - margin * wide, lat - margin * high, lon + (1 + margin) * wide, lat + (1 + margin) * high)


@settings(max_examples=40, deadline=None)
@given(
    corner=st.tuples(st.integers(-900, 900), st.floats(-180, 180)),
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    holes=st.floats(0, 0.6),
    gap=st.integers(0, 2),
    block=st.integers(1, 4),
    share=st.floats(0.05, 0.4),
    seed=st.integers(0, 99),
)
def test_no_training_cell_near_a_held_out_one(corner, size, holes, gap, block, share, seed) -> None:
    """Anywhere on the globe, across the antimeridian too, for regions with holes."""
    row, east = np.mgrid[: size[0], : size[1]].reshape(2, -1)
    lat = (row + corner[0] + 0.5) * 180 / grid.ROWS
    lon = corner[1] + east * 0.1 / np.cos(np.radians(lat))
    names = np.unique(grid.names(*grid.cells_at(lat, lon)))
    names = names[np.random.default_rng(seed).random(len(names)) >= holes]
    index = pd.DataFrame({"cell": np.repeat(names, 4)})
    try:
        train, val = split_blocks(index, share, block, gap, seed)
    except TerraFMError:
        assume(False)  # nothing left to train on
    train_cells, val_cells = set(index["cell"].iloc[train]), set(index["cell"].iloc[val])
    assert len(train) == 4 * len(train_cells)
    assert len(val) == 4 * len(val_cells) > 0
    assert not train_cells & val_cells
    wide = shapely.union_all(boxes(val_cells, margin=gap - 1e-3))
    for turn in (-360, 0, 360):
        near = shapely.intersection(boxes(train_cells), translate(wide, turn))
        # A corner's sliver can be left where rows have cells of different width: the wider one counts.
        assert shapely.area(near).max() < 1e-9
    assert abs(len(val) - share * len(index)) <= max(4 * block * (block + 1), 4)


def test_gap_is_no_wider_than_asked() -> None:
    """A single held-out cell costs its eight neighbours, and no more, where columns are aligned."""
    index = make_index(*square(9))
    train, val = split_blocks(index, val_share=0.012, block=1, gap=1, seed=0)
    held_out = index["cell"].iloc[val].unique()
    assert len(held_out) == 1
    near = shapely.intersects(boxes(index["cell"]), boxes(held_out, margin=0.5)[0])
    np.testing.assert_array_equal(train, np.flatnonzero(~near))


def test_a_seed_is_a_split_and_no_share_none() -> None:
    index = make_index(*square(12))
    first, again, other = (split_blocks(index, 0.2, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    train, val = split_blocks(index, val_share=0)
    assert (len(train), len(val)) == (len(index), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_share": 0.5, "block": 4}, r"Holding out 50% of 9 cells in blocks of 4 x 4 .* leaves none to train on"),
        ({"val_share": 1.0}, "`val_share=1.0`"),
    ],
)
def test_wrong_settings(options, words) -> None:
    with pytest.raises(TerraFMError, match=words):
        split_blocks(make_index(np.repeat([0, 1, 2], 3), np.tile([40, 41, 42], 3)), **options)


def test_even_pick_balances_what_it_can() -> None:
    land_cover = np.array([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 17)
    rows = np.arange(100)
    picked = even_pick(land_cover, rows, 21, seed=0)
    assert np.bincount(land_cover[picked]).tolist() == [9, 9, 3]
    assert (np.diff(picked) > 0).all()
    np.testing.assert_array_equal(even_pick(land_cover, rows, None, 0), rows)
    assert len(even_pick(land_cover, rows, 1000, 0)) == 83
    assert len(even_pick(np.full(100, -1), rows, 10, 0)) == 10

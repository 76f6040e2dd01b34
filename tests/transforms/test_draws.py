import numpy as np
import pytest
from scipy import stats

from terrafm_tg.transforms.multicrop import CROP_DRAWS, draw_boxes, draw_modalities
from terrafm_tg.utils.random import keyed_uniform

RATIO = (3 / 4, 4 / 3)


def uniform(count, columns, stream="test"):
    return keyed_uniform(0, 0, np.arange(count), 0, columns, stream)


@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.05, 0.25), (1.0, 1.0), (0.3, 0.3)])
def test_boxes_lie_inside_and_have_the_drawn_area(scale):
    u = uniform(20_000, CROP_DRAWS)
    box, _ = draw_boxes(u, scale, RATIO)
    height, width = (np.abs(box[:, i + 1] - box[:, i]) for i in (0, 2))
    assert box.min() >= 0
    assert box.max() <= 1
    np.testing.assert_allclose(height * width, scale[0] + (scale[1] - scale[0]) * u[:, 0], rtol=1e-9)
    assert (width / height >= RATIO[0] - 1e-9).all()
    assert (width / height <= RATIO[1] + 1e-9).all()
    if scale[1] <= RATIO[0]:  # every ratio fits
        assert stats.kstest(np.log(width / height) / np.log(RATIO[1]) / 2 + 0.5, "uniform").pvalue > 1e-3


def test_orientations_are_equally_frequent_and_boxes_spread_evenly():
    box, turn = draw_boxes(uniform(20_000, CROP_DRAWS), (0.05, 0.25), RATIO)
    code = 4 * turn + 2 * (box[:, 0] > box[:, 1]) + (box[:, 2] > box[:, 3])
    assert stats.chisquare(np.bincount(code, minlength=8)).pvalue > 1e-3
    low, high = np.minimum(box[:, 0], box[:, 1]), np.maximum(box[:, 0], box[:, 1])
    assert stats.kstest(low / (1 - (high - low)), "uniform").pvalue > 1e-3


def count_sets(draws):
    return np.bincount(draws @ (4, 2, 1), minlength=8)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_sets_are_as_frequent_as_independent_draws_that_are_not_empty(probability):
    n = 20_000
    draws = draw_modalities(uniform(n, 1)[:, 0], np.ones((n, 3), bool), probability)
    coins = np.random.default_rng(0).random((40 * n, 3)) < probability
    expected = count_sets(coins[coins.any(1)])[1:]
    counts = count_sets(draws)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], expected / expected.sum() * n).pvalue > 1e-3


@pytest.mark.parametrize(
    ("available", "fuse", "sets"),
    [((0, 1, 1), True, [1, 2, 3]), ((0, 1, 1), False, [1, 2]), ((0, 1, 0), True, [2]), ((0, 1, 0), False, [2]),
     ((1, 1, 1), False, [1, 2, 4])],
)  # fmt: skip
def test_what_a_sample_lacks_is_not_drawn_and_without_fusion_one_alone(available, fuse, sets):
    n = 9_000
    counts = count_sets(draw_modalities(uniform(n, 1)[:, 0], np.tile(np.array(available, bool), (n, 1)), 0.5, fuse))
    assert counts[sets].sum() == n
    assert len(sets) == 1 or stats.chisquare(counts[sets]).pvalue > 1e-3


def test_probability_one_keeps_all():
    available = np.random.default_rng(0).random((500, 3)) < 0.6
    available = available[available.any(1)]
    np.testing.assert_array_equal(draw_modalities(uniform(len(available), 1)[:, 0], available, 1.0), available)

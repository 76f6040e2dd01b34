import numpy as np
import pytest
from scipy import stats

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.transforms.augment import NO_CHANGE, WAVELENGTHS, Augment
from terrafm_tg.transforms.multicrop import CROP_DRAWS, draw_boxes, draw_modalities
from terrafm_tg.utils.random import keyed_uniform


def draws(modality, n=4000):
    return keyed_uniform(0, 0, np.arange(n), 0, Augment.draws(modality), modality.name)


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=MODALITIES)
def test_nothing_changes_where_nothing_is_asked_for(modality):
    gain, offset, sigma = NO_CHANGE.change(modality, draws(modality))
    assert (gain == 1).all()
    assert (offset == 0).all()
    assert (sigma == 0).all()
    assert NO_CHANGE.blur_radius == 0


def test_optics_change_by_gain_and_a_haze_that_falls_with_wavelength():
    setting = Augment(probability=0.8, illumination=0.2, band_gain=0.05, haze=100)
    gain, offset, _ = setting.change(S2L2A, draws(S2L2A))
    changed = (gain != 1).all(1)
    assert abs(changed.mean() - 0.8) < 0.03
    assert (offset[~changed] == 0).all()
    log = np.log(gain[changed])
    assert np.abs(log).max() <= 0.25
    common = log.mean(1)
    assert common.std() > 4 * (log - common[:, None]).std()  # mostly the same in all bands
    share = offset[changed] / offset[changed][:, [S2L2A.bands.index("B02")]]
    expected = [(490 / WAVELENGTHS[band]) ** 2 for band in S2L2A.bands]
    np.testing.assert_allclose(share, np.broadcast_to(expected, share.shape))
    assert np.abs(offset[:, S2L2A.bands.index("B02")]).max() <= 100


def test_radar_shifts_in_decibels():
    gain, offset, _ = Augment(calibration=1.0, band_shift=0.5).change(S1RTC, draws(S1RTC))
    assert (gain == 1).all()
    assert 1 < np.abs(offset).max() <= 1.5
    assert np.abs(offset[:, 0] - offset[:, 1]).max() <= 1.0


def test_blur_is_as_frequent_and_as_wide_as_set():
    setting = Augment(blur_probability=0.3, blur_sigma=(0.5, 2.0))
    _, _, sigma = setting.change(S1RTC, draws(S1RTC))
    assert abs((sigma > 0).mean() - 0.3) < 0.03
    assert sigma[sigma > 0].min() >= 0.5
    assert sigma.max() <= 2.0
    assert setting.blur_radius == 5


@pytest.mark.parametrize(
    "setting", [{"probability": 1.5}, {"blur_probability": -0.1}, {"haze": -1.0}, {"blur_sigma": (2.0, 1.0)}]
)
def test_impossible_settings(setting):
    with pytest.raises(TerraFMError, match=f"`{next(iter(setting))}` is .*: (set|it must be)"):
        Augment(**setting)


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

import numpy as np
import pytest

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.transforms.augment import NO_CHANGE, WAVELENGTHS, Augment
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
    with pytest.raises(TerraFMError, match=f"`{next(iter(setting))}` is .*: set"):
        Augment(**setting)

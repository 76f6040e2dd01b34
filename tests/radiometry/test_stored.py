"""The offset of Sentinel-2's baseline 04.00; and radar as int16 hundredths of a decibel, within the step."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from terrafm_tg.datasets.tiles.pixels import to_ten_meters, valid_bands
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.band_statistics import band_statistics
from terrafm_tg.modalities import S1RTC
from terrafm_tg.radiometry import (
    NODATA,
    linear_power,
    offset_beside,
    offset_evidence,
    offsets_by_name,
    quantize,
    remove_offset,
)
from terrafm_tg.transforms import Augment, MultiCrop
from terrafm_tg.transforms.augment import NO_CHANGE

KEY = S1RTC.native_key(10)
#: Largest error of one stored pixel in dB: half a step, and float32's rounding.
HALF_STEP = 0.00501


@pytest.fixture
def scenes() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of two speckled tiles with gaps as linear power, and as hundredths of a decibel."""
    rng = np.random.default_rng(4)
    power = (10 ** rng.normal(-1.3, 0.4, (2, 2, 48, 48)) * rng.exponential(1, (2, 2, 48, 48))).astype(np.float32)
    power[0, :, 3:20, 5:30] = NODATA
    power[1, 1, 40, 40] = 0.0
    rows = torch.arange(2)
    batch = {"position": rows, "epoch": torch.zeros(2, dtype=torch.int64), "row": rows, "sample_idx_s1rtc": rows}
    return batch | {KEY: torch.from_numpy(power)}, batch | {KEY: torch.from_numpy(quantize(power))}


def test_quantized_to_half_a_step_over_the_whole_range() -> None:
    db = np.linspace(-320, 320, 100_001)
    steps = quantize(10 ** (db / 10))
    assert steps.dtype == np.int16
    assert abs(steps / 100 - db).max() < HALF_STEP
    back = 10 * torch.log10(linear_power(torch.from_numpy(steps)).double())
    assert abs(back.numpy() - steps / 100).max() < 1e-4


def test_quantized_twice_is_refused_and_once_more_changes_nothing() -> None:
    every = torch.arange(-32768, 32768).to(torch.int16)
    np.testing.assert_array_equal(quantize(linear_power(every).numpy())[1:], every[1:])
    with pytest.raises(TerraFMError, match=r"got int16: is it quantized already\?"):
        quantize(every.numpy())


@pytest.mark.parametrize("missing", [NODATA, 0.0, -1.0, np.nan, np.inf])
def test_missing_stays_missing(missing) -> None:
    power = np.array([[[0.1, missing]], [[missing, 0.1]]], dtype=np.float32)
    steps = quantize(power)
    assert steps.tolist() == [[[-1000, NODATA]], [[NODATA, -1000]]]
    image = to_ten_meters({10: torch.from_numpy(steps)}, S1RTC)
    expected = torch.tensor([[[-10.0, torch.nan]], [[torch.nan, -10.0]]])
    torch.testing.assert_close(image, expected, equal_nan=True)


def test_linear_power_is_passed_on() -> None:
    power = torch.rand(3, 4)
    assert linear_power(power) is power


def test_bands_are_valid_by_their_type() -> None:
    group = np.full((3, 40, 40), NODATA, np.int16)
    group[0] = -2300  # as linear power it would be missing
    group[2, 17, 3] = -2300  # one pixel, between those that are looked at first
    assert valid_bands(group).tolist() == [True, False, True]
    power = np.where(group == NODATA, NODATA, 0.005).astype(np.float32)
    assert valid_bands(power).tolist() == [True, False, True]


def test_ten_metre_image(scenes) -> None:
    power, steps = (to_ten_meters({10: batch[KEY][0]}, S1RTC) for batch in scenes)
    assert torch.equal(power.isnan(), steps.isnan())
    assert power.isnan().any()
    assert (power - steps).abs().nan_to_num().max() < HALF_STEP


@pytest.mark.parametrize("augment", [NO_CHANGE, Augment(probability=1.0, blur_probability=1.0)])
def test_views_agree_within_the_quantization(scenes, augment) -> None:
    """A mean of powers that are each off by at most half a step is off by no more, in dB."""
    crop = MultiCrop(["s1rtc"], global_size=32, local_size=16, local_crops=3, augment=augment, seed=5)
    views = [crop(batch, crop.plan(batch)) for batch in scenes]
    tolerance = HALF_STEP / (4 * min(S1RTC.std)) + 1e-6  # in units of the encoder's input
    for name in views[0]:
        power, steps = (group[name].images["s1rtc"] for group in views)
        assert torch.equal(views[0][name].sample_idx["s1rtc"], views[1][name].sample_idx["s1rtc"])
        assert 0 < (power - steps).abs().max() < tolerance


def test_band_statistics(scenes) -> None:
    power, steps = (band_statistics(batch, S1RTC) for batch in scenes)
    torch.testing.assert_close(power, steps, atol=HALF_STEP, rtol=0)


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419", 1000),
        ("S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608", 0),
        ("S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543", -1),
        ("S2B_MSIL1C_20230101T000000_N0509", 1000),
        ("S2A_MSIL2A_20220120T085611_N0301_R007_T33NZA_20220706T153419", 0),
        ("282D_485L_3_3", -1),
        (None, -1),
    ],
)
def test_by_name(name, offset):
    got = offsets_by_name(pd.Series([name], dtype="str"))
    assert got.dtype == np.int16
    assert got.tolist() == [offset]


@given(arrays(np.uint16, 20), st.sampled_from([0, 1000]))
def test_removal_keeps_what_is_missing(pixels, offset):
    expected = [0 if v == 0 else max(int(v) - offset, 1) for v in pixels]
    got = remove_offset(pixels, offset)
    assert got.dtype == np.uint16
    assert got.tolist() == (pixels.tolist() if offset == 0 else expected)


def test_by_pixels_says_when_it_cannot_tell():
    def found(**bands: np.ndarray) -> int:
        numbers = {band: np.where(values > 0, values, np.nan) for band, values in bands.items()}
        return offset_evidence(numbers).offset

    bright = np.full((30, 30), 6000, np.uint16)
    assert found(B02=bright, B12=bright) == -1
    assert found(B02=0 * bright) == -1
    dark = bright.copy()
    dark[:3] = 400
    assert found(B02=bright, B12=dark) == 0
    assert found(B02=bright, B10=np.full((30, 30), 1012, np.uint16)) == 1000


@pytest.mark.parametrize(("held", "found"), [(0, 0), (1000, 1000), (500, -1)])
def test_by_the_other_level(held, found):
    surface = np.random.default_rng(0).integers(100, 4000, (2, 40, 40))
    l2a = dict(zip(("B11", "B12"), surface + held + 80, strict=True))
    l1c = dict(zip(("B11", "B12"), surface, strict=True))
    assert offset_beside(l2a, l1c) == found
    assert offset_beside({}, l1c) == -1

"""Every input that the encoder cannot read is refused in one sentence that says what to do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder
from terrafm_tg.models.inputs import input_channels, resolve_input, select_columns
from terrafm_tg.transforms import SensorBatch

ALL = select_columns()


def image(channels: int, height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, height, width)


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (image(5), {}, r"5 channels are neither s1rtc \(2\) nor s2l2a \(12\)"),
        (image(3), {}, "terrafm_<size>_rgb"),
        (image(3), {"modality": "s2l1c"}, r"s2l1c has 12 channels here \(B01, .*\), got 3: name yours with `bands=`"),
        (image(12), {"modality": "s3"}, "Modality 's3' is unknown"),
        (image(2, 100, 100), {}, "100x100 px cannot be cut into 16-px patches.* 96x96"),
        (image(2, 8, 16), {}, "8x16 px"),
        (image(2)[0], {}, r"must be \(batch, channels, height, width\), got \(2, 32, 48\)"),
        (image(2).int(), {}, r"must be float, got torch.int32: normalize"),
        (np.zeros((2, 2, 32, 32)), {}, "must be a float tensor, got ndarray"),
        ({"s1rtc": [1.0]}, {}, "type of s1rtc must be a float tensor, got list"),
        ({}, {}, "got none"),
        ({"image_s1rtc": image(2)}, {}, "keys must be modalities .* got image_s1rtc"),
        ({"s1rtc": image(2), "label": torch.ones(2)}, {}, "got s1rtc, label: rename or drop"),
        ({"s1rtc": image(2)}, {"modality": "s2l2a"}, "names a bare tensor"),
        ({"s1rtc": image(2), "s2l2a": image(2)}, {}, "s2l2a has 12 channels"),
        ({"s1rtc": image(2), "s2l2a": image(12, 48, 48)}, {}, "differ in size .32x48 and 48x48 px."),
        ({"s1rtc": image(2), "s2l2a": image(12, batch=3)}, {}, "differ in their number of samples"),
        ({"s1rtc": image(2)}, {"sample_idx": {"s1rtc": torch.arange(2)}}, "size None"),
        ({"s1rtc": image(2)}, {"sample_idx": {"s2l2a": torch.arange(2)}, "size": 2}, "sample_idx for s2l2a"),
        (
            {"s1rtc": image(2)},
            {"sample_idx": {"s1rtc": torch.arange(3)}, "size": 2},
            r"each of the 2 images, got shape \(3,\)",
        ),
    ],
)
def test_refused(x: Tensor | dict[str, Tensor], kwargs: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message) as error:
        resolve_input(x, ALL, **kwargs)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"modality": "optical"}, "Modality 'optical' is unknown"),
        ({"modality": "s2l1c", "bands": ["B02", "B13"]}, "Band 'B13' is not one of s2l1c's bands"),
        ({"modality": "s1rtc", "bands": ["VV", "HH"]}, "Band 'HH' is not one of s1rtc's bands .VV, VH."),
        ({"modality": "s2l1c", "bands": ["B10"]}, "at least one band of s2l1c, and each once, got none"),
        ({"modality": "s2l1c", "bands": []}, "at least one band"),
        ({"modality": "s2l1c", "bands": ["B2", "B02"]}, "each once, got B02, B02"),
        ({"bands": {"s3": ["B02"]}}, "Modality 's3' is unknown"),
        ({"bands": {"s1rtc": ["B02"]}}, "Band 'B02' is not one of s1rtc's bands"),
        ({"modality": "s2l1c", "in_chans": 13}, "s2l1c has 12 channels here .*, got 13: name yours with `bands=`"),
        ({"bands": ["B02", "VV"]}, "No modality has the bands B02, VV"),
        ({"bands": ["B02", "B02"]}, "No modality has the bands B02, B02"),
        ({"in_chans": 5}, "5 channels are neither"),
        ({"in_chans": 3}, "terrafm_<size>_rgb"),
        ({"modality": "s1rtc", "in_chans": 12}, r"s1rtc has 2 channels here \(VV, VH\), got 12"),
        ({"patch_size": 8}, "patches are 16 px wide, got 8"),
    ],
)
def test_refused_by_the_builder(kwargs: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message) as error:
        build_encoder("terrafm_tiny", depth=1, **kwargs)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_unknown_model() -> None:
    with pytest.raises(TerraFMError, match=r"'terrafm_huge' is unknown: use one of terrafm_nano, .* _eurosat\."):
        build_encoder("terrafm_huge")


def test_dicts_come_in_one_order() -> None:
    checked = resolve_input({"s2l2a": image(12), "s1rtc": image(2)}, ALL)
    assert list(checked.images) == ["s1rtc", "s2l2a"]
    assert checked.shape == (2, 14, 32, 48)
    assert resolve_input(checked, ALL) is checked
    assert isinstance(checked, SensorBatch)


def test_bands_apply_to_each_modality_that_has_them() -> None:
    columns = select_columns(bands=("b4", "B03", "B2"))
    assert columns == {"s1rtc": (0, 1), "s2l1c": (3, 2, 1), "s2l2a": (3, 2, 1)}
    assert select_columns("s1rtc", "VH")["s1rtc"] == (1,)


def test_two_chosen_optical_bands_are_not_radar() -> None:
    columns = select_columns(bands=("B08", "B04"))
    assert list(resolve_input(image(2), columns).images) == ["s2l2a"]
    assert input_channels(columns, None) == 2
    assert list(resolve_input(image(2), ALL).images) == ["s1rtc"]

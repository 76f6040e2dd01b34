"""The encoder in segmentation_models_pytorch: which features it gives, and one date or two."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder
from terrafm_tg.models.smp_encoder import TerraFMEncoder, feature_blocks


@pytest.fixture(scope="module")
def encoder() -> TerraFMEncoder:
    torch.manual_seed(0)
    return smp.encoders.get_encoder("terrafm_tiny_s1rtc", in_channels=2).eval()


def test_blocks_of_the_paper() -> None:
    assert feature_blocks(12) == [3, 5, 7, 11]
    assert feature_blocks(24) == [7, 11, 15, 23]
    assert feature_blocks(2) == [0, 0, 0, 1]


@torch.no_grad()
def test_features_are_the_normed_blocks_at_four_scales(encoder: TerraFMEncoder) -> None:
    x = torch.randn(2, 2, 48, 80)
    tokens, outputs = encoder._pos_embed(encoder.patch_embed(encoder.sensor_batch(x, "s1rtc"))), []
    for block in encoder.blocks:
        tokens = block(tokens)
        outputs.append(encoder.norm(tokens)[:, 1:].unflatten(1, (3, 5)).permute(0, 3, 1, 2))
    image, empty, *maps = encoder(x)
    assert image is x
    assert empty.shape == (2, 0, 24, 40)
    expected = [
        F.interpolate(outputs[3], (12, 20), mode="bilinear"),
        F.interpolate(outputs[5], (6, 10), mode="bilinear"),
        outputs[7],
        F.max_pool2d(F.pad(outputs[11], (0, 1, 0, 1), value=-torch.inf), 2),
    ]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [f.shape[1] for f in (image, empty, *maps)] == encoder.out_channels


@torch.no_grad()
def test_two_dates_share_the_encoder(encoder: TerraFMEncoder) -> None:
    both = TerraFMEncoder("terrafm_tiny_s1rtc").eval()
    both.load_state_dict(encoder.state_dict())
    both.set_in_channels(4)
    before, after = torch.randn(2, 2, 32, 32), torch.randn(2, 2, 32, 32)
    joint = both(torch.cat([before, after], dim=1))
    assert both.out_channels == [4, 0] + [2 * 192] * 4
    for ours, first, second in zip(joint, encoder(before), encoder(after), strict=True):
        torch.testing.assert_close(ours, torch.cat([first, second], dim=1))


def test_the_number_of_channels_says_the_sensor_and_the_dates() -> None:
    encoder = TerraFMEncoder("terrafm_tiny")
    for channels, dates in ((2, 1), (4, 2), (12, 1), (24, 2)):
        encoder.set_in_channels(channels)
        assert (encoder.dates, encoder.out_channels[0]) == (dates, channels)
    for channels in (3, 6, 36):
        with pytest.raises(TerraFMError, match=f"{channels} channels are neither"):
            encoder.set_in_channels(channels)
    with pytest.raises(TerraFMError, match="s2l1c has 12 channels here"):
        smp.Unet("terrafm_tiny_s2l1c", encoder_weights=None, in_channels=3)


def test_state_dict_is_the_encoders(encoder: TerraFMEncoder) -> None:
    plain = build_encoder("terrafm_tiny")
    assert list(encoder.state_dict()) == list(plain.state_dict())
    with pytest.raises(TerraFMError, match="no TerraFM encoder in these weights: run `terrafm export`"):
        encoder.load_state_dict({})
    with pytest.raises(RuntimeError, match="Missing key"):
        encoder.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "norm.weight"})


def test_what_smp_cannot_have() -> None:
    with pytest.raises(TerraFMError, match="output stride of 16, as deeplabv3\\+ asks for"):
        smp.DeepLabV3Plus("terrafm_tiny", encoder_weights=None, in_channels=2)
    with pytest.raises(TerraFMError, match="5 stages, got 4"):
        smp.Unet("terrafm_tiny", encoder_weights=None, in_channels=2, encoder_depth=4)

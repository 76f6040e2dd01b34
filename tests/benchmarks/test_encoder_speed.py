"""The plain implementation computes the same numbers, and the table says what was measured."""

import pytest
import torch

from benchmarks.encoder import PlainEncoder, encoder_speed, forward_flops, measure
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT, build_encoder, reparameterize
from terrafm_tg.utils.devices import has_bf16_units


@pytest.fixture(scope="module")
def model() -> TerraFMViT:
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", depth=2, modality="s2l2a").eval()


@pytest.mark.parametrize(("modality", "channels"), [("s1rtc", 2), ("s2l2a", 12)])
@pytest.mark.parametrize("px", [224, 48])
def test_the_same_numbers(model: TerraFMViT, modality: str, channels: int, px: int) -> None:
    x = torch.randn(2, channels, px, px)
    torch.testing.assert_close(PlainEncoder(model, modality)(x), model(x, modality=modality), atol=1e-5, rtol=1e-4)


def test_every_variant_is_measured(model: TerraFMViT) -> None:
    rows = encoder_speed(model, size=32, batch=2, rounds=3)
    precisions = ("fp32", "bf16") if has_bf16_units("cpu") else ("fp32",)
    assert [row.variant for row in rows] == [f"{name}, {p}" for p in precisions for name in ("plain", "encoder")]
    assert rows[0].ratio == 1
    for row in rows:
        assert row.seconds > 0
        assert row.images_per_second == pytest.approx(2 / row.seconds)
    assert model.patch_embed.projection.proj1.weight.ndim == 2  # not folded


def test_operations_are_the_arithmetics(model: TerraFMViT) -> None:
    """Folding leaves a convolution, one map to d, and blocks of 12 d^2 per token and attention."""
    patches, d = 4, 192
    stem = patches * (12 * 256 * 3 * d + 3 * d * d)
    block = (patches + 1) * 12 * d * d + 2 * (patches + 1) ** 2 * d
    assert forward_flops(reparameterize(model), "s2l2a", 32) == 2 * (stem + 2 * block)
    assert forward_flops(model, "s2l2a", 32) == 2 * (stem + 2 * block + 2 * patches * (3 * d) ** 2)


def test_the_table_has_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    measure("terrafm_tiny", size=32, batch=1, rounds=1, device="cpu")
    printed = capsys.readouterr().out
    half = "encoder, bf16" if has_bf16_units("cpu") else "bf16 is not measured"
    for part in ("plain, fp32", half, "x plain", "1.00", "TFLOP/s"):
        assert part in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "terrafm_huge"}, "'terrafm_huge' is unknown"),
        ({"modality": "sar"}, "'sar' is unknown"),
        ({"device": "abacus"}, "no device 'abacus' here"),
        ({"size": 8}, "8x8 px cannot be cut"),
        ({"rounds": 0}, "0 rounds"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, object], said: str) -> None:
    with pytest.raises(TerraFMError, match=said):
        measure(**({"model": "terrafm_tiny", "device": "cpu"} | options))

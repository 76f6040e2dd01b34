"""Stems, and any mix of modalities in a batch."""

import copy

import pytest
import torch
from torch import Tensor, nn

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import TerraFMViT, build_encoder

PX = 32


@pytest.fixture
def model() -> TerraFMViT:
    """Two blocks, with a fusion that is far from the mean."""
    torch.manual_seed(0)
    model = build_encoder("terrafm_tiny", depth=2).eval()
    with torch.no_grad():
        for parameter in model.patch_embed.fusion.parameters():
            parameter.normal_(std=0.1)
    return model


def images(batch: int = 4) -> dict[str, Tensor]:
    return {m.name: torch.randn(batch, len(m.bands), PX, PX) for m in MODALITIES.values()}


def plain_stem(model: TerraFMViT, modality: str, x: Tensor, conv: bool) -> Tensor:
    """The published stem: convolution, modality vector, projection."""
    embed, stem = model.patch_embed, MODALITIES[modality].stem
    layer = embed.get_submodule(f"conv2d_{stem}")
    vector = embed.get_parameter(f"{stem}_embed")
    if conv:
        z = nn.functional.conv2d(x, layer.weight, layer.bias, stride=16).permute(0, 2, 3, 1) + vector
    else:
        z = layer(x, vector[0])
    projection = embed.projection
    return projection.proj3(projection.proj2(projection.norm_input(projection.proj1(z))))


@pytest.mark.parametrize("modality", MODALITIES)
def test_one_modality_is_the_plain_stem(model: TerraFMViT, modality: str) -> None:
    x = images()[modality]
    checked = model.sensor_batch(x, modality)
    assert torch.equal(model.patch_embed(checked), plain_stem(model, modality, x, conv=False))
    torch.testing.assert_close(model.patch_embed(checked), plain_stem(model, modality, x, conv=True))
    assert torch.equal(model({modality: x}), model(x, modality=modality))
    assert torch.equal(
        model({modality: x}, sample_idx={modality: torch.arange(4)}, size=4), model(x, modality=modality)
    )


def test_mixed_samples_equal_each_sample_alone(model: TerraFMViT) -> None:
    x = images(5)
    rows = {"s1rtc": [4, 0, 2], "s2l1c": [0, 1], "s2l2a": [3, 2, 0]}
    taken = {name: x[name][r] for name, r in rows.items()}
    mixed = model(taken, sample_idx={name: torch.tensor(r) for name, r in rows.items()}, size=5)
    for sample in range(5):
        own = {name: x[name][[sample]] for name, r in rows.items() if sample in r}
        torch.testing.assert_close(mixed[[sample]], model(own))


@pytest.mark.parametrize("present", [["s1rtc"], ["s2l2a"], ["s1rtc", "s2l1c"]])
def test_every_parameter_has_a_gradient(model: TerraFMViT, present: list[str]) -> None:
    x = {name: image for name, image in images().items() if name in present}
    model.train()
    model(x).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    absent = {m.stem for m in MODALITIES.values() if m.name not in present}
    for name, parameter in model.patch_embed.named_parameters():
        unused = any(name.startswith((f"conv2d_{stem}.", f"{stem}_embed")) for stem in absent)
        assert (parameter.grad.abs().max() == 0) == (unused or (len(present) == 1 and "fusion" in name)), name


def test_the_zero_changes_nothing(model: TerraFMViT) -> None:
    x = images()["s1rtc"]
    assert torch.equal(copy.deepcopy(model).train()(x), model(x))


def test_bf16_autocast_trains(model: TerraFMViT) -> None:
    x = images()
    rows = {"s1rtc": torch.tensor([0, 1]), "s2l1c": torch.tensor([1, 2]), "s2l2a": torch.tensor([3])}
    taken = {name: x[name][: len(r)] for name, r in rows.items()}
    model.train()
    exact = model(taken, sample_idx=rows, size=4)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(taken, sample_idx=rows, size=4)
        half.float().square().mean().backward()
    assert torch.nn.functional.cosine_similarity(half.float(), exact).min() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_whitened_stems_weigh_detail_as_much_as_brightness() -> None:
    """Against (S + I)^-1/2 by one large decomposition, on patches drawn with that covariance S."""
    torch.manual_seed(0)
    embed = build_encoder("terrafm_tiny", depth=1).patch_embed
    before = embed.stem("s1rtc").weight.detach().double().flatten(1)
    embed.stem("s1rtc").whiten_()
    after = embed.stem("s1rtc").weight.detach().double().flatten(1)
    place = torch.arange(16.0, dtype=torch.float64)
    pixels = 0.95 ** (place - place[:, None]).abs()
    bands = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    covariance = torch.kron(bands, torch.kron(pixels, pixels))
    values, vectors = torch.linalg.eigh(covariance)
    whitening = vectors @ torch.diag((values + 1).rsqrt()) @ vectors.T
    whitening *= (covariance.trace() / (whitening @ covariance @ whitening).trace()).sqrt()
    torch.testing.assert_close(after, before @ whitening, rtol=1e-4, atol=1e-6)
    share = [(k @ covariance @ k.T) for k in (before, after)]
    ratio = [(c.trace() ** 2 / c.square().sum()).item() for c in share]
    assert ratio[1] > 8 * ratio[0]
    embed.init_weights(whiten=True)  # a patch of the training mean still gives the sensor's vector alone
    for name in MODALITIES:
        mean = torch.full((1, len(MODALITIES[name].bands), 16, 16), 0.5)
        assert embed.stem(name)(mean).abs().max() < 1e-4

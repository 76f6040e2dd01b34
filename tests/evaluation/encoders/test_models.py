"""Each kind of model gives what it gives by itself, with any weights, and is known by them."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from data.tiny_bench import S2, TinyBench, batch_of, encoder, tiny_data
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError
from terrafm_tg.modalities import S1RTC, S2L2A
from terrafm_tg.models import build_encoder
from terrafm_tg.models.smp_encoder import feature_blocks
from terrafm_tg.transforms import Normalize

RGB = ("red", "green", "blue")


@pytest.fixture
def both(tmp_path: Path) -> TinyBench:
    return tiny_data(tmp_path, {"s1rtc": S1RTC.bands, "s2l2a": S2L2A.bands})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two blocks."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(build_encoder("terrafm_nano", depth=2).state_dict(), path)
    return path


def test_terrafm_fuses_what_is_there(both: TinyBench, weights: Path) -> None:
    batch = batch_of(both)
    images = {k.removeprefix("image_"): v for k, v in Normalize()(batch).items() if k.startswith("image_")}
    model = build_encoder("terrafm_nano", weights).eval()
    ours = encoder(both, weights=str(weights))
    with torch.inference_mode():
        tokens = model.forward_features(images)
        found = ours.embed(batch)
        torch.testing.assert_close(found["token"], tokens[:, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["mean"], tokens[:, 1:].mean(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.patches(batch).flatten(2).mT, tokens[:, 1:], rtol=1e-3, atol=1e-4)
        levels = model.forward_intermediates(images, indices=feature_blocks(2), norm=True, intermediates_only=True)
        for one, other in zip(ours.pyramid_inputs(batch), levels, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        alone = encoder(both, weights=str(weights), sensors=["s1rtc"]).embed(batch)["token"]
        torch.testing.assert_close(alone, model(images["s1rtc"], modality="s1rtc"), rtol=1e-3, atol=1e-4)
        assert (alone - found["token"]).abs().max() > 1e-2


def test_the_other_stem_gives_another_embedding(both: TinyBench, weights: Path) -> None:
    settings = {"weights": str(weights), "sensors": ["s2l2a"]}
    batch, own, other = batch_of(both), encoder(both, **settings), encoder(both, stem="s2l1c", **settings)
    assert list(other.readers) == ["s2l1c"]
    with torch.inference_mode():
        assert (own.embed(batch)["token"] - other.embed(batch)["token"]).abs().max() > 1e-2


def test_the_identity_is_of_weights_and_settings_not_of_names(both: TinyBench, weights: Path) -> None:
    own = encoder(both, weights=str(weights)).identity
    assert encoder(both, weights=str(weights), name="ours", pooling="mean", seed=5).identity == own
    changes = {"weights": None, "sensors": ["s2l2a"], "stem": "s2l1c", "size": 16, "normalization": "dataset"}
    changes |= {"channels": ["B02", "B03", "VV"]}
    others = [encoder(both, **({"weights": str(weights)} | {key: x})).identity for key, x in changes.items()]
    assert len({own, *others}) == 1 + len(changes)


def test_random_weights_are_of_the_seed_alone(both: TinyBench) -> None:
    before = torch.random.get_rng_state()
    first = encoder(both, seed=1).identity
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(9)
    assert encoder(both, seed=1).identity == first != encoder(both, seed=2).identity


@pytest.mark.parametrize("model", ["timm/vit_tiny_patch16_224", "timm/resnet18"])
def test_timm(tmp_path: Path, model: str) -> None:
    data = tiny_data(tmp_path, {"rgb": RGB, "s1rtc": S1RTC.bands})
    ours, batch = encoder(data, model), batch_of(data)
    x = ours.prepare(batch)["image"]
    with torch.inference_mode():
        found = ours.embed(batch)
        torch.testing.assert_close(found["token"], ours.backbone.model(x))  # without classes, its embedding
        maps = ours.patches(batch)
        pooled = found["mean" if "vit" in model else "token"]
        torch.testing.assert_close(maps.mean((2, 3)), pooled, rtol=1e-3, atol=1e-4)
        assert len(ours.pyramid_inputs(batch)) == 4
    assert ours.trainable() is ours.backbone


def test_timm_adapts_a_file_to_any_number_of_bands(tmp_path: Path, both: TinyBench) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    path = tmp_path / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    rgb = encoder(both, "timm/resnet18", weights=str(path)).backbone.model
    torch.testing.assert_close(rgb.conv1.weight, model.conv1.weight)
    every = encoder(both, "timm/resnet18", weights=str(path), channels="all")
    assert [c.band for c in every.readers["image"].channels] == list(S2L2A.bands)
    torch.testing.assert_close(every.backbone.model.conv1.weight, adapt_input_conv(12, model.conv1.weight))


def test_pixel_statistics(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s1rtc": S1RTC.bands, "s2l2a": S2[1:4]}, count=12)
    ours, batch = encoder(data, "pixel-statistics", size=64), batch_of(data)
    found = ours.embed(batch)
    assert list(found) == ["token"]
    assert found["token"].shape == (12, 2 * 5) == (12, ours.dim)
    x = torch.cat([batch["image_s1rtc"], batch["image_s2l2a"]], dim=1)
    mean = torch.cat([data.mean["s1rtc"], data.mean["s2l2a"]])
    std = torch.cat([data.std["s1rtc"], data.std["s2l2a"]])
    deviation, level = torch.std_mean(x, dim=(2, 3), correction=0)
    expected = torch.cat([(level - mean) / std, deviation / std], dim=1)
    torch.testing.assert_close(found["token"], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedTaskError, match="nothing of it can be trained"):
        ours.trainable()


def test_pixels_of_a_mask_are_the_patches(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"rgb": RGB}, kind="segmentation")
    ours, batch = encoder(data, "pixel-statistics"), batch_of(data)
    maps, x = ours.patches(batch), ours.prepare(batch)["image"]
    assert maps.shape == (4, 3 * 256, 2, 2) == (4, ours.dim, 2, 2)
    assert torch.equal(maps[1, 256:512, 1, 0], x[1, 1, 16:, :16].flatten())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "terrafm_bas"}, "Model 'terrafm_bas' is unknown: use one of terrafm_nano, .* timm/NAME"),
        ({"model": "timm/resnet19"}, "timm has no model 'resnet19': use one of"),
        ({"model": "torchgeo/resnet19"}, "TorchGeo has no model 'resnet19': use one of"),
        ({"model": "torchgeo/resnet18", "weights": "ALL"}, "has no weights 'ALL': use one of LANDSAT_TM_TOA"),
        ({"model": "torchgeo/dofa_small_patch16_224", "weights": "default"}, "leave `weights` out"),
        ({"model": "torchgeo/presto"}, "cannot read tiny-multiclass: it takes time series of single pixels"),
        ({"model": "terrafm_nano", "weights": "nothing.pth"}, "There is no checkpoint file nothing.pth"),
        ({"model": "timm/resnet18", "weights": "nothing.pth"}, "no file nothing.pth of weights for timm/resnet18"),
        ({"model": "terrafm_nano", "channels": ["X"]}, "s1rtc, s2l2a has none of the bands X"),
    ],
)
def test_wrong_settings_are_one_sentence(both: TinyBench, settings: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message) as caught:
        encoder(both, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting", [{"stem": "s2"}, {"pooling": "max"}, {"normalization": "x"}, {"absent": "x"}, {"size": -1}]
)
def test_a_specification_names_its_wrong_setting(setting: dict) -> None:
    with pytest.raises(TerraFMError, match=f"`{next(iter(setting))}` of model 'terrafm_nano' is"):
        ModelSpec("terrafm_nano", **setting)

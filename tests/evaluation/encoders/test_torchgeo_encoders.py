"""TorchGeo's models: bands and normalisation as each weight states them, outputs as each model gives them."""

from pathlib import Path

import pytest
import torch
from torchgeo.models import ResNet18_Weights, get_model, get_model_weights, list_models
from torchvision.transforms.v2 import Normalize

from data.tiny_bench import S2, batch_of, encoder, tiny_data
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import UnsupportedTaskError
from terrafm_tg.evaluation.encoders.torchgeo_inputs import ssl4eo_moments, weight_channels
from terrafm_tg.evaluation.encoders.torchgeo_models import ADAPTERS, UNSUPPORTED
from terrafm_tg.modalities import S1RTC, S2L2A


def test_every_registered_model_is_adapted_or_said_to_be_of_another_kind() -> None:
    for name in list_models():
        if not name.startswith("terrafm"):
            assert name.startswith((*ADAPTERS, *UNSUPPORTED)), name


def test_every_weight_with_bands_gives_channels() -> None:
    count = 0
    for name in list_models():
        if name.startswith(("resnet", "vit_", "swin_", "tilenet", "earthloc", "scalemae", "deo")):
            for weight in get_model_weights(name).__members__.values():
                channels = weight_channels(weight)
                assert len(channels) == weight.meta["in_chans"]
                assert all(channel.scale > 0 for channel in channels)
                count += 1
    assert count > 60


def test_units_and_statistics_of_some_weights() -> None:
    def first(model: str, name: str) -> tuple:
        channel = weight_channels(getattr(get_model_weights(model), name))[0]
        return channel.band, channel.unit, round(channel.offset, 3), round(channel.scale, 3)

    assert first("resnet50", "SENTINEL2_ALL_MOCO") == ("B01", "DN", 0, 10000)
    assert first("resnet50", "SENTINEL1_ALL_MOCO") == ("VV", "dB", -12.59, 5.26)
    assert first("resnet50", "FMOW_RGB_GASSL") == ("B04", "8-bit", 123.675, 58.395)
    assert first("resnet50", "SENTINEL2_MI_MS_SATLAS") == ("B04", "8-bit", 0, 255)
    assert first("resnet50", "LANDSAT_TM_TOA_MOCO") == ("B02", "8-bit", 0, 255)
    assert first("swin_t", "CITYSCAPES_SEMSEG") == ("B04", "8-bit", 123.675, 58.395)
    assert first("deo_base", "DEO_SWIN")[1] == "8-bit"
    moments = ssl4eo_moments()
    assert moments["B8A"] == (2581.0, 1345.9)
    assert moments["VH"] == (-20.26, 5.91)
    assert len(moments) == 15


def test_published_weights_from_the_hub_cache(tmp_path: Path, hub: Path) -> None:
    """Bands in the weight's order whatever the dataset's, normalised by the weight's own transforms."""
    weight = ResNet18_Weights.SENTINEL2_ALL_MOCO
    torch.manual_seed(0)
    model = get_model("resnet18", in_chans=13)
    torch.save(model.state_dict(), hub / Path(weight.url).name)
    order = (3, 12, 0, 7, 1, 11, 2, 10, 4, 9, 5, 8, 6)
    data = tiny_data(tmp_path, {"s2l1c": tuple(S2[i] for i in order)})
    batch = batch_of(data)
    ours = encoder(data, "torchgeo/resnet18", weights="ResNet18_Weights.SENTINEL2_ALL_MOCO")
    (normalize,) = (step for step in weight.transforms if isinstance(step, Normalize))
    expected = torch.empty_like(batch["image_s2l1c"])
    expected[:, order] = batch["image_s2l1c"]
    torch.testing.assert_close(ours.prepare(batch)["image"], normalize(expected.clone()))
    with torch.inference_mode():
        found = ours.embed(batch)["token"]
        model.reset_classifier(0)
        torch.testing.assert_close(found, model.eval()(normalize(expected.clone())))


def test_a_damaged_file_in_the_hub_cache_is_one_sentence(tmp_path: Path, hub: Path) -> None:
    place = hub / Path(ResNet18_Weights.SENTINEL2_ALL_MOCO.url).name
    data = tiny_data(tmp_path, {"s2l1c": S2})
    for content in (b"", b"PK\x03\x04 and then nothing", b"an HTML page"):
        place.write_bytes(content)
        with pytest.raises(TerraFMError, match=f"their file is damaged .* to {place}") as caught:
            encoder(data, "torchgeo/resnet18", weights="SENTINEL2_ALL_MOCO")
        assert "\n" not in str(caught.value)


def test_dofa_is_told_the_wavelengths(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s1rtc": S1RTC.bands, "s2l2a": ("B08", "B02")}, input_size=224)
    for sensor, waves in (("s2l2a", [0.842, 0.49]), ("s1rtc", [3.75, 3.75])):
        ours = encoder(data, "torchgeo/dofa_small_patch16_224", sensors=[sensor])
        batch = batch_of(data)
        batch = {key: x[:1] for key, x in batch.items()}
        with torch.inference_mode():
            own = ours.backbone.model(ours.prepare(batch)["image"], waves)
            found = ours.embed(batch)
        torch.testing.assert_close(found["token"], own)


def test_positions_follow_the_size(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": ("B08", "B02")})
    with torch.inference_mode():
        for model in ("dofa_small_patch16_224", "vit_small_patch16_224"):
            ours = encoder(data, f"torchgeo/{model}", size=48)
            assert ours.patches(batch_of(data)).shape == (4, 384, 3, 3)
            assert [x.shape for x in ours.pyramid_inputs(batch_of(data))] == [(4, 384, 3, 3)] * 4


def test_stages_are_taken_as_they_are(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": ("B08", "B02")}, input_size=64)
    ours, batch = encoder(data, "torchgeo/swin_v2_t"), batch_of(data)
    with torch.inference_mode():
        found = ours.embed(batch)
        own = ours.backbone.model(ours.prepare(batch)["image"])  # its head is an identity
        torch.testing.assert_close(found["token"], own, rtol=1e-4, atol=1e-5)
        shapes = [tuple(x.shape[1:]) for x in ours.pyramid_inputs(batch)]
    assert shapes == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]


@pytest.mark.parametrize(
    ("model", "weights", "sensors", "message"),
    [
        ("resnet50", "SENTINEL1_ALL_MOCO", {"s2l2a": S2L2A.bands}, "reads s1rtc, and the task has s2l2a"),
        ("resnet50", "SENTINEL2_ALL_MOCO", {"rgb": ("red", "green", "blue")}, "of which the task has 3"),
        ("resnet18", "LANDSAT_OLI_SR_MOCO", {"s2l2a": S2L2A.bands}, "reads landsat8, and the task has s2l2a"),
        ("swin_v2_b", "SENTINEL1_MI_SATLAS", {"s1rtc": S1RTC.bands}, "wants s1rtc in units of its own"),
        ("swin_v2_b", "LANDSAT_MI_SATLAS", {"landsat8": ("red", "nir")}, "wants landsat8 in units of its own"),
        ("resnet50", "SENTINEL2_ALL_NDVI_SECO_ECO", {"s2l2a": S2L2A.bands}, "wants NDVI, which is no band"),
        ("croma_base", None, {"rgb": ("red", "green", "blue")}, "of which the task has 3"),
    ],
)
def test_what_a_model_cannot_read(tmp_path: Path, model: str, weights: str, sensors: dict, message: str):
    data = tiny_data(tmp_path, sensors)
    with pytest.raises(UnsupportedTaskError, match=message):
        encoder(data, f"torchgeo/{model}", weights=weights)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("model", "sensors", "width"),
    [
        ("croma_base", ("s1rtc",), 768),
        ("croma_base", ("s2l2a",), 768),
        ("croma_base", ("s1rtc", "s2l2a"), 768),
        ("panopticon_vitb14", ("s1rtc", "s2l2a"), 768),
        ("copernicusfm_base", ("s1rtc",), 768),
        ("copernicusfm_base", ("s2l2a",), 768),
        ("scalemae_large_patch16", ("s2l2a",), 1024),
        ("earthloc", ("s2l2a",), 4096),
        ("deo_base", ("s2l2a",), 1024),
        ("tilenet", ("s2l2a",), 512),
    ],
)
def test_large_models(tmp_path: Path, model: str, sensors: tuple[str, ...], width: int) -> None:
    """Each runs, and its embedding is its own output where it has one."""
    data = tiny_data(tmp_path, {"s1rtc": S1RTC.bands, "s2l2a": S2L2A.bands}, count=2)
    ours, batch = encoder(data, f"torchgeo/{model}", sensors=sensors, size=32), batch_of(data)
    net, images = ours.backbone.model, ours.prepare(batch)
    with torch.inference_mode():
        found = ours.embed(batch)
        assert found["token"].shape == (2, width)
        assert ours.patches(batch).isfinite().all()
        if model == "croma_base":
            out = net(x_sar=images.get("sar"), x_optical=images.get("optical"))
            key = {1: {"s1rtc": "sar", "s2l2a": "optical"}.get(sensors[0]), 2: "joint"}[len(sensors)]
            torch.testing.assert_close(found["token"], out[f"{key}_GAP"])
            torch.testing.assert_close(found["mean"], out[f"{key}_encodings"].mean(1))
            assert all(x.min() >= 0 and x.max() <= 1 for x in images.values())
        elif model == "panopticon_vitb14":
            numbers = torch.tensor([[-1, -2, 440, 490, 560, 665, 705, 740, 783, 842, 860, 940, 1610, 2190.0]])
            own = net.model.forward_features({"imgs": images["image"], "chn_ids": numbers.repeat(2, 1)})
            torch.testing.assert_close(found["token"], own[:, 0])
        elif model in ("earthloc", "scalemae_large_patch16"):
            torch.testing.assert_close(found["token"], net(images["image"]).reshape(2, -1)[:, :width])
        if model not in ("earthloc",):
            assert len(ours.pyramid_inputs(batch)) == 4

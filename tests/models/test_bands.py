"""Files as they come: 13 bands with B10, 10 bands without the 60 m ones, RGB alone, and sensors that differ."""

import pytest
import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L1C, S2L2A
from terrafm_tg.models import TerraFMViT, build_encoder, reparameterize
from terrafm_tg.transforms import Normalize

PX = 32
#: The order of EuroSAT's files, B8A last.
THIRTEEN = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
RGB = ("B04", "B03", "B02")


@pytest.fixture(scope="module")
def full() -> TerraFMViT:
    torch.manual_seed(0)
    model = build_encoder("terrafm_tiny", depth=2).eval()
    with torch.no_grad():
        for parameter in model.patch_embed.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def stored(modality: str, batch: int = 2) -> Tensor:
    """Images (batch, C, PX, PX) of all bands of the stem, in the modality's unit."""
    sensor = MODALITIES[modality]
    mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
    return mean + std * torch.randn(batch, len(sensor.bands), PX, PX)


def with_bands(full: TerraFMViT, **kwargs: object) -> TerraFMViT:
    model = build_encoder("terrafm_tiny", depth=2, **kwargs).eval()
    model.load_state_dict(full.state_dict())
    return model


@pytest.mark.parametrize(
    ("modality", "bands"),
    [
        ("s2l1c", THIRTEEN),
        ("s2l1c", TEN),
        ("s2l2a", RGB),
        ("s2l2a", ("b8a", "B10", "B2")),
        ("s1rtc", ("VH",)),
        ("s1rtc", ("VH", "VV")),
        ("s2l1c", ("B12",)),
        ("s2l1c", S2L1C.bands[::-1]),
        ("s2l2a", S2L2A.bands[::-1]),
    ],
)
@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
def test_equals_the_full_stem_fed_with_training_means(
    full: TerraFMViT, modality: str, bands: tuple[str, ...], fold: bool
) -> None:
    """In the files' own unit: absent bands at their training mean, then the same normalisation for both."""
    sensor = MODALITIES[modality]
    complete = stored(modality)
    own = [sensor.stem_columns([band])[0] if band != "B10" else None for band in bands]
    for column in set(range(len(sensor.bands))) - set(own):
        complete[:, column] = sensor.mean[column]
    cirrus = torch.full((2, PX, PX), torch.nan)  # whatever it holds, it is not read
    x = torch.stack([cirrus if i is None else complete[:, i] for i in own], dim=1)
    model = with_bands(full, modality=modality, bands=bands)
    model = reparameterize(model) if fold else model
    expected = full(Normalize(modality)(complete), modality=modality)
    torch.testing.assert_close(model(Normalize(modality, bands)(x)), expected, atol=1e-4 if fold else 1e-5, rtol=1e-4)


def test_each_sensor_with_bands_of_its_own(full: TerraFMViT) -> None:
    """Folded or not: folding changes neither the model, nor the numbers by more than rounding."""
    bands = {"s1rtc": ("VH",), "s2l2a": RGB}
    model = with_bands(full, bands=bands)
    folded = reparameterize(model)
    assert all(torch.equal(tensor, full.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    x = {"s1rtc": torch.rand(2, 1, PX, 48), "s2l2a": torch.rand(2, 3, PX, 48)}
    complete = {name: torch.full((2, len(MODALITIES[name].bands), PX, 48), 0.5) for name in x}
    for name, image in x.items():
        complete[name][:, MODALITIES[name].band_indices(bands[name])] = image
    torch.testing.assert_close(model(x), full(complete))
    torch.testing.assert_close(folded(x), full(complete), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(x["s1rtc"], modality="s1rtc"), full(complete["s1rtc"]))
    with pytest.raises(TerraFMError, match=r"s1rtc has 1 channel here \(VH\), got 2"):
        model(complete)


def test_a_folded_encoder_and_a_checkpoint_do_not_mix(full: TerraFMViT) -> None:
    folded = reparameterize(full)
    with pytest.raises(TerraFMError, match="folded already"):
        reparameterize(folded)
    with pytest.raises(TerraFMError, match="The model is folded and the checkpoint is not"):
        folded.load_state_dict(full.state_dict(), strict=False)
    with pytest.raises(TerraFMError, match="The checkpoint is folded and the model is not"):
        full.load_state_dict(folded.state_dict(), strict=False)
    folded.load_state_dict(reparameterize(full).state_dict())


def test_normalisation_and_encoder_take_one_list() -> None:
    normalize = Normalize("s2l1c", THIRTEEN)
    means = dict(zip(S2L1C.bands, S2L1C.mean, strict=True)) | {"B10": 7.0}
    x = torch.tensor([means[band] for band in THIRTEEN])[:, None, None].expand(-1, PX, PX)
    torch.testing.assert_close(normalize(x), torch.full((13, PX, PX), 0.5))
    model = build_encoder("terrafm_tiny", depth=1, modality="s2l1c", bands=("B01", "B10"))
    with pytest.raises(TerraFMError, match=r"s2l1c has 2 channels here \(B01, B10\), got 3"):
        model(x[None, :3])


def test_what_timm_reads_follows_the_bands() -> None:
    config = resolve_model_data_config(build_encoder("terrafm_tiny", depth=1, modality="s2l1c", bands=THIRTEEN))
    assert config["input_size"] == (13, 224, 224)
    expected = Normalize("s2l1c", THIRTEEN)(torch.full((13, 1, 1), 1234.0)).flatten()
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    kept = [band != "B10" for band in THIRTEEN]
    torch.testing.assert_close(((1234.0 - mean) / std)[kept], expected[kept])
    radar = resolve_model_data_config(build_encoder("terrafm_tiny", depth=1, in_chans=2))
    assert radar["mean"] == pytest.approx([-12.7572 - 2 * 5.8491, -19.6423 - 2 * 5.8516])


@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
def test_fused_without_fusion_parameters_is_the_mean_before_the_norm(full: TerraFMViT, fold: bool) -> None:
    """As the published checkpoint, which holds none; written out with the published names in float64."""
    state = {name: p for name, p in full.state_dict().items() if ".fusion." not in name}
    model = build_encoder("terrafm_tiny", depth=2).eval()
    model.load_state_dict(state)
    model = reparameterize(model) if fold else model
    x = {name: torch.randn(2, len(m.bands), PX, PX) for name, m in MODALITIES.items()}
    p = {name.removeprefix("patch_embed."): tensor.double() for name, tensor in state.items()}
    values = []
    for name, image in x.items():
        stem = MODALITIES[name].stem
        z = torch.nn.functional.conv2d(image.double(), p[f"conv2d_{stem}.weight"], p[f"conv2d_{stem}.bias"], stride=16)
        values.append((z.permute(0, 2, 3, 1) + p[f"{stem}_embed"]) @ p["projection.proj1.weight"].T)
    mean = torch.stack(values).mean(0)
    deviation = (mean.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = (mean - mean.mean(-1, keepdim=True)) / deviation
    z = normed * p["projection.norm_input.weight"] + p["projection.norm_input.bias"]
    for layer in ("projection.proj2", "projection.proj3"):
        z = z @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]
    torch.testing.assert_close(model.patch_embed(model.sensor_batch(x)).double(), z, atol=1e-5, rtol=1e-4)

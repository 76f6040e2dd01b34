"""Segmentation learns from fused sensors; change detection trains what it sees."""

from pathlib import Path

import pytest
import torch
from finetune_runs import images, loader, samples
from tiny_terrafm import trainer
from torch import Tensor
from torchgeo.datasets import EuroSAT
from torchgeo.models import get_model
from torchgeo.tasks import MAE, Classification
from torchgeo.tasks.utils import load_state_dict

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder, export_encoder
from terrafm_tg.models.sizes import split_name
from terrafm_tg.tasks import FineTuneChangeDetection, FineTuneSegmentation


def scenes(count: int, seed: int) -> dict[str, Tensor]:
    """Four classes, radar bright or dark and optics bright or dark, in squares of 16 px; a strip is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.randint(2, (count, 2, 2, 2), generator=generator)
    bright = bright.repeat_interleave(16, 2).repeat_interleave(16, 3)
    mask = 2 * bright[:, 0] + bright[:, 1]
    mask[:, :3] = 255
    return {
        "image_s1rtc": images(2, count, generator) + (bright[:, :1] - 0.5),
        "image_s2l1c": images(12, count, generator) + (bright[:, 1:] - 0.5),
        "mask": mask,
    }


def test_it_learns_what_both_sensors_together_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"lr": 2e-3, "warmup_epochs": 2, "drop_path": 0.0, "label_smoothing": 0.1, "ignore_index": 255}
    module = FineTuneSegmentation("terrafm_tiny", depth=2, num_classes=4, decoder="linear", **settings)
    run = trainer(tmp_path, max_epochs=15)
    run.fit(module, loader(samples(48, **scenes(48, seed=1)), 12, shuffle=True))
    run.test(module, loader(samples(32, **scenes(32, seed=2)), 16), verbose=False)
    assert float(run.callback_metrics["test_AverageJaccardIndex"]) > 0.8  # 16-px logits, enlarged
    predicted = run.predict(module, loader(samples(2, **scenes(2, seed=3))))[0]["probabilities"]
    assert predicted.shape == (2, 4, 32, 32)
    assert torch.allclose(predicted.sum(1), torch.ones(2, 32, 32))


@pytest.mark.parametrize("backbone", ["terrafm_tiny", "terrafm_tiny_s1rtc"])
@pytest.mark.parametrize("model", ["upernet", "fcsiamdiff", "changevit"])
def test_change_detection_trains_what_its_images_reach(model: str, backbone: str) -> None:
    """The rest is frozen, or weight decay would shrink it; DistributedDataParallel wants a gradient of what is not."""
    module = FineTuneChangeDetection(model=model, backbone=backbone, in_channels=2)
    module.log = lambda *args, **kwargs: None  # there is no trainer
    data = {"image": torch.rand(2, 2, 2, 32, 32), "mask": torch.randint(2, (2, 1, 32, 32))}
    module.training_step(data, 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert len(frozen) == 9
    assert all("s2_l" in name or "fusion" in name for name in frozen)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "published"])
def test_load_state_dict(published: dict[str, Tensor], ours: bool) -> None:
    state = build_encoder("terrafm_tiny").state_dict() if ours else published
    model = build_encoder("terrafm_tiny_rgb", num_classes=3)
    missing, unexpected = load_state_dict(model, dict(state))
    assert set(missing) == {"head.weight", "head.bias"}
    assert unexpected == []
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())


def test_another_depth_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = build_encoder("terrafm_tiny", depth=2).state_dict()
    torch.save({"state_dict": {f"teacher.{name}": p for name, p in state.items()}}, tmp_path / "last.ckpt")
    path = export_encoder(tmp_path / "last.ckpt", tmp_path / "two")[1]
    assert len(get_model("terrafm_tiny", weights=path).blocks) == 2
    with pytest.raises(TerraFMError, match="has 2 blocks and the model 12: build it with depth=2"):
        Classification(model="terrafm_tiny", weights=str(path), in_channels=2, num_classes=2)
    torch.save(build_encoder("terrafm_nano").state_dict(), tmp_path / "nano.pth")
    path = export_encoder(tmp_path / "nano.pth", tmp_path / "nano")[1]
    with pytest.raises(TerraFMError, match=r"has 4 blocks and the model 12: build terrafm_nano\."):
        Classification(model="terrafm_tiny", weights=str(path), in_channels=2, num_classes=2)
    task = Classification(model="terrafm_nano", weights=str(path), in_channels=2, num_classes=2)
    assert len(task.model.blocks) == 4
    with pytest.raises(TerraFMError, match="192 wide and the model 384"):
        Classification(model="terrafm_small", weights=str(checkpoint), in_channels=2, num_classes=2)


@pytest.mark.parametrize(
    ("name", "channels", "named"),
    [
        ("terrafm_tiny_s2l1c", 13, r"_s2l1c_13 \(s2l1c B01, .*, B8A, B09, B10, .*_eurosat \(s2l1c B01, .*, B12, B8A\)"),
        ("terrafm_tiny", 10, r"_s2l2a_10 \(s2l2a B02, .*_s2l1c_10 \(s2l1c B02, "),
        ("terrafm_tiny", 4, r"_rgbn \(s2l2a B04, B03, B02, B08\)"),
    ],
)
def test_other_counts_of_channels_name_what_reads_them(name: str, channels: int, named: str) -> None:
    with pytest.raises(TerraFMError, match=f"{channels}.*terrafm_<size>{named}"):
        Classification(model=name, in_channels=channels, num_classes=2)


def test_eurosats_bands_are_those_of_torchgeo() -> None:
    assert split_name("terrafm_base_eurosat")[1]["bands"] == EuroSAT.all_band_names


def test_masked_autoencoder() -> None:
    """TorchGeo's task reads the stem as ``patch_embed.proj``, and hands the patch embedding a bare tensor."""
    task = MAE("terrafm_nano_s1rtc", in_channels=2, decoder_dim=48, decoder_num_heads=3)
    task.log = lambda *args, **kwargs: None  # there is no trainer
    task.training_step({"image": torch.rand(2, 2, 224, 224)}, 0).backward()
    stem = task.backbone.vit.patch_embed.proj
    assert stem.weight.shape == (576, 2, 16, 16)
    assert stem.weight.grad.abs().sum() > 0

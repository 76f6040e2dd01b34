"""Segmentation learns from fused sensors; change detection trains what it sees."""

from pathlib import Path

import pytest
import torch
from finetune_runs import images, loader, samples
from tiny_terrafm import trainer
from torch import Tensor

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

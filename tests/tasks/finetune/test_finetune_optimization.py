"""Learning rates by depth and by step, against formulas written out here."""

import math
from pathlib import Path

import pytest
import torch
from finetune_runs import Rates, images, loader, samples
from lightning.pytorch.callbacks import LambdaCallback
from tiny_terrafm import trainer
from torch import nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder
from terrafm_tg.tasks import FineTuneClassification
from terrafm_tg.tasks.finetune.optimization import encoder_of, layer_decay_groups, warmup_cosine

DEPTH, DECAY = 4, 0.6


def expected_scale(name: str) -> float:
    """`DECAY` to the power of the number of blocks above, and once more for what feeds the first block."""
    if name.startswith("encoder.blocks."):
        return DECAY ** (DEPTH - int(name.split(".")[2]))
    if name.startswith(("encoder.patch_embed.", "encoder.cls_token", "encoder.pos_embed")):
        return DECAY ** (DEPTH + 1)
    return DECAY if name.startswith("encoder.norm.") else 1.0


def test_each_parameter_has_the_rate_of_its_depth() -> None:
    encoder = build_encoder("terrafm_tiny", depth=DEPTH, num_classes=3)
    model = nn.ModuleDict({"decoder": nn.Linear(3, 5), "encoder": encoder})
    groups = layer_decay_groups(model, weight_decay=0.05, layer_decay=DECAY)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        scale, decay = found[id(parameter)]
        assert scale == pytest.approx(expected_scale(name)), name
        free = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed", "_embed", "fusion.queries"))
        assert decay == (0.0 if free else 0.05), name
    assert {round(expected_scale(n), 6) for n, _ in model.named_parameters()} == {
        1.0, 0.6, 0.36, 0.216, 0.1296, 0.07776,
    }  # fmt: skip


def expected_rate(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / (steps - warmup - 1)
    return end + (peak - end) * (1 + math.cos(math.pi * share)) / 2


def test_warm_up_and_cosine() -> None:
    rates = [warmup_cosine(step, steps=40, peak=2e-3, end=1e-5, warmup=8) for step in range(41)]
    assert rates[:40] == pytest.approx([expected_rate(step, 40, 8, 2e-3, 1e-5) for step in range(40)])
    assert rates[7] == 2e-3
    assert rates[39:] == pytest.approx([1e-5, 1e-5])


def test_a_run_steps_with_those_rates(tmp_path: Path) -> None:
    data = samples(8, image=images(2, 8), label=[i % 2 for i in range(8)])
    task = FineTuneClassification(
        "terrafm_tiny", modalities=["s1rtc"], num_classes=2, depth=2, lr=1e-3, min_lr=1e-5, warmup_epochs=1,
        layer_decay=0.5,
    )  # fmt: skip
    rates = Rates()
    trainer(tmp_path, rates, max_epochs=5, accumulate_grad_batches=1).fit(task, loader(data))
    assert len(rates.steps) == 10
    assert {scale for scale, _ in rates.steps[0]} == {1.0, 0.5, 0.25, 0.125}
    for step, groups in enumerate(rates.steps):
        for scale, rate in groups:
            assert rate == pytest.approx(scale * expected_rate(step, 10, 2, 1e-3, 1e-5)), step


def test_a_resumed_run_goes_on_in_its_schedule(tmp_path: Path) -> None:
    def task() -> FineTuneClassification:
        return FineTuneClassification("terrafm_tiny", modalities=["s1rtc"], num_classes=2, depth=1, warmup_epochs=2)

    data = loader(samples(8, image=images(2, 8), label=[0, 1] * 4))
    whole, first, second = Rates(), Rates(), Rates()
    trainer(tmp_path, whole, max_epochs=4).fit(task(), data)
    after_one = LambdaCallback(on_train_epoch_end=lambda run, task: setattr(run, "should_stop", True))
    stopped = trainer(tmp_path, first, after_one, max_epochs=4)
    stopped.fit(task(), data)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer(tmp_path, second, max_epochs=4).fit(task(), data, ckpt_path=tmp_path / "stopped.ckpt")
    assert len(first.steps) == 2
    assert first.steps + second.steps == whole.steps


def test_stems_of_other_sensors_and_a_frozen_encoder_stay_as_they_are(tmp_path: Path) -> None:
    data = samples(4, image=images(2, 4), label=[0, 1, 0, 1])
    for frozen in (False, True):
        task = FineTuneClassification(
            "terrafm_tiny", modalities=["s1rtc"], num_classes=2, depth=2, freeze_backbone=frozen, lr=0.1,
            warmup_epochs=0, weight_decay=0.5, drop_path=0.5,
        )  # fmt: skip
        before = {name: p.clone() for name, p in task.model.state_dict().items()}
        trainer(tmp_path).fit(task, loader(data))
        changed = {name for name, p in task.model.state_dict().items() if not torch.equal(p, before[name])}
        assert "head.weight" in changed
        assert not any("s2_l" in name or "fusion" in name for name in changed)
        assert frozen == (changed == {"head.weight", "head.bias"})
        task.train()
        assert task.model.blocks[1].training is not frozen


def test_impossible_settings_are_one_sentence(tmp_path: Path) -> None:
    data = loader(samples(4, image=images(2, 4), label=[0, 1, 0, 1]))
    for settings, said in (({"layer_decay": 1.5}, "`layer_decay` is 1.5"), ({"min_lr": 1.0}, "`min_lr` is 1.0")):
        how = {"modalities": ["s1rtc"], "num_classes": 2, "depth": 1} | settings
        with pytest.raises(TerraFMError, match=said):
            trainer(tmp_path).fit(FineTuneClassification("terrafm_tiny", **how), data)
    with pytest.raises(TerraFMError, match="Linear holds no TerraFM encoder"):
        encoder_of(nn.Linear(2, 2))

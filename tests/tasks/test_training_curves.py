"""Trains by the fast and by the plain step on the simulated world.

Same settings, same draws, same first weights for each seed; only the order of floating-point operations differs, which
grows from step to step.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from plain_step import PlainTerraFM
from tiny_terrafm import grouped, trainer

from terrafm_tg.callbacks import KNNMonitor
from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.tasks import TerraFM

KINDS = {"plain": PlainTerraFM, "fast": TerraFM}
SEEDS = (0, 1, 2)
MODEL = grouped({
    "model": "terrafm_tiny", "depth": 4, "global_size": 64, "local_size": 32, "local_crops": 4,
    "global_scale": (0.4, 1.0), "local_scale": (0.15, 0.5), "prototypes": 2048, "drop_path": 0.1, "lr": 5e-4,
    "lr_batch": None, "warmup_epochs": 1, "teacher_temp": (0.04, 0.04), "temp_warmup_epochs": 0,
    "teacher_momentum": (0.99, 1.0), "koleo": 0.05,
})  # fmt: skip
DATA = {
    "cells": 240,
    "cell_size": 264,
    "batch_size": 32,
    "val_share": 0.25,
    "val_bank": 400,
    "num_workers": 0,
    "cache": True,
}


class Losses(Callback):
    """Keeps the losses of the last epoch."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].detach())


def train(kind: str, seed: int, root: Path, folder: Path) -> dict[str, Any]:
    """The last epoch's mean loss and k-NN accuracies of one run."""
    torch.manual_seed(seed)
    kept = Losses()
    options = {"precision": "bf16-mixed", "num_sanity_val_steps": 0, "callbacks": [KNNMonitor(), kept]}
    run = trainer(folder, max_epochs=8, **options)
    run.fit(KINDS[kind](**MODEL, seed=seed), SimulatedDataModule(root=root, **DATA))
    accuracies = {k: v.item() for k, v in run.callback_metrics.items() if k.startswith("val/knn")}
    return {"kind": kind, "loss": torch.stack(kept.losses).mean().item()} | accuracies


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_fast_and_plain_training_end_alike(tmp_path: Path) -> None:
    """Three seeds each: loss and every k-NN accuracy, within noise."""
    runs = pd.DataFrame([train(kind, seed, tmp_path / "world", tmp_path) for seed in SEEDS for kind in KINDS])
    mean, variance = runs.groupby("kind").mean(), runs.groupby("kind").var().mean()
    difference = (mean.loc["fast"] - mean.loc["plain"]).abs()
    assert difference["loss"] <= 0.02 * mean.loc["plain", "loss"]
    # Two runs of one kind differ by seed; a difference of two kinds within a seed has the noise of both.
    noise = (2.5 * (2 * variance / len(SEEDS)) ** 0.5).clip(lower=0.04)  # of 240 queries and three seeds
    assert (difference <= noise).drop("loss").all(), runs

"""Trains by the fast and by the plain step on the simulated world: `python tests/tasks/curves.py FOLDER`.

Same settings, same draws, same first weights for each seed; only the order of floating-point operations differs, which
grows from step to step. Writes the curves of loss and k-NN accuracy (curves.csv, curves.png) and prints a table.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from plain_step import PlainTerraFM
from rich.console import Console
from rich.table import Table
from tiny_terrafm import grouped

from terrafm_tg.callbacks import KNNMonitor
from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.tasks import TerraFM

KINDS = {"plain": PlainTerraFM, "fast": TerraFM}
SEEDS, EPOCHS = (0, 1, 2), 8
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
LOSS = "loss"


class Curve(Callback):
    """Keeps the loss of each step and what the k-NN monitor logs."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer, pl_module) -> None:
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/knn")}
        losses, self.losses = self.losses, []
        for name, value in (logged | {LOSS: torch.stack(losses).mean().item()}).items():
            self.rows.append({"step": trainer.global_step, "what": name.removeprefix("val/"), "value": value})


def train(kind: str, seed: int, root: Path, folder: Path) -> pd.DataFrame:
    """One run."""
    torch.manual_seed(seed)
    task, curve = KINDS[kind](**MODEL, seed=seed), Curve()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    run = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=EPOCHS, num_sanity_val_steps=0, default_root_dir=folder,
        use_distributed_sampler=False, callbacks=[KNNMonitor(), curve], **quiet,
    )  # fmt: skip
    run.fit(task, SimulatedDataModule(root=root, **DATA))
    return pd.DataFrame(curve.rows).assign(kind=kind, seed=seed)


def curves(folder: Path) -> pd.DataFrame:
    """All runs: step, what, value, kind, seed."""
    parts = [train(kind, seed, folder / "world", folder) for seed in SEEDS for kind in KINDS]
    return pd.concat(parts, ignore_index=True)


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """At the end of training, for each quantity: means, difference fast - plain and its standard error over seeds."""
    last = runs[runs.step == runs.step.max()].pivot(index=["what", "seed"], columns="kind", values="value")
    last["difference"] = last.fast - last.plain
    table = last.groupby("what")[["plain", "fast", "difference"]].mean()
    # Two runs of one kind differ by seed; a difference of two kinds within a seed has the noise of both.
    spread = last.groupby("what")[["plain", "fast"]].std().pow(2).mean(axis=1).pow(0.5)
    return table.assign(seeds=spread, error=spread * (2 / len(SEEDS)) ** 0.5)


def draw(runs: pd.DataFrame) -> Figure:
    """Loss and the k-NN accuracies, a line for each run."""
    names = [LOSS, "knn_s1rtc", "knn_fused", "knn_s1rtc_to_s2l2a"]
    titles = ["loss", "k-NN S1", "k-NN fused", "k-NN S1 → L2A"]
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    for axis, name, title in zip(figure.subplots(1, 4), names, titles, strict=True):
        for (kind, seed), run in runs[runs.what == name].groupby(["kind", "seed"]):
            style = {"plain": ("0.55", "-"), "fast": ("#0a6fb8", "--")}[kind]
            axis.plot(run.step, run.value, style[1], color=style[0], label=kind if seed == 0 else None, marker=".")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def main(folder: Path) -> pd.DataFrame:
    """Trains, writes and prints."""
    warnings.filterwarnings("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    runs = curves(folder)
    runs.to_csv(folder / "curves.csv", index=False)
    draw(runs).savefig(folder / "curves.png", dpi=110)
    result = compare(runs)
    rows = Table(title=f"The end of {runs.step.max()} steps, mean over {len(SEEDS)} seeds")
    for column in ("", "plain", "fast", "fast - plain", "standard error", "between seeds"):
        rows.add_column(column, justify="right" if column else "left")
    for what, row in result.iterrows():
        rows.add_row(
            str(what).replace("_to_", " → ").replace("_", " "),
            *(f"{row[c]:.3f}" for c in ("plain", "fast", "difference", "error", "seeds")),
        )
    Console(width=100).print(rows)
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))

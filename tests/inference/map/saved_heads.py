"""Checkpoints of small heads, as Lightning writes them."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

#: A checkpoint of the smallest encoder.
NANO = "terrafm_nano"


def save(task: LightningModule, path: Path) -> Path:
    """Writes the task's checkpoint as a run would."""
    run = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run.strategy.connect(task)
    run.save_checkpoint(path, weights_only=False)
    return path


def forget_places(task: LightningModule) -> LightningModule:
    """Makes the encoder's tokens independent of where they lie, and of each other."""
    for name, parameter in task.named_parameters():
        if name.endswith(("pos_embed", "attn.proj.weight", "attn.proj.bias")):
            nn.init.zeros_(parameter)
    return task


def seeded() -> None:
    """The same random weights each time."""
    torch.manual_seed(0)

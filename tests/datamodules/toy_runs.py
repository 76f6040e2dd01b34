"""A toy training that writes down each batch, to be run, killed and resumed in processes of its own."""

import json
import os
import signal
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from memory_tiles import MemoryDataModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


class Toy(LightningModule):
    """One weight per land-cover class; writes (epoch, positions, rows, loss) of each batch to a file."""

    def __init__(self, record: Path, kill_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 1.2, 12))
        self.record, self.kill_at = record, kill_at

    def training_step(self, batch, batch_idx):
        pixels = batch["image_s2l2a_10m"].float().mean(dim=(1, 2, 3)) / 100
        loss = ((self.weight[batch["land_cover"]] * pixels).sin() ** 2).mean()
        line = [self.current_epoch, batch["position"].tolist(), batch["row"].tolist(), loss.item().hex()]
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.trainer.fit_loop.total_batch_idx == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("rows", batch["row"].float().sum(), batch_size=len(batch["row"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def run(folder: Path, name: str, settings: dict, resume: bool = False, kill_at: int | None = None) -> None:
    """Train as ``settings`` say, into ``folder/name.jsonl``; checkpoints go to ``folder``."""
    data = MemoryDataModule(edge=4, batch_size=5, epoch_length=31, val_bank=8, val_queries=4, **settings["data"])
    checkpoint = ModelCheckpoint(folder, "{step}", save_top_k=-1, **settings["checkpoint"])
    validation = {} if "val_check_interval" in settings["trainer"] else {"limit_val_batches": 0}
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=[checkpoint], **QUIET, **validation, **settings["trainer"]
    )
    newest = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    known = {"ckpt_path": newest, "weights_only": True} if resume else {}
    trainer.fit(Toy(folder / f"{name}.jsonl", kill_at), data, **known)


def run_on_two_processes(folder: Path) -> None:
    """The few lines of a script: nothing but ``strategy`` says that there are two processes."""
    ddp = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork", "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, **ddp, **QUIET)
    data = MemoryDataModule(edge=8, batch_size=3, epoch_length=31, val_bank=9, val_queries=5, num_workers=1)
    trainer.fit(RankedToy(folder / "train"), data)


class RankedToy(Toy):
    """Each process writes files of its own; the buffer makes ``ddp`` synchronise each forward pass."""

    def __init__(self, record: Path) -> None:
        super().__init__(record)
        self.register_buffer("centre", torch.zeros(3))

    def on_fit_start(self) -> None:
        self.record = self.record.with_suffix(f".{self.global_rank}")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        with self.record.with_name(f"val{dataloader_idx}.{self.global_rank}").open("a") as file:
            file.write(json.dumps([self.current_epoch, batch["position"].tolist(), batch["row"].tolist()]) + "\n")

"""Trains in processes of its own: killed runs against one that was not.

Started by test_terrafm_processes.py as a script, so that processes can be forked before any thread exists.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_terrafm import tiny_terrafm, trainer

from terrafm_tg.callbacks import AtomicCheckpointIO
from terrafm_tg.datamodules import SimulatedDataModule


class LossFile(Callback):
    """Appends every loss to a file at once, and may kill the process, as a scheduler would."""

    def __init__(self, path: Path, kill_after: int | None = None) -> None:
        self.path, self.kill_after = path, kill_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        key = f"{trainer.current_epoch}/{batch_idx}"
        with self.path.open("a") as file:
            file.write(json.dumps([key, outputs["loss"].item().hex(), batch["position"].tolist()]) + "\n")
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.kill_after:
            os.killpg(0, signal.SIGKILL)


def fit(folder: Path, world: Path, name: str, accumulate: int, kill_after: int | None, resume: bool) -> None:
    """One run over two epochs of four batches; a checkpoint every two batches."""
    os.setsid()  # a kill takes its workers too
    torch.set_num_threads(1)  # by one thread, before others ask for torch's pool, which a fork has left to be made anew
    data = SimulatedDataModule(
        root=world, cells=40, cell_size=144, batch_size=4, num_workers=1, epoch_length=16, val_share=0.1
    )
    saves = folder / f"checkpoints_{accumulate}_{name.removesuffix('_resumed')}"
    save = ModelCheckpoint(saves, filename="last", every_n_train_steps=2 // accumulate, enable_version_counter=False)
    run = trainer(
        folder,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[LossFile(folder / f"{name}_{accumulate}.txt", kill_after), save],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        limit_val_batches=1,
        val_check_interval=0.5,
    )
    run.fit(tiny_terrafm(frequent_classes=None), data, ckpt_path=saves / "last.ckpt" if resume else None)


def kills(folder: Path, world: Path) -> None:
    """Runs that were not interrupted, and for each place of a kill one that was, with its continuation."""
    fork = multiprocessing.get_context("fork")

    def apart(call: Callable[..., None], *args: Any) -> int | None:
        process = fork.Process(target=call, args=args)
        process.start()
        process.join()
        return process.exitcode

    for accumulate, place in ((1, 5), (2, 3)):
        assert apart(fit, folder, world, "whole", accumulate, None, False) == 0
        assert apart(fit, folder, world, "killed", accumulate, place, False) == -signal.SIGKILL
        assert apart(fit, folder, world, "killed_resumed", accumulate, None, True) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    kills(Path(sys.argv[1]), Path(sys.argv[2]))

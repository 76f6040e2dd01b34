"""A run of which one process is killed, and its continuations on fewer and on more processes.

Started by scale_processes.py.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

from forked_ranks import fork_ranks, overlay_strategy
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_terrafm import tiny_terrafm, trainer

from terrafm_tg.callbacks import AtomicCheckpointIO, SafeStop
from terrafm_tg.datamodules import SimulatedDataModule

#: Tiles of an optimiser step and of an epoch: six steps and a tail.
STEP, LENGTH = 12, 6 * 12 + 5


class Steps(Callback):
    """Writes each step's positions and loss to a file at once; one rank may end in the middle of a step."""

    def __init__(self, path: Path, end: Any = None) -> None:
        self.path, self.end = path, end

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.end is not None and trainer.global_step == 3:
            self.end()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        line = [trainer.current_epoch, trainer.global_step, batch["position"].tolist(), outputs["loss"].item()]
        with self.path.with_name(f"{self.path.name}_{trainer.global_rank}.txt").open("a") as file:
            file.write(json.dumps(line) + "\n")


def kill() -> None:
    """As the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def fit(rank: int, ranks: int, folder: Path, world: Path, name: str, end: str, resume: str) -> None:
    """One rank of a run over an epoch, with a checkpoint every two steps; arguments as in :func:`start`."""
    data = SimulatedDataModule(
        root=world, batch_size=STEP // ranks, num_workers=1, epoch_length=LENGTH, val_share=0.1, seed=1
    )
    save = ModelCheckpoint(folder / name, filename="last", every_n_train_steps=2, enable_version_counter=False)
    last = kill if end and rank == ranks - 1 else None
    run = trainer(
        folder,
        max_epochs=1,
        devices=ranks,
        strategy=overlay_strategy("fsdp" if name.startswith("sharded") else "gpu8", ranks),
        callbacks=[Steps(folder / name, last), save, SafeStop()],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=0,
    )
    task = tiny_terrafm(frequent_classes=None, lr_batch=None)
    run.fit(task, data, ckpt_path=folder / resume / "last.ckpt" if resume else None)


def start(folder: Path, world: Path, name: str, ranks: str, end: str, resume: str) -> None:
    """A run, to its end.

    Args:
        folder: For all runs.
        world: The tiles.
        name: Of this run and its files; FSDP where it begins with "sharded".
        ranks: How many processes.
        end: "kill", which the last of them does to itself; "" as intended.
        resume: Name of the run whose last checkpoint it goes on from; "" for none.
    """
    processes = fork_ranks(int(ranks), folder / name, fit, folder, world, name, end, resume)
    for process in processes:
        process.join()

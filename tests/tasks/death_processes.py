"""A run of which one process is killed, and its continuations on fewer and on more processes.

Started by scale_processes.py.
"""

import json
import os
import signal
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from forked_ranks import fork_ranks, overlay_strategy
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_terrafm import tiny_terrafm, trainer

from terrafm_tg.callbacks import AtomicCheckpointIO, RankWatch
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


def freeze() -> None:
    """As a machine does that hangs: all of its processes, and no connection is closed."""
    for pid in [*_children("self"), os.getpid()]:
        os.kill(pid, signal.SIGSTOP)


def fail() -> None:
    """As a mistake does."""
    raise ValueError("the disk is full.\nSecond line.")


def fit(rank: int, ranks: int, folder: Path, world: Path, name: str, end: str, resume: str) -> None:
    """One rank of a run over an epoch, with a checkpoint every two steps; arguments as in :func:`start`."""
    data = SimulatedDataModule(
        root=world, batch_size=STEP // ranks, num_workers=1, epoch_length=LENGTH, val_share=0.1, seed=1
    )
    save = ModelCheckpoint(folder / name, filename="last", every_n_train_steps=2, enable_version_counter=False)
    last = globals().get(end) if rank == ranks - 1 else None
    silence = 10 if end == "freeze" else 30
    run = trainer(
        folder,
        max_epochs=1,
        devices=ranks,
        strategy=overlay_strategy("fsdp" if name.startswith("sharded") else "gpu8", ranks),
        callbacks=[Steps(folder / name, last), save, RankWatch(interval=1, silence=silence)],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=0,
    )
    task = tiny_terrafm(frequent_classes=None, lr_batch=None)
    run.fit(task, data, ckpt_path=folder / resume / "last.ckpt" if resume else None)


def start(folder: Path, world: Path, name: str, ranks: str, end: str, resume: str) -> None:
    """A run; writes the ranks' exit codes to a file, null for those that have not ended after a minute.

    Args:
        folder: For all runs.
        world: The tiles.
        name: Of this run and its files; FSDP where it begins with "sharded".
        ranks: How many processes.
        end: How the last of them ends, a function of this module; "" as intended.
        resume: Name of the run whose last checkpoint it goes on from; "" for none.
    """
    processes = fork_ranks(int(ranks), folder / name, fit, folder, world, name, end, resume)
    if end:
        last = processes.pop()
        while last.is_alive() and not _stopped(last.pid):
            time.sleep(0.1)
        deadline = time.monotonic() + 60
    for process in processes:
        process.join(max(0, deadline - time.monotonic()) if end else None)
    codes = [process.exitcode for process in processes]
    (folder / f"{name}_codes.json").write_text(json.dumps(codes))
    for process in [*processes, *([last] if end else [])]:
        for pid in [*_children(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.join()


def _children(pid: int | str | None) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [*map(int, chain(*found))]


def _stopped(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

"""Ranks of ``terrafm fit`` in processes that tests kill, with the losses of each step in files."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from forked_ranks import be_rank
from lightning.pytorch import Callback

import processes
from terrafm_tg.cli.main import main

CONF = Path(__file__).resolve().parents[2] / "conf"
#: Twelve steps in two epochs, a checkpoint every two steps.
CONFIG = """
trainer:
  max_epochs: 2
  precision: 32-true
  accelerator: cpu
  limit_val_batches: 1
  enable_progress_bar: false
  default_root_dir: FOLDER
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: FOLDER, filename: last, every_n_train_steps: 2, enable_version_counter: false}
    - class_path: stopped_runs.Losses
      init_args: {path: FOLDER/losses}
  logger: false
model:
  init_args:
    {depth: 1, crops: {global_size: 48, local_size: 32, local_crops: 2}, head: {prototypes: 64, hidden_dim: 64}}
data:
  init_args:
    {root: WORLD, cells: null, cell_size: null, epoch_length: LENGTH, num_workers: 1, cache: false, batch_size: SIZE}
"""


class Losses(Callback):
    """Writes each step's positions and loss, every bit of it, at once; may kill the last rank and its workers.

    Args:
        path: Of the file, without the rank.
        kill_at: So many batches are done before.
    """

    def __init__(self, path: str, kill_at: int | None = None) -> None:
        self.path, self.kill_at, self.seen = path, kill_at, 0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.seen == self.kill_at and trainer.global_rank == trainer.world_size - 1:
            os.killpg(0, signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        line = [trainer.global_step, batch["position"].tolist(), outputs["loss"].item().hex()]
        with Path(f"{self.path}_{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.seen += 1


class Run:
    """A run of the paper's recipe, made small, as torchrun starts it: its ranks are forks of a warm process.

    Args:
        folder: For configuration, checkpoint, losses and logs.
        world: The tiles.
        options: More words of the command.
        ranks: How many.
        step: Tiles of a step.
    """

    def __init__(self, folder: Path, world: Path, *options: str, ranks: int = 2, step: int = 8) -> None:
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob("log_*"), *folder.glob("losses_*")]:  # of the run that it goes on from
            path.unlink()
        self.folder = folder
        content = CONFIG
        for name, value in {"FOLDER": folder, "WORLD": world, "SIZE": step // ranks, "LENGTH": 6 * step}.items():
            content = content.replace(name, str(value))
        config = folder / "small.yaml"
        config.write_text(content)
        stack = [CONF / f"{name}.yaml" for name in ("pretrain", "size/tiny", "data/simulated", "hardware/gpu8")]
        words = ["fit", *(f"--config={path}" for path in [*stack, config]), f"--trainer.devices={ranks}", *options]
        port = processes.free_port()
        self.ranks = [processes.start(start_rank, rank, ranks, port, folder, words) for rank in range(ranks)]

    def wait_for_step(self, step: int, rank: int = 0) -> None:
        """Returns when a rank has done so many steps."""
        while step not in self.losses(rank):
            assert all(process.is_alive() for process in self.ranks), self.log()
            time.sleep(0.02)

    def losses(self, rank: int) -> dict[int, list[Any]]:
        """Step -> positions and loss."""
        path = self.folder / f"losses_{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line[0]: line[1:] for line in map(json.loads, lines)}

    def end(self, seconds: float = 120) -> list[int | None]:
        """The ranks' status; None for one that has not ended until then, which is killed."""
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        status = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
            process.join()
        return status

    def left(self) -> list[str]:
        """What ended runs must not leave behind: processes of the ranks' sessions, pieces of files, shared memory."""
        deadline = time.monotonic() + 15  # a worker looks every five seconds if its trainer lives
        own = {process.pid for process in self.ranks}
        while (alive := sessions() & own) and time.monotonic() < deadline:
            time.sleep(0.2)
        pieces = [path.name for path in self.folder.glob(".*")]
        memory = [path.name for path in Path("/dev/shm").glob("torch_*") if int(path.name.split("_")[1]) in own]
        return [*map(str, alive), *pieces, *memory]

    def log(self) -> str:
        """What the ranks printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("log_*")))


def sessions() -> set[int]:
    """The sessions, each by its first process, that have a process which has not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            found |= {int(session)} if state not in "ZX" else set()
    return found


def children(pid: int | None) -> list[int]:
    """The processes that a process has started: workers of a loader."""
    return [int(pid) for path in Path(f"/proc/{pid}/task").glob("*/children") for pid in path.read_text().split()]


def start_rank(rank: int, ranks: int, port: int, folder: Path, words: list[str]) -> None:
    """One rank, in a session of its own."""
    os.setsid()
    be_rank(rank, ranks, port, folder / "log")
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(words)

"""The command under Lightning's own launcher and under torchrun: a rank is killed, and the run goes on without it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
#: Six steps of eight tiles an epoch, a checkpoint every two.
CONFIG = """
trainer:
  max_epochs: 50
  precision: 32-true
  limit_val_batches: 0
  enable_progress_bar: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: SAVES, filename: last, every_n_train_steps: 2, enable_version_counter: false}
    - class_path: terrafm_tg.callbacks.RankWatch
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: SAVES}
model:
  init_args:
    {depth: 1, crops: {global_size: 48, local_size: 32, local_crops: 2}, head: {prototypes: 64, hidden_dim: 64}}
data:
  init_args: {root: WORLD, cells: null, cell_size: null, epoch_length: 48, num_workers: 1, cache: false}
"""


def command(folder: Path, world: Path, processes: int) -> list[str | Path]:
    """``terrafm fit`` of the paper's recipe on processors, made small."""
    config = folder / "small.yaml"
    config.write_text(CONFIG.replace("SAVES", str(folder)).replace("WORLD", str(world)))
    stack = [ROOT / f"conf/{n}.yaml" for n in ("pretrain", "size/tiny", "data/simulated", "hardware/cpu")]
    stack += [*([ROOT / "conf/hardware/gpu8.yaml"] if processes > 1 else []), config]
    options = {"trainer.accelerator": "cpu", "trainer.devices": processes, "data.batch_size": 8 // processes}
    return [
        *("terrafm", "fit"),
        *(f"--config={path}" for path in stack),
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def rank_of(launcher: int, variable: str) -> int:
    """The launcher's child process that has a variable in its environment."""
    for path in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in path.read_text().split():
            if variable in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return int(child)
    raise AssertionError(f"{launcher} has no child with {variable}")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("start", "killed"),
    [([], "LOCAL_RANK=1"), (["torchrun", "--nproc-per-node=2", "--no-python"], "RANK=0")],
    ids=["lightning", "torchrun"],
)
def test_a_rank_is_killed(start: list[str], killed: str, tmp_path: Path, small_world: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    words = [*start, *command(tmp_path, small_world, 2)]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    while not (tmp_path / "last.ckpt").exists():
        assert run.poll() is None, (tmp_path / "log").read_text()[-4000:]
        time.sleep(0.2)
    os.kill(rank_of(run.pid, killed), signal.SIGKILL)
    assert run.wait(60) == 1
    log = (tmp_path / "log").read_text()
    (found,) = re.findall(r"terrafm: error: (.*)", log)
    assert re.match(rf"Rank {killed[-1]} of 2 on \S+ died at \S+, and the others stop at step \d+: resume", found)
    path = re.search(r"--ckpt_path (\S+),", found)[1]
    assert "RuntimeError" not in log  # gloo's own, of the connection that broke

    resume = [*command(tmp_path, small_world, 1), f"--ckpt_path={path}", "--trainer.max_epochs=51"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([*resume, "--trainer.max_steps=12"], env=environment, stdout=log, stderr=log)
    assert run.wait(300) == 0, (tmp_path / "log").read_text()[-4000:]

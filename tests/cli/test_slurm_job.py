"""The job script, with stand-ins for SLURM's commands: no SLURM runs here."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "conf/slurm/pretrain.sbatch"


def submit(folder: Path, job: str, *options: str, **environment: str) -> tuple[subprocess.Popen, Path]:
    """Starts the script; ``job`` is what its step does. The log has a line for each of SLURM's commands."""
    log, commands = folder / "log", folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, then in (("srun", job), ("scontrol", "")):
        (commands / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {log}\n{then}\n')
        (commands / name).chmod(0o755)
    path = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "TERRAFM_RUNS": str(folder)}
    sizes = {"SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "12"}
    command = ["bash", SCRIPT, "--data.root", "/tiles of mine", *options]
    return subprocess.Popen(command, env=os.environ | path | sizes | environment, cwd=folder), log


def ended(folder: Path, job: str, *options: str, status: int = 0, **environment: str) -> list[str]:
    """The log's lines when the script has ended with that status."""
    script, log = submit(folder, job, *options, **environment)
    assert script.wait() == status
    return log.read_text().splitlines()


@pytest.fixture
def last(tmp_path: Path) -> Path:
    folder = tmp_path / "lightning_logs/job-7-0/checkpoints"
    folder.mkdir(parents=True)
    return folder / "last.ckpt"


def test_a_run_begins_and_ends(tmp_path: Path, last: Path) -> None:
    (line,) = ended(tmp_path, "exit 0")
    start = "srun --kill-on-bad-exit=1 --cpus-per-task=12 terrafm fit --config conf/pretrain.yaml"
    assert line.startswith(start)
    assert "--trainer.num_nodes 4 --trainer.devices 8" in line
    assert line.endswith("--trainer.logger.init_args.version job-7-0 --data.root /tiles of mine")


def test_a_run_resumes_from_its_checkpoint_and_a_new_job_from_anothers(tmp_path: Path, last: Path) -> None:
    given = ["--ckpt_path", "job-3-0/last.ckpt"]
    for own, options, restarts in ((False, given, "0"), (True, given, "1"), (True, [], "1")):
        last.touch() if own else None
        lines = ended(tmp_path, "exit 0", *options, SLURM_RESTART_COUNT=restarts)
        words = [f"version job-7-{restarts}", "--data.root /tiles of mine", *options]
        words += [f"--ckpt_path {last}"] if own else []
        assert lines[-1].endswith(" ".join(words))


def test_a_run_that_failed_comes_back_only_where_it_got_on(tmp_path: Path, last: Path) -> None:
    last.touch()
    got_on = f"sleep 0.1; touch {last}; exit 1"
    assert "requeue" not in ended(tmp_path, "exit 1", status=1)[-1]
    assert ended(tmp_path, got_on, status=1)[-1] == "scontrol requeue 7"
    assert "requeue" not in ended(tmp_path, got_on, status=1, SLURM_RESTART_COUNT="50")[-1]


def test_a_job_whose_time_is_up_saves_and_comes_back(tmp_path: Path, last: Path) -> None:
    job, log = submit(tmp_path, f"trap 'echo saved >> {tmp_path / 'log'}; exit 143' TERM; sleep 3 & wait")
    while not log.exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert log.read_text().splitlines()[-2:] == ["saved", "scontrol requeue 7"]

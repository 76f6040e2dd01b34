"""``terrafm ablate``: the rows of the paper's ablation over seeds, each run a ``terrafm fit`` of its own."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch
from rich.console import Console

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.held_out_report import TRAINED
from terrafm_tg.evaluation.report.ablation import ROWS, write_ablation
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.profiling.profile import read_profile
from terrafm_tg.profiling.step import describe_duration
from terrafm_tg.utils.arguments import COUNT, checked
from terrafm_tg.utils.files import write_json
from terrafm_tg.utils.progress import count_units
from terrafm_tg.utils.tensor_files import load_archive

from .options import find_configs, read_options

_RESULT, _COMMAND = "result.json", "from terrafm_tg.cli.main import main; main()"
_OWN = ("--seeds", "--workers", "--out", "--help", "-h")
_POLL = 0.5  # seconds between two looks at the runs


def run(command: str, words: Sequence[str]) -> None:
    """Trains and compares the rows; all options that are not its own are those of ``terrafm fit``."""
    own, fit = list[str](), list[str]()
    taken = fit
    for word in find_configs(words):
        if word.startswith("-"):  # what follows belongs to it
            taken = own if word.partition("=")[0] in _OWN else fit
        taken.append(word)
    run_ablation(**read_options(command, own, run_ablation, skip={"fit"}), fit=fit)


@checked(seeds=COUNT, workers=COUNT)
def run_ablation(
    seeds: int = 5, workers: int = 1, out: str | os.PathLike[str] = "runs/ablation", fit: Sequence[str] = ()
) -> None:
    """Trains each row of the paper's ablation with each seed, and compares the rows seed by seed.

    The same command again goes on: runs that have ended are not repeated, one that was stopped goes on from its last
    checkpoint. OUT receives a folder per row and seed, with the run's log, and at the end ablation.csv,
    ablation.json, ablation.png and rare_classes.png.

    Args:
        seeds: Number of seeds, from 0; of weights, views and stochastic depth. All runs have the same held-out tiles.
        workers: Runs at a time.
        out: Folder of the runs and of the results.
        fit: Options of ``terrafm fit``; those of a small model on the simulated world where there is no ``--config``.

    Raises:
        TerraFMError: If OUT holds an ablation with other options, or a run ends with an error, which is repeated.
    """
    out, fit = Path(out), list(fit)
    if not any(word.startswith(("--config", "-c")) for word in fit):
        device = "gpu" if torch.cuda.is_available() else "cpu"
        stack = ("pretrain", "size/nano", "data/simulated", f"hardware/{device}", "small_scale", "quick")
        fit = [*(f"--config={name}" for name in stack), *fit]
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with _alone(out, console) as lock:
        options = out / "options.json"
        if options.is_file() and (before := json.loads(options.read_text())) != fit:
            raise TerraFMError(
                f"{out} holds an ablation of `{' '.join(before)}`: give another `out`, or the same options."
            )
        write_json(options, fit)
        batches, hours = _measure(out, fit, lock)
        runs = [(row, seed) for seed in range(seeds) for row in ROWS]
        todo = [run for run in runs if not (_folder(out, *run) / _RESULT).is_file()]
        length = describe_duration(hours * -(-len(todo) // workers))
        console.print(
            f"{len(runs)} runs ({len(ROWS)} rows, {seeds} seeds) of {batches:,} batches, {len(runs) - len(todo)} done. "
            f"The others train for {length}, {workers} at a time, where that does not slow them; starts, validations "
            "and reports come on top."
        )
        _run_all(out, fit, batches, todo, workers, lock, console)
        results = [json.loads((_folder(out, *run) / _RESULT).read_text()) for run in runs]
    write_ablation(pd.DataFrame([score for result in results for score in result]), out)


def _folder(out: Path, row: str, seed: int) -> Path:
    return out / row / f"seed_{seed}"


@contextmanager
def _alone(out: Path, console: Console) -> Iterator[IO[str]]:
    """Waits until nothing else is at work in a folder; runs inherit the lock, also those that outlive this process."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"Waiting for runs in {out} that another command has started.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _start(words: Sequence[str], lock: IO[str], log: IO[str], errors: IO[str] | None) -> subprocess.Popen[bytes]:
    """Starts ``terrafm`` in a session of its own: a Ctrl-C reaches it through this process alone, once."""
    command = [sys.executable, "-c", _COMMAND, *words]
    return subprocess.Popen(command, stdout=log, stderr=errors, pass_fds=(lock.fileno(),), start_new_session=True)


@contextmanager
def _ending(processes: dict[Any, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends the processes with the block, also on SIGTERM; a run that is asked to end writes a checkpoint."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


def _measure(out: Path, fit: Sequence[str], lock: IO[str]) -> tuple[int, float]:
    """Batches of a run and the hours that they take, by ``terrafm profile``, which also makes the simulated world."""
    path = out / "pace.json"
    if not path.is_file():
        words = ["profile", *fit, "--steps=5", "--warmup=2", f"--json={path}"]
        with (out / "pace.log").open("w") as log:
            process = _start(words, lock, log, None)
            with _ending({"profile": process}):
                process.wait()
        if process.returncode:
            raise TerraFMError(
                "The configuration cannot be trained, as said above: correct the options behind `ablate`."
            )
    found = read_profile(path)
    if found.run is None:
        raise TerraFMError("Nothing ends a run of this configuration: set `--trainer.max_epochs`.")
    return int(found.run["steps"]) * found.accumulated, found.run["hours"]


def _run_all(
    out: Path,
    fit: Sequence[str],
    batches: int,
    todo: list[tuple[str, int]],
    workers: int,
    lock: IO[str],
    console: Console,
) -> None:
    """Runs what is to be done, some at a time."""
    waiting = list(todo)
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with count_units("Runs", len(todo), console) as show, _ending(running):
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                words = _words(out, fit, batches, *run)
                with (_folder(out, *run) / "log.txt").open("w") as log:
                    running[run] = _start(words, lock, log, log)
                console.print(f"{ROWS[run[0]]}, seed {run[1]}: begun")
            time.sleep(_POLL)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                folder = _folder(out, *run)
                if process.returncode:
                    raise TerraFMError(f"The run in {folder} has failed: {_last_words(folder)}")
                result = _read(folder, *run)
                write_json(folder / _RESULT, result)
                console.print(f"{ROWS[run[0]]}, seed {run[1]}: {_in_short(result)}")
                show(advance=1)


def _words(out: Path, fit: Sequence[str], batches: int, row: str, seed: int) -> list[str]:
    """The command of a run, which validates after its last batch; it goes on from a checkpoint where there is one."""
    folder = _folder(out, row, seed)
    folder.mkdir(parents=True, exist_ok=True)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    trainer = {
        "default_root_dir": folder,
        "logger": json.dumps(logger),
        "limit_val_batches": "1.0",
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": "null",
        "val_check_interval": batches,
    }
    words = ["fit", *fit, f"--config=ablation/{row}", *(f"--trainer.{name}={value}" for name, value in trainer.items())]
    words += [f"--seed_everything={seed}", f"--model.seed={seed}"]
    checkpoints = sorted(folder.rglob("last.ckpt"), key=os.path.getmtime)
    return [*words, f"--ckpt_path={checkpoints[-1]}"] if checkpoints else words


def _read(folder: Path, row: str, seed: int) -> list[dict[str, Any]]:
    """The scores and statistics per class of a run that has ended: ``row``, ``seed``, ``name``, ``value``.

    Raises:
        TerraFMError: If it wrote none.
    """
    reports = sorted(folder.rglob("held_out.csv"), key=os.path.getmtime)
    if not reports:
        raise TerraFMError(f"The run in {folder} wrote no held-out report: give a configuration with HeldOutReport.")
    scores = pd.read_csv(reports[-1])
    scores = scores[scores.encoder == TRAINED]
    names = scores.task + "/" + scores.metric + "/" + scores.bank + "/" + scores["query"]
    found = dict(zip(names, scores.score, strict=True))
    for path in sorted(folder.rglob("metrics.csv"), key=os.path.getmtime):  # of a run that was stopped, one per start
        metrics = pd.read_csv(path)
        last = metrics[[name for name in metrics if name.startswith(("val/entropy/", "val/spread/"))]].ffill().tail(1)
        found |= {name: float(column.iloc[0]) for name, column in last.dropna(axis=1).items()}
    state = load_archive(max(folder.rglob("last.ckpt"), key=os.path.getmtime))["state_dict"]
    frequent = zip(CLASS_NAMES, state["center.frequent"].tolist(), strict=False)  # the last is of unknown land cover
    found |= {f"frequent/{title}": float(often) for title, often in frequent}
    return [{"row": row, "seed": seed, "name": name, "value": value} for name, value in found.items()]


def _in_short(result: list[dict[str, Any]]) -> str:
    found = {score["name"]: score["value"] for score in result}
    return f"k-NN of L2A {found.get('knn/accuracy/s2l2a/s2l2a', float('nan')):.3f}"


def _last_words(folder: Path) -> str:
    """The sentence with which a run has ended, or where its log is."""
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    said = [line.removeprefix("terrafm: error: ") for line in lines if line.startswith("terrafm: error: ")]
    return said[-1] if said else f"see the end of {folder / 'log.txt'}."

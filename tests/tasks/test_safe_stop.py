"""Runs that end by a signal, or without one of their processes."""

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from stopped_runs import Run, children
from tiny_terrafm import loader, make_batch, tiny_terrafm, trainer

from terrafm_tg.callbacks import SafeStop
from terrafm_tg.errors import TerraFMError


class Signals(Callback):
    """Keeps the losses, and gets a signal in the middle of an epoch's first batch, or before training (epoch -1)."""

    def __init__(self, number: signal.Signals | None = None, epoch: int = 0) -> None:
        self.number, self.epoch = number, epoch
        self.losses: list[float] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.number is not None and self.epoch < 0:
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.number is not None and (trainer.current_epoch, batch_idx) == (self.epoch, 0):
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())


def fit(folder: Path, seen: Signals, resume: Path | None = None) -> None:
    """Three epochs of a step of two batches."""
    save = ModelCheckpoint(folder, filename="kept", every_n_train_steps=100)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": True, "callbacks": [seen, SafeStop(), save]}
    run = trainer(folder, max_epochs=3, **options)
    run.fit(tiny_terrafm(), loader([make_batch(2), make_batch(2, 2)]), ckpt_path=resume)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_behind_its_step(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = signal.signal(number, signal.SIG_DFL)  # of a shell's background jobs, and under nohup
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, stopped := Signals(number, 1))
    assert end.value.code == 128 + number
    last = tmp_path / "last.ckpt"
    sentence = f"terrafm: stopped by {number.name} (step 2): resume with the same command and --ckpt_path {last}.\n"
    assert sentence in capsys.readouterr().err
    assert signal.getsignal(number) is before
    fit(tmp_path, resumed := Signals(), last)
    fit(tmp_path / "whole", whole := Signals())
    assert stopped.losses + resumed.losses == whole.losses
    signal.signal(number, ignored)


def test_a_signal_before_training_ends_a_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="143"):
        fit(tmp_path, Signals(signal.SIGTERM, -1))
    assert "stopped by SIGTERM: no checkpoint had been written, so start again." in capsys.readouterr().err


class DeadWorker(Callback):
    """A worker's death is met while torch writes a checkpoint, whose writer then raises its own error."""

    def on_train_batch_end(self, *_: Any) -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 9 vs 8")


def test_a_dead_worker_is_named_wherever_it_is_met(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[DeadWorker(), SafeStop()])
    with pytest.raises(TerraFMError, match=r"A worker process that reads data has died \(DataLoader worker \(pid 7\)"):
        run.fit(tiny_terrafm(), loader([make_batch(2)]))


@pytest.mark.parametrize("step", [0, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_is_named(step: int, frozen: int, tmp_path: Path, small_world: Path) -> None:
    """Before the ranks have met, and in the middle of their work."""
    run = Run(tmp_path, small_world, "--trainer.strategy.init_args.timeout=0:00:04")
    if step:
        run.wait_for_step(step)
    os.kill(run.ranks[frozen].pid, signal.SIGSTOP)
    other = run.ranks[1 - frozen]
    other.join(60)
    assert other.exitcode == 1
    run.end(0)
    (sentence,) = re.findall("terrafm: error: (.*)", run.log())
    assert re.match(rf"Rank {frozen}( on \S+)? \(of 2\) has ended or no longer answers", sentence)
    assert "Traceback" not in run.log()


#: The ranks' status after a signal to one of them in training, or to all, and what one of them says.
SIGNALS = {"TERM": 143, "INT": 130, "HUP": 129, "group": 143}
SENTENCE = re.compile(r"terrafm: (?:error: )?(stopped by SIG\w+|Rank [01]|A worker process|stopped)")


def hurt(run: Run, what: str, rank: int) -> str:
    """Does it to a rank, or to all; returns what was done: a rank may have no worker yet."""
    pid = run.ranks[rank].pid
    workers = children(pid) if what == "worker" else []
    if what == "group":
        for process in run.ranks:
            os.killpg(process.pid, signal.SIGTERM)
    elif what == "STOP":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(pid, signal.SIGCONT)
    elif workers:
        os.kill(workers[0], signal.SIGKILL)
    else:
        what = "KILL" if what == "worker" else what
        os.kill(pid, signal.Signals[f"SIG{what}"])
    return what


def check_end(what: str, rank: int, status: list[int | None], log: str, in_training: bool) -> None:
    """The status and the one sentence that belong to it; before and after training a signal ends a process at once."""
    assert None not in status, log
    assert "Traceback" not in log, log
    said = SENTENCE.findall(log)
    if said[1:] == ["Rank 0"] and rank == 0 and (what == "worker" or not in_training):
        said.pop()  # rank 0 keeps what the ranks say to one another: the other one cannot hear why it ended
    assert len(said) <= 1, log
    if not in_training or what == "STOP":
        assert what != "STOP" or status == [0, 0]
        return
    if what in SIGNALS:
        assert status == [SIGNALS[what]] * 2, log
        assert said == [f"stopped by SIG{what.replace('group', 'TERM')}"]
    elif what == "worker":
        assert (status, said) == ([1, 1], ["A worker process"]), log
    else:
        assert (status[rank], status[1 - rank], said) == (-signal.SIGKILL, 1, [f"Rank {rank}"]), log


@pytest.mark.parametrize("what", ["group", "KILL", "worker"])
def test_ranks_end_together_with_one_sentence(what: str, tmp_path: Path, small_world: Path) -> None:
    run = Run(tmp_path, small_world)
    run.wait_for_step(3)
    check_end(hurt(run, what, 1), 1, run.end(), run.log(), True)
    assert run.left() == []
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert saved == (max(run.losses(0)) if what == "group" else 2)  # at the step's end, or the last regular one


@pytest.mark.soak
def test_forty_random_kills_cost_no_step(tmp_path: Path, small_world: Path) -> None:
    """At random moments of two ranks with workers; the losses are those of an undisturbed run, bit for bit."""
    whole = Run(tmp_path / "whole", small_world)
    assert whole.end(600) == [0, 0]
    draw, done, finished = random.Random(int(os.environ.get("SEED", 0))), Counter[str](), 0
    folder = tmp_path / "0"
    while done.total() < 40:
        last = folder / "last.ckpt"
        resume = [f"--ckpt_path={last}"] if last.exists() else []
        run = Run(folder, small_world, "--trainer.strategy.init_args.timeout=0:00:20", *resume)
        step = draw.randrange(12)
        while step > max(run.losses(0), default=0) and run.ranks[0].is_alive():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1 if step else 6))  # in the midst of a later one, or of what comes before the first
        under_way = [run.losses(rank) for rank in (0, 1)]
        in_training = all(losses and 12 not in losses for losses in under_way)
        what, rank = [*SIGNALS, "KILL", "worker", "STOP"][done.total() % 7], draw.randrange(2)
        if all(process.is_alive() for process in run.ranks):
            what = hurt(run, what, rank)
            done[f"{what} in training" if in_training else what] += 1
            status = run.end(300)
            check_end(what, rank, status, run.log(), in_training and 12 not in run.losses(rank))
        else:
            status = run.end(300)
            assert status == [0, 0], run.log()
        for rank in (0, 1):
            right = whole.losses(rank)
            assert {n: (loss, right[n]) for n, loss in run.losses(rank).items() if loss != right[n]} == {}
        assert [name for name in run.left() if status == [0, 0] or not name.endswith(".tmp")] == []
        if status == [0, 0]:
            finished += 1
            folder = tmp_path / str(finished)
        print(f"{dict(done)}, {finished} runs to their end", flush=True)

"""Runs that end by a signal, or without one of their processes."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from stopped_runs import Run, children
from tiny_terrafm import loader, make_batch, tiny_terrafm, trainer

from terrafm_tg.callbacks import SafeStop


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


def test_a_signal_before_training_ends_a_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="143"):
        fit(tmp_path, Signals(signal.SIGTERM, -1))
    assert "stopped by SIGTERM: no checkpoint had been written, so start again." in capsys.readouterr().err


def test_a_signal_to_all_processes_ends_all_behind_one_step(tmp_path: Path, small_world: Path) -> None:
    run = Run(tmp_path, small_world)
    run.wait_for_step(3)
    for process in run.ranks:
        os.killpg(process.pid, signal.SIGTERM)  # the loaders' workers, too
    assert run.end() == [143, 143]
    assert len(re.findall("terrafm: stopped by SIGTERM", run.log())) == 1
    assert "Traceback" not in run.log()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert [*run.losses(0)] == [*run.losses(1)] == [*range(1, saved + 1)]


@pytest.mark.parametrize("step", [0, 3])
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


def test_a_killed_worker_is_told(tmp_path: Path, small_world: Path) -> None:
    run = Run(tmp_path, small_world)
    run.wait_for_step(3)
    os.kill(children(run.ranks[1].pid)[0], signal.SIGKILL)
    assert run.end() == [1, 1]
    (sentence,) = re.findall("terrafm: error: (.*)", run.log())
    assert re.match(r"A worker process that reads data has died \(.*\), most likely for want of memory", sentence)
    assert "Traceback" not in run.log()

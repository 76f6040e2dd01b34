"""What the Trainer, the system or the parser refuses is a sentence; what a task does wrong keeps its traceback."""

import errno
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from refusals import CONF, IN_MEMORY, refusal
from terrafm_tg.cli.main import main
from terrafm_tg.tasks import TerraFM

TINY = [
    *IN_MEMORY,
    *("--trainer.logger=false", "--trainer.callbacks=null", "--trainer.max_steps=1"),
    *("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"),
]
CPU = "--trainer.accelerator cpu --trainer.devices 1"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("profile", ["--trainer.strategy=fsdp"], "`fsdp` requires a GPU"),
        ("fit", ["--trainer.precision=transformer-engine"], "transformer_engine"),
    ],
)
def test_a_trainer_that_cannot_be_set_up(
    command: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.dict(os.environ):  # where Lightning leaves a strategy's ranks
        message = refusal(capsys, command, *TINY, *options)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert said in message
    assert "`trainer.strategy`" in message
    assert len(message.splitlines()) == 1


def test_gpus_that_are_not_here(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, f"--config={CONF / 'hardware/gpu8.yaml'}"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    message = refusal(capsys, "fit", *options)
    assert "there is no GPU here" in message
    assert CPU in message
    assert "`--config conf/hardware/cpu.yaml`" in message
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = refusal(capsys, "fit", *options)
    assert "`trainer.devices` is 8 and this machine has 2 GPUs: add `--trainer.devices 2`." in message


def test_a_command_that_the_task_cannot_follow(capsys) -> None:
    assert "No `test_step()`" in refusal(capsys, "test", *TINY)


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (RuntimeError, lambda self, *_: _raise(RuntimeError("dataloader_idx"))),
        (OSError, lambda self, *_: _raise(OSError("dataloader_idx"))),
        (MisconfigurationException, lambda self, *_: self.log("x/dataloader_idx_0", 1.0)),
    ],
)
def test_a_mistake_in_a_step_keeps_its_traceback(kind: type, step: Any, monkeypatch) -> None:
    monkeypatch.setattr(TerraFM, "training_step", step)
    with pytest.raises(kind, match="dataloader_idx"):
        main(["fit", *TINY])


def test_a_folder_that_cannot_be_made(capsys) -> None:
    Path("file").touch()
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=file/run"]
    message = refusal(capsys, "fit", *TINY, *logger)
    assert "file/run" in message
    assert "cannot be read or written (Not a directory)" in message


def test_a_full_disk(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("terrafm_tg.simulation.dataset.Planet", lambda *_, **__: _raise(full))
    assert "A file cannot be read or written (No space left on device)" in refusal(capsys, "simulate", "world")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--config=pretrain", "--model.modelx=3"], "'modelx' is not accepted"),
        (["fit", "--config=pretrain", "--model.optimizer.lr=abc"], "Got value: abc"),
        (["fit", "--trainer.precision=bf17"], "bf17"),
        (["fit", "--config=pretrain", "--no_such=1"], "--no_such"),
        (["profile", "--steps=abc"], "abc"),
        (["simulate"], "root"),
        (["profile", "memory", "--gigabytes=abc"], "abc"),
    ],
)
def test_a_wrong_option_names_where_options_are_listed(words: list[str], said: str, capsys) -> None:
    message = refusal(capsys, *words)
    assert said in message
    command = " ".join(word for word in words if not word.startswith("--"))
    assert message.splitlines()[-1] == f"terrafm {command} --help lists the options."
    assert len(message.splitlines()) < 15

"""What the Trainer, the system or the parser refuses is a sentence; what a task does wrong keeps its traceback."""

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from refusals import refusal
from terrafm_tg.cli.main import main
from terrafm_tg.tasks import TerraFM

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = [
    *(f"--config={CONF / name}.yaml" for name in ("pretrain", "size/tiny", "../benchmarks/memory", "hardware/cpu")),
    *("--model.depth=2", "--model.crops.global_size=48", "--model.crops.local_size=32", "--model.crops.local_crops=2"),
    *("--model.head.prototypes=256", "--model.head.hidden_dim=64", "--data.tile_size=96", "--data.batch_size=4"),
    *("--trainer.logger=false", "--trainer.callbacks=null", "--trainer.max_steps=1"),
    *("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"),
]
CPU = "--trainer.accelerator cpu --trainer.devices 1"


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("profile", ["--trainer.strategy=fsdp"], "`fsdp` requires a GPU"),
        ("fit", ["--trainer.precision=transformer-engine"], "transformer_engine"),
        (
            "fit",
            [
                "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
                "--trainer.strategy.data_parallel_size=8",
                "--trainer.strategy.tensor_parallel_size=1",
            ],
            "`data_parallel_size=8`",
        ),
    ],
)
def test_a_trainer_that_cannot_be_set_up(
    command: str, options: list[str], said: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
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


def test_a_command_that_the_task_cannot_follow(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No `test_step()`" in refusal(capsys, "test", *TINY)


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_a_mistake_in_a_step_keeps_its_traceback(kind: type, tmp_path: Path, monkeypatch) -> None:
    def step(self: TerraFM, *_: object) -> None:
        raise kind("a task's own mistake")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TerraFM, "training_step", step)
    with pytest.raises(kind, match="a task's own mistake"):
        main(["fit", *TINY])


def test_a_misuse_of_lightning_in_a_step_keeps_its_traceback(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TerraFM, "training_step", lambda self, *_: self.log("x/dataloader_idx_0", 1.0))
    with pytest.raises(MisconfigurationException, match="dataloader_idx"):
        main(["fit", *TINY])


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=file/run"]
    message = refusal(capsys, "fit", *TINY, *logger)
    assert "file/run" in message
    assert "cannot be read or written (Not a directory)" in message


def test_a_full_disk(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("terrafm_tg.simulation.dataset.Planet", fill)
    assert "A file cannot be read or written (No space left on device)" in refusal(capsys, "simulate", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--model.modelx=3"], "'modelx' is not accepted"),
        (["fit", "--model.optimizer.lr=abc"], "Got value: abc"),
        (["fit", "--trainer.precision=bf17"], "bf17"),
        (["fit", "--no_such=1"], "--no_such"),
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

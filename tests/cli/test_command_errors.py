"""What the Trainer, the system or the parser refuses is a sentence; what a task does wrong keeps its traceback."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from test_cli import SHORT, fails, losses, tiny_run

from refusals import CONF, IN_MEMORY, refusal
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import MajorTOM, PackedTiles
from terrafm_tg.modalities import S2L2A
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


def test_real_cells_through_index_and_pack_to_fit(tmp_path: Path, real_data: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = tmp_path / "major_tom", tmp_path / "store"
    shutil.copytree(real_data / "major_tom", root)
    main(["index", str(root), "--workers=0", "--figure=false"])
    main(["pack", str(root), str(out), "--workers=0"])
    words = capsys.readouterr().out
    assert "8 tiles of 2 cells" in words
    assert "--config data/packed" in words
    source, packed = MajorTOM(root, harmonize=False, native=True), PackedTiles(out, harmonize=False, native=True)
    assert len(packed) == 8
    for row in range(8):
        expected, groups = source._read(row, S2L2A), packed._read(row, S2L2A)
        for resolution in S2L2A.native:
            np.testing.assert_array_equal(groups[resolution], expected[resolution])
    assert sum(path.stat().st_size for path in out.rglob("*.arrow")) < sum(
        path.stat().st_size for path in root.rglob("part_*.parquet")
    )
    options = ["--data.ambiguous_offset=present", "--model.modalities=[s2l2a]"]
    main(["fit", *tiny_run(tmp_path, "packed", out, *options), *SHORT])
    assert np.isfinite(losses(tmp_path)).tolist() == [True] * 2


def test_a_mistake_gets_one_sentence(tmp_path: Path, small_world: Path, real_data: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("terrafm_tg.utils.parallel._ANSWER", 1)
    out = str(tmp_path / "store")
    assert "is no folder: give one with the data" in fails(capsys, "pack", str(tmp_path / "none"), out)
    assert "lie in each other" in fails(capsys, "pack", str(small_world), str(small_world / "store"))
    assert "use one of s1rtc" in fails(capsys, "pack", str(small_world), out, "--modalities=s3")
    assert "made for tile_size=72, the dataset has 66" in fails(capsys, "pack", str(small_world), out, "--tile_size=66")
    assert "`unit` is no setting" in fails(capsys, "pack", str(small_world), out, "--unit=dB")
    sites = str(real_data / "ssl4eo_s12")
    assert "`tile_size` is no setting" in fails(capsys, "pack", sites, out, "--tile_size=264")
    assert "No Dask scheduler" in fails(capsys, "pack", sites, out, "--scheduler=tcp://127.0.0.1:9")
    main(["pack", sites, str(tmp_path / "sites"), "--workers=0"])
    assert "tiles of 1 cells" in capsys.readouterr().out
    assert "is a packed store already" in fails(capsys, "pack", str(tmp_path / "sites"), out)
    assert "made with tile_size=264, not 72" in fails(capsys, "pack", str(small_world), str(tmp_path / "sites"))
    assert not Path(out, "index.parquet").exists()


def test_no_space_on_the_disk(tmp_path: Path, real_data: Path, capfd) -> None:
    """A process that may write no file beyond 100 kB meets the same error as on a full disk."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            main(["pack", str(real_data / "ssl4eo_s12"), str(tmp_path / "store"), "--workers=0"])
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    words = capfd.readouterr().err
    assert "cannot be written (File too large): mend that and run the same command again" in words
    assert "Traceback" not in words

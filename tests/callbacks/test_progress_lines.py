"""Where the output is no terminal, a run tells its progress in lines."""

import io
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console

from terrafm_tg.callbacks import ProgressLines
from terrafm_tg.cli.fit import show_progress
from terrafm_tg.utils import progress
from terrafm_tg.utils.progress import count_units, with_bar

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


class Logging(BoringModel):
    """Logs a loss for the bar."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict:
        step = super().training_step(batch, batch_idx)
        self.log("train/loss", step["loss"], prog_bar=True)
        return step


def test_the_first_batch_and_each_epochs_last_have_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(max_epochs=2, limit_train_batches=4, limit_val_batches=0, callbacks=[ProgressLines()], **QUIET).fit(
        Logging()
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    begin = [re.match(r"epoch (\d) of 2, step (\d) of 8, train/loss [\d.e+-]+, ", line) for line in lines]
    assert [match and match.groups() for match in begin] == [("1", "1"), ("1", "4"), ("2", "8")]
    assert all(re.search(r"(steps/s|s/step), \d+:\d\d:\d\d left$", line) for line in lines)


def test_a_line_each_time_it_is_due_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(every=0)
    trainer = Trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=2, callbacks=[lines], **QUIET)
    trainer.fit(BoringModel())
    trainer.test(BoringModel(), verbose=False)
    trainer.predict(BoringModel())
    told = capsys.readouterr().out
    assert re.findall(r"step (\d) of 3", told) == ["1", "2", "3"]
    assert "validation, batch 2 of 2" in told
    assert "test, batch 64 of 64" in told
    assert "prediction, batch 64 of 64" in told


def test_without_an_end_no_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(
        max_epochs=-1, limit_val_batches=0, max_time="00:00:00:01", callbacks=[ProgressLines(every=0)], **QUIET
    )
    trainer.fit(BoringModel())
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("epoch 1, step 1, ")
    assert "left" not in first


@pytest.mark.parametrize(("bar", "kind"), [(RichProgressBar(), ProgressLines), (TQDMProgressBar(), TQDMProgressBar)])
def test_lines_stand_in_for_a_bar_that_would_draw_nothing(bar: object, kind: type, tmp_path: Path) -> None:
    trainer = Trainer(callbacks=[bar], default_root_dir=tmp_path, **QUIET)
    show_progress(trainer)
    assert type(trainer.progress_bar_callback) is kind


def test_a_log_gets_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    seen = []
    for item in with_bar(iter(range(10)), "Simulating cells", 10):
        seen.append(item)
        now += 8
    assert seen == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Simulating cells: 1 of 10, 0:01:12 left",
        "Simulating cells: 4 of 10, 0:00:48 left",
        "Simulating cells: 7 of 10, 0:00:24 left",
        "Simulating cells: 10 of 10",
    ]
    assert list(with_bar([1, 2], "Quick")) == [1, 2]
    assert list(with_bar([1, 2], "Quiet", shown=False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_bytes_come_with_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with count_units("Rows", None, Console(file=(log := io.StringIO())), in_bytes=True) as show:
        now = 30
        show(advance=3_000_000, now="part_00001")
    assert log.getvalue() == "Rows: 3.0 MB part_00001\n"

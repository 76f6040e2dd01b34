"""HeldOutReport at the end of a real fit on the simulated world."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from tiny_terrafm import tiny_terrafm, trainer
from torchgeo.tasks import Classification

from terrafm_tg.callbacks.held_out import HeldOutReport
from terrafm_tg.callbacks.knn import KNNMonitor
from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import BASELINE, TRAINED, UNTRAINED
from terrafm_tg.tasks import TerraFM


def _datamodule(root: Path, **kwargs: Any) -> SimulatedDataModule:
    world = {"cells": 40, "cell_size": 144, "num_workers": 0, "val_bank": 48, "val_queries": 24}
    return SimulatedDataModule(root, **world, **({"batch_size": 8, "val_share": 0.25, "val_block": 2} | kwargs))


def _task() -> TerraFM:
    return tiny_terrafm(depth=1, local_crops=1, alpha=1.0)


def _trainer(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    return trainer(folder, *callbacks, limit_train_batches=2, **settings)


def test_table_csv_and_figure_at_the_end(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = _task()
    start = {name: x.clone() for name, x in task.teacher.state_dict().items()}
    report = HeldOutReport()
    run = _trainer(tmp_path, report, KNNMonitor())
    run.fit(task, _datamodule(small_world))
    frame = pd.read_csv(tmp_path / "held_out.csv")
    assert set(frame.encoder) == {UNTRAINED, TRAINED, BASELINE}
    assert (tmp_path / "held_out.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "Held-out cells, terrafm_tiny after 2 steps" in printed
    assert str(tmp_path / "held_out.csv") in printed
    scores = frame.set_index(["encoder", "task", "bank", "query", "metric"]).score
    monitored = run.callback_metrics
    assert monitored["val/knn_fused"] == pytest.approx(scores[TRAINED, "knn", "fused", "fused", "accuracy"], abs=1e-4)
    recall = scores[TRAINED, "retrieval", "s2l2a", "s1rtc", "recall@10"]
    assert monitored["val/recall10_s1rtc_to_s2l2a"] == pytest.approx(recall, abs=1e-4)
    untrained = report._encoders[UNTRAINED]
    assert all(torch.equal(x, start[name]) for name, x in untrained.state_dict().items()), "from before the fit"


def test_a_resumed_run_compares_with_the_same_untrained_encoder(small_world: Path, tmp_path: Path):
    first = _trainer(tmp_path, limit_val_batches=0)
    first.fit(_task(), _datamodule(small_world))
    first.save_checkpoint(tmp_path / "last.ckpt")
    report = HeldOutReport(size=32)
    resumed = _trainer(tmp_path, report, max_epochs=2, limit_val_batches=0)
    resumed.fit(task := _task(), _datamodule(small_world), ckpt_path=tmp_path / "last.ckpt")
    start = _task().teacher.state_dict()
    assert all(torch.equal(x, start[name]) for name, x in report._encoders[UNTRAINED].state_dict().items())
    assert any(not torch.equal(x, start[name]) for name, x in task.teacher.state_dict().items())


def test_no_held_out_tiles_stops_before_the_first_step(small_world: Path, tmp_path: Path):
    with pytest.raises(TerraFMError, match="hold tiles out by `val_share`"):
        _trainer(tmp_path, HeldOutReport()).fit(_task(), _datamodule(small_world, val_share=0.0))


def test_a_task_without_a_teacher_is_named(small_world: Path, tmp_path: Path):
    with pytest.raises(TerraFMError, match="HeldOutReport got Classification, which has no `teacher`"):
        _trainer(tmp_path, HeldOutReport()).fit(
            Classification(model="resnet18", num_classes=2), _datamodule(small_world)
        )

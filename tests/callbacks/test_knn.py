"""KNNMonitor in a real Trainer."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tiny_terrafm import tiny_terrafm, trainer
from torch.utils.data import DataLoader
from torchgeo.tasks import Classification

from terrafm_tg.callbacks.held_out import HeldOutReport
from terrafm_tg.callbacks.knn import KNNMonitor
from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import BASELINE, TRAINED, UNTRAINED
from terrafm_tg.evaluation.knn import knn_predict
from terrafm_tg.evaluation.scores import collect, recall
from terrafm_tg.models.embedding import FUSED
from terrafm_tg.tasks import TerraFM


class Embedder(LightningModule):
    """Gives noisy one-hot embeddings of the land cover; S1 sees only even rows, with more noise."""

    def __init__(self, known: bool = True, embeds: bool = True) -> None:
        super().__init__()
        self.known, self.embeds = known, embeds
        self.outputs: tuple[list[Any], list[Any]] = ([], [])

    def validation_step(self, row: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if not self.embeds:
            return torch.zeros(())
        land_cover = row * 7 % 5
        generator = torch.Generator().manual_seed(int(row[0]))
        place = torch.eye(5)[land_cover] + 0.5 * torch.randn(len(row), 5, generator=generator)
        even = (row % 2 == 0).nonzero()[:, 0]
        radar = place[even] + 0.5 * torch.randn(len(even), 5, generator=generator)
        everyone = torch.arange(len(row))
        output = {
            "embeddings": {"s1rtc": radar, "s2l2a": place, FUSED: 2 * place},
            "sample_idx": {"s1rtc": even, "s2l2a": everyone, FUSED: everyone},
            "land_cover": land_cover if self.known else torch.full_like(land_cover, -1),
            "row": row,
        }
        self.outputs[dataloader_idx].append(output)
        return output


def _validate(module: Embedder, tmp_path: Path, **kwargs: Any) -> dict[str, float]:
    loaders = [DataLoader(range(200), batch_size=32), DataLoader(range(1000, 1090), batch_size=32)]
    run = trainer(tmp_path, KNNMonitor(**kwargs))
    run.validate(module, loaders, verbose=False)
    return {name: value.item() for name, value in run.callback_metrics.items()}


def test_logs_every_score_of_the_collected_embeddings(tmp_path: Path):
    logged = _validate(module := Embedder(), tmp_path)
    bank, query = (collect(outputs) for outputs in module.outputs)

    def accuracy(a: str, b: str) -> float:
        predicted = knn_predict(query[b].x, bank[a].x, bank[a].land_cover)
        return (predicted == query[b].land_cover).float().mean().item()

    expected = {f"val/knn_{name}": accuracy(name, name) for name in bank}
    expected |= {
        "val/knn_s1rtc_to_s2l2a": accuracy("s1rtc", "s2l2a"),
        "val/knn_s2l2a_to_s1rtc": accuracy("s2l2a", "s1rtc"),
        "val/recall10_s1rtc_to_s2l2a": recall(query["s1rtc"], query["s2l2a"])[0],
        "val/recall10_s2l2a_to_s1rtc": recall(query["s2l2a"], query["s1rtc"])[0],
    }
    assert logged == pytest.approx(expected, abs=1e-6)
    assert logged["val/knn_fused"] > 0.5 > 0.2, "five classes"


def test_settings_reach_the_scores(tmp_path: Path):
    assert "val/recall3_s1rtc_to_s2l2a" in _validate(Embedder(), tmp_path, top=3)
    assert _validate(Embedder(), tmp_path, k=1) != _validate(Embedder(), tmp_path, k=40)


def test_unknown_land_cover_is_said_once_and_retrieval_still_runs(tmp_path: Path):
    with pytest.warns(UserWarning, match="land cover of all validation tiles is unknown"):
        logged = _validate(Embedder(known=False), tmp_path)
    assert set(logged) == {"val/recall10_s1rtc_to_s2l2a", "val/recall10_s2l2a_to_s1rtc"}


def test_a_task_without_embeddings_is_named(tmp_path: Path):
    with pytest.raises(TerraFMError, match=r"got Tensor from Embedder\.validation_step: return a dict"):
        _validate(Embedder(embeds=False), tmp_path)


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
    assert str(tmp_path / "nearest_tiles.png") in printed
    assert (tmp_path / "nearest_tiles.png").stat().st_size > 50_000
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

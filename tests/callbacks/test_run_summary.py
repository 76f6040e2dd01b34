from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_terrafm import loader, make_batch, tiny_terrafm, trainer

from terrafm_tg.callbacks import AtomicCheckpointIO, RunSummary
from terrafm_tg.callbacks.summary import checkpoint_path, draw_curves, draw_land_cover


def fit(folder: Path, *, save: bool = True, max_epochs: int = 2, resume: Path | None = None) -> Trainer:
    """A real run of TerraFM over two batches."""
    logger, saves = CSVLogger(folder, name="", version=""), [ModelCheckpoint(folder / "checkpoints", save_last=True)]
    settings = {"logger": logger, "enable_checkpointing": save, "max_epochs": max_epochs, "num_sanity_val_steps": 2}
    plugins = [AtomicCheckpointIO()]
    run = trainer(folder, RunSummary(), *(saves if save else []), plugins=plugins, log_every_n_steps=1, **settings)
    batches = loader([make_batch(2), make_batch(2, 2)])
    run.fit(tiny_terrafm(), batches, [loader([make_batch(6)])] * 2, ckpt_path=resume)
    return run


def test_says_where_the_checkpoint_is_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit(tmp_path)
    said = capsys.readouterr().out
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.exists()
    assert f"terrafm export {last} {tmp_path / 'checkpoints' / 'encoder'}" in said
    assert f'get_model("terrafm_tiny", depth=2, weights="{tmp_path}/checkpoints/encoder.safetensors")' in said
    assert "4 steps, 2 epochs" in said
    for name in ("curves.png", "land_cover.png"):
        assert f"{tmp_path / name}" in said
        assert (tmp_path / name).stat().st_size > 10_000


def test_says_that_nothing_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit(tmp_path, save=False, max_epochs=1)
    assert "no checkpoint was written" in capsys.readouterr().out


def test_knows_the_last_checkpoint_of_a_run() -> None:
    save = SimpleNamespace(last_model_path="runs/a/last.ckpt", best_model_path="", dirpath="runs/a")
    trainer = SimpleNamespace(checkpoint_callbacks=[save], ckpt_path="old.ckpt")
    assert checkpoint_path(trainer) == Path("runs/a/last.ckpt")
    save.last_model_path, save.best_model_path = "", "runs/before/009.ckpt"  # it has written none of its own
    assert checkpoint_path(trainer) == Path("old.ckpt")


def test_says_that_nothing_was_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fit(tmp_path / "a", max_epochs=1)
    assert "nothing was left to do" not in capsys.readouterr().out
    last = tmp_path / "a/checkpoints/last.ckpt"
    fit(tmp_path / "b", max_epochs=1, resume=last)
    said = capsys.readouterr().out
    assert "2 steps, 1 epochs" in said
    assert "nothing was left to do: raise `trainer.max_epochs`" in said
    assert f"checkpoint    {last}" in said
    assert "no checkpoint was written" not in said


def metrics() -> pd.DataFrame:
    """As CSVLogger writes them: a row per logging call, empty where it was not about that name."""
    steps = np.arange(0, 200, 10)
    train = pd.DataFrame({"step": steps, "train/loss": 6 - steps / 100, "train/teacher_entropy": 5 - steps / 100})
    val = pd.DataFrame({"step": [99, 199], "val/entropy/tree_cover": [3.0, 2.0], "val/entropy/mangroves": [1.0, 2.5],
                        "val/spread/tree_cover": [0.5, 0.6], "val/knn_s1rtc": [0.2, 0.4],
                        "val/knn_s1rtc_to_s2l2a": [0.1, 0.3]})  # fmt: skip
    return pd.concat([train, val])


def test_curves_show_what_was_logged() -> None:
    figure = draw_curves(metrics(), 1024)
    visible = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_visible()}
    assert set(visible) == {
        "Training loss (nats)",
        "Entropy of the teacher's output (nats)",
        "k-NN accuracy on held-out cells",
    }
    np.testing.assert_allclose(visible["Training loss (nats)"].lines[0].get_ydata(), 6 - np.arange(0, 200, 10) / 100)
    labels = [text.get_text() for text in visible["k-NN accuracy on held-out cells"].get_legend().get_texts()]
    assert labels == ["S1", "S1 → L2A"]


def test_land_cover_shows_first_and_last_validation_per_class() -> None:
    figure = draw_land_cover(metrics(), 1024, [True] + [False] * 12)
    entropy = figure.axes[0]
    assert [label.get_text() for label in entropy.get_yticklabels()] == ["Tree cover", "Mangroves"]
    assert list(entropy.lines[0].get_xdata()) == [3.0, 2.0]
    assert list(entropy.lines[3].get_xdata()) == [1.0, 2.5]


def test_nothing_is_drawn_of_nothing() -> None:
    empty = pd.DataFrame({"step": [0], "epoch": [0]})
    assert draw_curves(empty, 64) is None
    assert draw_land_cover(empty, 64, [False] * 13) is None

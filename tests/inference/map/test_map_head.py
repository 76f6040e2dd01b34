"""Heads come out of checkpoints as the tasks that they were, and nothing else does."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from saved_heads import NANO, save, seeded
from torchgeo.tasks import ChangeDetection, Classification, PixelwiseRegression, Regression, SemanticSegmentation

from refusals import refused
from terrafm_tg.inference.map.head import TunedHead, load_head
from terrafm_tg.models import build_encoder, export_encoder
from terrafm_tg.tasks import (
    FineTuneChangeDetection,
    FineTuneClassification,
    FineTuneSegmentation,
    TerraFM,
    TerraFMPixelwiseRegression,
    TerraFMSegmentation,
)
from terrafm_tg.tasks.finetune.task import TRAINED_ON

S2 = f"{NANO}_s2l2a"
TORCHGEO: dict[str, Any] = {"backbone": S2, "in_channels": 12}
# fmt: off
TASKS: dict[str, tuple[Any, dict[str, Any], tuple[str, bool, int, int]]] = {
    "classes": (FineTuneClassification, {"model": NANO, "num_classes": 3}, ("multiclass", True, 1, 3)),
    "labels": (FineTuneClassification, {"model": NANO, "task": "multilabel", "num_labels": 5},
               ("multilabel", True, 1, 5)),
    "pixels": (FineTuneSegmentation, {"model": NANO, "num_classes": 4, "decoder": "linear"},
               ("multiclass", False, 1, 4)),
    "head": (TerraFMSegmentation, {"model": "linear", "backbone": NANO, "num_classes": 2}, ("multiclass", False, 1, 2)),
    "numbers": (TerraFMPixelwiseRegression, {"model": "linear", "backbone": NANO}, ("regression", False, 1, 1)),
    "change": (FineTuneChangeDetection, {"model": "upernet", **TORCHGEO}, ("binary", False, 2, 1)),
    "torchgeo pixels": (SemanticSegmentation, {"model": "upernet", "num_classes": 3, **TORCHGEO},
                        ("multiclass", False, 1, 3)),
    "torchgeo binary": (SemanticSegmentation, {"model": "segformer", "task": "binary", "loss": "bce", **TORCHGEO},
                        ("binary", False, 1, 1)),
    "torchgeo change": (ChangeDetection, {"model": "upernet", **TORCHGEO}, ("binary", False, 2, 1)),
    "torchgeo siamese": (ChangeDetection, {"model": "fcsiamdiff", "task": "multiclass", "num_classes": 3, "loss": "ce",
                                           **TORCHGEO}, ("multiclass", False, 2, 3)),
    "torchgeo classes": (Classification, {"model": S2, "in_channels": 12, "num_classes": 2},
                         ("multiclass", True, 1, 2)),
    "torchgeo number": (Regression, {"model": S2, "in_channels": 12, "num_outputs": 2}, ("regression", True, 1, 2)),
    "torchgeo numbers": (PixelwiseRegression, {"model": "upernet", **TORCHGEO}, ("regression", False, 1, 1)),
}
# fmt: on


@pytest.mark.parametrize("name", TASKS)
def test_a_task_comes_back_as_itself(name: str, tmp_path: Path) -> None:
    """Class, settings and tensors; the checkpoint's words are no more than data."""
    kind, settings, (outcome, tile, dates, outputs) = TASKS[name]
    seeded()
    task = kind(**settings)
    head = load_head(save(task, tmp_path / "x.ckpt"))
    assert type(head.task) is kind
    assert (head.kind, head.tile, head.dates, head.outputs) == (outcome, tile, dates, outputs)
    state = head.task.state_dict()
    assert state.keys() == task.state_dict().keys()
    assert all(torch.equal(state[key], x) for key, x in task.state_dict().items())
    assert not head.task.training


def test_bands_statistics_and_names_are_the_checkpoints(tmp_path: Path) -> None:
    statistics = {"s2l1c": {"mean": [1.0] * 12, "std": [2.0] * 12}}
    task = FineTuneSegmentation(
        NANO, modalities=["s2l1c"], bands=["B08", "B04", "B10"], labels=["a", "b"], statistics=statistics
    )
    head = load_head(save(task, tmp_path / "x.ckpt"))
    assert head.bands == {"s2l1c": ("B08", "B04", "B10")}
    assert head.statistics == statistics
    assert head.names == ("a", "b")
    assert load_head(tmp_path / "x.ckpt", labels=["x", "y"]).names == ("x", "y")
    with refused(match="`labels` names 3, and the head predicts 2"):
        load_head(tmp_path / "x.ckpt", labels=["x", "y", "z"])


def test_the_modality_is_that_of_the_backbone_or_of_the_training(tmp_path: Path) -> None:
    head = TerraFMSegmentation(
        "linear",
        NANO,
        in_channels=13,
        modality="s2l1c",
        bands=[*["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]],
        num_classes=2,
    )
    assert list(load_head(save(head, tmp_path / "a.ckpt")).bands) == ["s2l1c"]
    assert list(
        load_head(save(TerraFMSegmentation("linear", NANO, in_channels=2, num_classes=2), tmp_path / "b.ckpt")).bands
    ) == ["s1rtc"]
    save(FineTuneSegmentation(NANO), tmp_path / "c.ckpt")
    assert list(load_head(tmp_path / "c.ckpt").bands) == ["s1rtc", "s2l1c", "s2l2a"]
    content = torch.load(tmp_path / "c.ckpt", weights_only=True)
    content[TRAINED_ON]["image_size"] = {"image_s2l1c": [96, 96], "image_s1rtc": [96, 96]}
    content[TRAINED_ON]["input_size"] = {"image_s2l1c": [224, 224], "image_s1rtc": [224, 224]}
    torch.save(content, tmp_path / "d.ckpt")
    found = load_head(tmp_path / "d.ckpt")
    assert list(found.bands) == ["s1rtc", "s2l1c"]
    assert (found.image_size, found.input_size) == (96, 224)


def test_names_of_a_binary_head(tmp_path: Path) -> None:
    task = SemanticSegmentation("upernet", S2, in_channels=12, task="binary", loss="bce", labels=["flood"])
    assert load_head(save(task, tmp_path / "x.ckpt")).names == ("not flood", "flood")
    assert load_head(tmp_path / "x.ckpt", labels=["dry", "wet"]).names == ("dry", "wet")


class OwnTask(SemanticSegmentation):
    """A task of a user's own, with a setting that TorchGeo's has not."""

    def __init__(self, *args: Any, depth_of_snow: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_a_class_of_the_users_own_is_taken_by_the_users_word_alone(tmp_path: Path) -> None:
    path = save(OwnTask("upernet", S2, in_channels=12, num_classes=2, depth_of_snow=3), tmp_path / "x.ckpt")
    with refused(match="is of no task that is known: .* name its class with `task`"):
        load_head(path)
    assert type(load_head(path, task=f"{__name__}.OwnTask").task) is OwnTask
    for wrong, why in (
        ("no.such.Task", "cannot be imported"),
        ("os.path.join", "no task of TorchGeo"),
        ("Nope", "cannot"),
    ):
        with refused(match=why):
            load_head(path, task=wrong)


def test_what_is_no_task_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pretraining = save(TerraFM(NANO), tmp_path / "pretraining.ckpt")
    with refused(match="is of pretraining and has no head: .*`terrafm embed`"):
        load_head(pretraining)
    torch.save(build_encoder(NANO).state_dict(), tmp_path / "nano.pth")
    exported = export_encoder(tmp_path / "nano.pth", tmp_path / "encoder")[1]
    with refused(match="is of no task that is known"):
        load_head(exported)
    with refused(match="is no checkpoint of a fine-tuned task"):
        load_head(tmp_path / "nano.pth")
    (tmp_path / "page.ckpt").write_text("<!doctype html>")
    with refused(match="a web page"):
        load_head(tmp_path / "page.ckpt")
    with refused(match="no checkpoint .*none.ckpt"):
        load_head(tmp_path / "none.ckpt")


def test_tensors_that_do_not_fit_are_said(tmp_path: Path) -> None:
    content = torch.load(save(FineTuneSegmentation(NANO), tmp_path / "x.ckpt"), weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "y.ckpt")
    with refused(match="fits no task .of the nearest, FineTuneSegmentation: .*Missing key"):
        load_head(tmp_path / "y.ckpt")


def test_a_folder_has_one_checkpoint_to_take(tmp_path: Path) -> None:
    with refused(match="holds no checkpoint"):
        load_head(tmp_path)
    deep = tmp_path / "version_0" / "checkpoints"
    save(FineTuneSegmentation(NANO, num_classes=2), deep / "last.ckpt")
    assert load_head(tmp_path).outputs == 2
    save(FineTuneSegmentation(NANO, num_classes=3), deep / "epoch=1.ckpt")
    assert load_head(tmp_path).outputs == 3
    save(FineTuneSegmentation(NANO, num_classes=3), deep / "epoch=2.ckpt")
    with refused(match="holds 2 checkpoints, such as version_0/checkpoints/epoch=1.ckpt and"):
        load_head(tmp_path)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_nothing_that_a_checkpoint_says_is_run_or_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SemanticSegmentation("upernet", S2, in_channels=12, num_classes=2)
    good = torch.load(save(task, tmp_path / "good.ckpt"), weights_only=True)

    def written(**changes: Any) -> Path:
        settings = good["hyper_parameters"] | changes
        torch.save(good | {"hyper_parameters": settings}, tmp_path / "bad.ckpt")
        return tmp_path / "bad.ckpt"

    with refused(match="only tensors and plain values"):
        load_head(written(labels=Trap(tmp_path / "mark")))
    assert not (tmp_path / "mark").exists()
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    for backbone in ("tu-hf-hub:evil/model", "hf_hub:evil/model", "../up", "C:\\x"):
        with refused(match="may name a model that is installed"):
            load_head(written(backbone=backbone))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    head = load_head(written(weights=str(weights), _instantiator="os.mkdir", _class_path="os.mkdir"))
    assert isinstance(head, TunedHead)
    assert not (tmp_path / "mark").exists()
    sensor = torch.load(save(FineTuneSegmentation(NANO), tmp_path / "own.ckpt"), weights_only=True)
    sensor["hyper_parameters"]["statistics"] = str(weights)
    torch.save(sensor, tmp_path / "own.ckpt")
    with refused(match="names a file of statistics, which is not opened"):
        load_head(tmp_path / "own.ckpt")


def test_a_model_that_is_no_terrafm_needs_the_users_word(tmp_path: Path) -> None:
    task: LightningModule = SemanticSegmentation("unet", "resnet18", in_channels=3, num_classes=2)
    path = save(task, tmp_path / "x.ckpt")
    with refused(match="Nothing says what images .* 'resnet18' is no TerraFM: give `model_modality`"):
        load_head(path)
    with refused(match="reads 3 channels, and `model_bands` of s2l2a are 12"):
        load_head(path, modality="s2l2a")
    head = load_head(path, modality="s2l2a", bands=["B4", "B3", "B2"])
    assert head.bands == {"s2l2a": ("B04", "B03", "B02")}
    assert not head.ours
    own = save(FineTuneSegmentation(NANO), tmp_path / "y.ckpt")
    with refused(match="says itself what it reads"):
        load_head(own, modality="s2l2a")

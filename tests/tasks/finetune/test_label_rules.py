"""Ignored labels, lone samples, odd batches and wrong lengths of settings: as `terrafm bench` counts them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import SIZE, images, loader, samples, scores
from tiny_terrafm import trainer
from torch import Tensor, nn
from torchgeo.tasks.mixins import ClassificationMixin

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks import (
    FineTuneChangeDetection,
    FineTuneClassification,
    FineTuneSegmentation,
    TerraFMPixelwiseRegression,
    TerraFMSegmentation,
)
from terrafm_tg.tasks.finetune.losses import LabelLoss
from terrafm_tg.tasks.finetune.metrics import EpochScores


def classification(**settings: Any) -> FineTuneClassification:
    return FineTuneClassification("terrafm_tiny", **{"modalities": ["s1rtc"], "depth": 1} | settings)


def segmentation(**settings: Any) -> FineTuneSegmentation:
    return FineTuneSegmentation("terrafm_tiny", modalities=["s1rtc"], depth=1, **settings)


def change(**settings: Any) -> FineTuneChangeDetection:
    kind = {"model": "upernet", "task": "multiclass", "loss": "ce"}
    return FineTuneChangeDetection(backbone="terrafm_tiny_s1rtc", in_channels=2, **kind | settings)


def dense(**settings: Any) -> TerraFMSegmentation:
    return TerraFMSegmentation(backbone="terrafm_tiny_s1rtc", in_channels=2, **settings)


def regression(**settings: Any) -> TerraFMPixelwiseRegression:
    return TerraFMPixelwiseRegression("upernet", "terrafm_tiny_s1rtc", in_channels=2, **settings)


# M1: a batch of one.
@pytest.mark.parametrize("size", [16, 32, 224])
@pytest.mark.parametrize("make", [segmentation, change, dense, regression])
def test_a_batch_of_one_sample_is_learnt(make: Any, size: int) -> None:
    task = make(**({} if make is regression else {"num_classes": 3})).train()
    task.log = lambda *args, **kwargs: None  # there is no trainer
    dates, one = ((2,), (1,)) if make is change else ((), ())
    batch = {"image": torch.rand(1, *dates, 2, size, size), "mask": torch.randint(3, (1, *one, size, size))}
    task.training_step(batch, 0).backward()
    learnt = [p for p in task.model.decoder.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert learnt
    assert all(p.grad.isfinite().all() for p in learnt)


# M2: labels that are not known.
def test_an_ignored_label_is_in_neither_loss_nor_metrics(tmp_path: Path) -> None:
    label = torch.tensor([[1, 0, -1], [0, -1, 1], [1, 1, 0], [-1, 0, 0]])
    data = loader(samples(4, image=images(2, 4), label=label))
    task = classification(task="multilabel", num_labels=3, ignore_index=-1)
    nn.init.normal_(task.model.head.weight, std=0.1)
    run = trainer(tmp_path)
    (probability,) = run.predict(task, data)
    run.test(task, data, verbose=False)
    known = label >= 0
    expected = nn.functional.binary_cross_entropy(probability[known], label[known].float())
    assert float(run.callback_metrics["test_loss"]) == pytest.approx(float(expected), rel=1e-5)
    right = ((probability > 0.5) == label.bool())[known]
    assert float(run.callback_metrics["test_OverallAccuracy"]) == pytest.approx(float(right.float().mean()))
    run.fit(task, data)
    assert run.callback_metrics["train_loss"] > 0


# M3: nothing that counts.
@pytest.mark.parametrize("make", [segmentation, change, dense])
@pytest.mark.parametrize("loss", ["ce", "focal", "dice"])
def test_a_batch_of_ignored_pixels_alone_counts_nothing(make: Any, loss: str, tmp_path: Path) -> None:
    task = make(num_classes=2, ignore_index=255, loss=loss, freeze_backbone=True)
    dates, one = ((2,), (1,)) if make is change else ((), ())
    mask = torch.randint(2, (4, *one, SIZE, SIZE))
    image = 0.5 + 0.2 * torch.randn(4, *dates, 2, SIZE, SIZE)
    some = samples(2, image=image[:2], mask=mask[:2])
    none = samples(2, image=image[2:], mask=torch.full_like(mask[2:], 255))
    found = []
    for data in (some, some + none):
        run = trainer(tmp_path)
        run.validate(task, loader(data, 2), verbose=False)
        found.append({name: float(value) for name, value in run.callback_metrics.items()})
    assert found[1] == pytest.approx(found[0], nan_ok=True)
    assert found[1]["val_loss"] == found[1]["val_loss"]  # no NaN
    run.fit(task, loader(none, 2), loader(some, 2))
    assert all(p.isfinite().all() for p in task.parameters())
    before = {name: p.clone() for name, p in task.named_parameters()}
    trainer(tmp_path).fit(task, loader(some, 2), loader(some, 2))
    changed = [name for name, p in task.named_parameters() if not torch.equal(p, before[name])]
    assert changed
    assert not any("encoder." in name for name in changed)


# M4: an ignored class among the others.
def test_an_ignored_class_has_no_score_of_its_own(tmp_path: Path) -> None:
    """Class 1 is half right, class 2 right."""
    mask, predicted = torch.tensor([[[0, 0, 1, 1, 2, 2]]]), torch.tensor([[[1, 2, 1, 0, 2, 2]]])
    logits = 5.0 * nn.functional.one_hot(predicted, 3).movedim(-1, 1)
    bench = {row.metric: row.score for row in scores("segmentation", logits, mask, 3, ignore_index=0)}
    assert bench["balanced-accuracy"] == pytest.approx(75.0)
    assert bench["macro-f1"] == pytest.approx(83.333, abs=1e-3)
    for make in (segmentation, dense, change):
        task = make(num_classes=3, ignore_index=0)
        task.val_metrics(logits, mask)
        found = task.val_metrics.compute()
        assert float(found["val_AverageAccuracy"]) == pytest.approx(0.75)
        assert float(found["val_AverageF1Score"]) == pytest.approx(0.83333, abs=1e-4)
        assert float(found["val_AverageJaccardIndex"]) == pytest.approx(bench["miou"] / 100)
        assert found["val_ClasswiseAccuracy_0"].isnan()
        assert float(found["val_OverallAccuracy"]) == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_where_every_class_occurs_the_metrics_are_torchgeos(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (40,) if kind == "binary" else (40, 3)
    logits = torch.randn(shape, generator=generator)
    highest, places = 3 if kind == "multiclass" else 2, (40, 3) if kind == "multilabel" else (40,)
    target = torch.randint(highest, places, generator=generator)
    settings = {"task": kind, "num_classes": 3, "num_labels": 3, "labels": None, "ignore_index": None}
    torchgeos = ClassificationMixin()
    torchgeos.save_hyperparameters(settings)
    torchgeos.configure_metrics()
    theirs, ours = torchgeos.val_metrics, EpochScores(kind, 1 if kind == "binary" else 3, prefix="val_")
    theirs.update(logits, target)
    ours.update(logits, target)
    expected = {name: float(value) for name, value in theirs.compute().items()}
    assert {name: float(value) for name, value in ours.compute().items()} == pytest.approx(expected, abs=1e-6)


# M5: lengths, and other settings that do not fit.
@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (segmentation, {"num_classes": 3, "class_weights": [1.0, 2.0]}, "`class_weights` has 2 numbers for 3 classes"),
        (segmentation, {"num_classes": 3, "labels": ["a", "b"]}, "`labels` names a, b, but there are 3 classes"),
        (segmentation, {"num_classes": 2, "labels": ["a", "a"]}, "`labels` names a, a, but there are 2 classes"),
        (classification, {"num_classes": 3, "class_weights": [1.0] * 4}, "`class_weights` has 4 numbers for 3"),
        (classification, {"num_classes": 3, "labels": ["a", "b"]}, "there are 3 classes: give each a name"),
        (classification, {"task": "multilabel", "num_labels": 3, "pos_weight": [1.0, 2.0]}, "`pos_weight` has 2"),
        (classification, {"num_classes": 3, "modalities": ["s3", "s1rtc"]}, "s3"),
        (classification, {"task": "multilabel"}, "`task: multilabel` needs `num_labels`"),
        (classification, {"num_classes": 3, "mixup": 0.8, "ignore_index": -1}, "which Mixup and CutMix cannot mix"),
        (dense, {"num_classes": 3, "class_weights": [1.0, 2.0]}, "`class_weights` has 2 numbers for 3 classes"),
        (dense, {"num_classes": 3, "labels": ["a", "b"]}, "there are 3 classes"),
        (change, {"num_classes": 3, "labels": ["a", "b"]}, "there are 3 classes"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence(make: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TerraFMError, match=said) as error:
        make(**settings)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("loss", ["ce", "bce", "focal", "dice", "jaccard"])
def test_a_loss_is_that_of_what_counts(kind: str, loss: str) -> None:
    """An ignored part counts as if it were not there; if all is ignored, the loss is 0."""
    if (loss == "ce") != (kind == "multiclass") and loss in ("ce", "bce"):
        return
    torch.manual_seed(0)
    shape = (2, 4, 4) if kind == "binary" else (2, 3, 4, 4)
    logits: Tensor = torch.randn(shape, requires_grad=True)
    target = torch.randint(3 if kind == "multiclass" else 2, (2, 4, 4) if kind != "multilabel" else shape)
    target[..., 2:] = 7
    count = 1 if kind == "binary" else 3
    found = LabelLoss(kind, count, loss, ignore_index=7)(logits, target)
    expected = LabelLoss(kind, count, loss)(logits[..., :2], target[..., :2].clone())
    torch.testing.assert_close(found, expected)
    nothing = LabelLoss(kind, count, loss, ignore_index=7)(logits, torch.full_like(target, 7))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_class_weights_are_torchs_mean() -> None:
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, -1, 2])
    weights = [1.0, 2.0, 5.0]
    for smoothing in (0.0, 0.2):
        found = LabelLoss("multiclass", 3, "ce", -1, weights, smoothing=smoothing)(logits, target)
        known = nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing)
        torch.testing.assert_close(found, known(logits[target >= 0], target[target >= 0]))

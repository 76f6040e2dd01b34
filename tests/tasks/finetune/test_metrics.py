"""Metrics of benchmarks against scikit-learn and torchmetrics."""

import warnings

import numpy as np
import pytest
import torch
from finetune_runs import scores
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.finetune.metrics import Metrics, NotFiniteError


def found(rows, average="true"):
    return {row.metric: row.score for row in rows if row.average == average}


def classes(seed, n, number, shape=()):
    """Logits and classes; of more than three classes the last but one never occurs in the target."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, number, *shape, generator=generator)
    target = torch.randint(number, (n, *shape), generator=generator)
    if number > 3:
        target[target == number - 2] = 0
    return logits, target


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 8))
def test_classes_equal_sklearn(seed, n, number):
    logits, target = classes(seed, n, number)
    predicted = logits.argmax(1)
    rows = scores("multiclass", logits, target, number, headline="accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted only
        expected = {
            "accuracy": sk.accuracy_score(target, predicted),
            "balanced-accuracy": sk.balanced_accuracy_score(target, predicted),
            "macro-f1": sk.f1_score(target, predicted, average="macro"),
        }
        recall = sk.recall_score(target, predicted, average=None, labels=range(number), zero_division=np.nan)
    assert found(rows) == pytest.approx({name: 100 * value for name, value in expected.items()})
    best = next(row for row in rows if row.headline)
    assert best.metric == "accuracy"
    assert best.confusion == sk.confusion_matrix(target, predicted, labels=range(number)).tolist()
    assert best.per_class == pytest.approx(100 * recall, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6), st.sampled_from([None, 255, 0]))
def test_pixels_equal_torchmetrics_and_sklearn(seed, n, number, ignore):
    logits, target = classes(seed, n, number, (5, 7))
    if ignore == 255:
        target[torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.3] = 255
    target[0, 0, 0] = 1  # at least one counts
    rows = scores("segmentation", logits, target, number, ignore, headline="miou")
    got = found(rows)
    jaccard = tm.multiclass_jaccard_index(logits, target, number, ignore_index=ignore)
    assert got["miou"] == pytest.approx(100 * jaccard.item(), abs=1e-4)
    known = (target != ignore) if ignore is not None else torch.ones_like(target, dtype=torch.bool)
    true, predicted = target[known].numpy(), logits.argmax(1)[known].numpy()
    assert got["accuracy"] == pytest.approx(100 * sk.accuracy_score(true, predicted))
    present = sk.jaccard_score(true, predicted, average="macro", labels=np.unique(true))
    assert got["miou-present"] == pytest.approx(100 * present)
    each = sk.jaccard_score(true, predicted, average=None, labels=range(number), zero_division=0)
    each[[kind == ignore or kind not in {*true, *predicted} for kind in range(number)]] = np.nan
    (best,) = (row for row in rows if row.headline)
    assert best.per_class == pytest.approx(100 * each, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.sampled_from([1.0, 30.0, 300.0]))
def test_labels_equal_sklearn(seed, n, number, scale):
    """Also at logits of hundreds, where a sigmoid makes most of them equal."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, number, generator=generator)
    target = torch.randint(2, (n, number), generator=generator)
    target[0, 0] = 1
    target[:, -1] *= number == 1  # the last of several labels never occurs
    rows = scores("multilabel", logits, target, number, headline="map")
    predicted = logits > 0
    occurs = (target.bool() | predicted).any(0)
    positive = target.any(0)
    expected = {
        "f1": sk.f1_score(target, predicted, average="micro"),
        "macro-f1": sk.f1_score(target[:, occurs], predicted[:, occurs], average="macro", zero_division=0)
        if occurs.sum() > 1
        else sk.f1_score(target[:, 0], predicted[:, 0]),
        "map": sk.average_precision_score(target, logits, average="micro"),
        "macro-map": np.mean(
            [sk.average_precision_score(target[:, label], logits[:, label]) for label in positive.nonzero()[:, 0]]
        ),
    }
    assert found(rows) == pytest.approx({name: 100 * value for name, value in expected.items()})
    if scale == 1:
        torchs = tm.multilabel_average_precision(logits, target, number, average="micro")
        assert found(rows)["map"] == pytest.approx(100 * torchs.item(), abs=1e-3)


def test_per_batch_is_the_mean_of_batches_weighted_by_their_samples():
    """As Lightning logs `jaccard_index(output, target)` of every step, which Copernicus-Bench reports."""
    logits, target = classes(3, 10, 4, (6, 6))
    target[:, :2] = 9
    parts = [
        (len(part), tm.multiclass_jaccard_index(x, part, 4, ignore_index=9))
        for x, part in zip(logits.split(4), target.split(4), strict=True)
    ]
    expected = sum(n * value.item() for n, value in parts) / 10
    rows = scores("segmentation", logits, target, 4, 9, batch=4, headline="miou")
    assert found(rows, "per-batch")["miou"] == pytest.approx(100 * expected, abs=1e-4)
    assert found(rows)["miou"] != pytest.approx(found(rows, "per-batch")["miou"], abs=1e-3)
    assert set(found(rows)) == set(found(rows, "per-batch"))
    assert [row.average for row in rows if row.headline] == ["true"]


def test_per_batch_accuracy_and_average_precision():
    logits, target = classes(5, 11, 3)
    rows = scores("multiclass", logits, target, 3, batch=4, headline="oa")
    assert found(rows, "per-batch")["oa"] == pytest.approx(found(rows)["oa"])  # a mean of samples either way
    several = torch.randint(2, (11, 3), generator=torch.Generator().manual_seed(0))
    rows = scores("multilabel", logits, several, 3, batch=4, headline="map")
    expected = sum(
        len(t) * sk.average_precision_score(t, x, average="micro")
        for x, t in zip(logits.split(4), several.split(4), strict=True)
    )
    assert found(rows, "per-batch")["map"] == pytest.approx(100 * expected / 11)


def test_a_batch_of_ignored_pixels_alone_has_no_score():
    logits, target = classes(1, 4, 3, (4, 4))
    target[2:] = 255
    rows = scores("segmentation", logits, target, 3, 255, batch=2)
    some = scores("segmentation", logits[:2], target[:2], 3, 255, batch=2)
    assert found(rows, "per-batch") == found(some, "per-batch")
    assert found(rows) == found(some)
    with pytest.raises(TerraFMError, match="No sample has a class that counts"):
        scores("segmentation", logits, torch.full_like(target, 255), 3, 255)


def test_iou_of_the_second_of_two_classes():
    logits, target = classes(0, 3, 2, (4, 4))
    rows = scores("segmentation", logits, target, 2, classes=("background", "landslide"))
    assert found(rows)["iou_landslide"] == pytest.approx(
        100 * sk.jaccard_score(target.flatten(), logits.argmax(1).flatten())
    )


def test_counts_do_not_grow_with_the_pixels():
    metrics = Metrics("segmentation", 3, headline="miou")
    for _ in range(3):
        metrics.update(torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)))
    assert metrics.confusion.shape == (3, 3)
    assert metrics.confusion.sum() == 3 * 2 * 64 * 64
    assert not metrics.ranked


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(kind, bad):
    logits = torch.zeros(4, 3)
    logits[1, 2] = bad
    target = torch.zeros(4, dtype=torch.long) if kind == "multiclass" else torch.zeros(4, 3, dtype=torch.long)
    with pytest.raises(NotFiniteError, match="1 of 12 logits are NaN or infinite: lower"):
        scores(kind, logits, target, 3)


FOUR = torch.tensor([0, 1, 2, 2])


@pytest.mark.parametrize(
    ("kind", "prediction", "target", "headline", "message"),
    [
        ("multiclass", torch.zeros(4, 3), FOUR + 1, None, "value 3, expected 0 to 2"),
        ("multiclass", torch.zeros(4, 3), FOUR - 1, None, "value -1, expected 0 to 2"),
        ("multiclass", torch.zeros(4, 5), FOUR, None, r"shape \(4, 5\) and the targets \(4,\)"),
        ("multiclass", torch.zeros(3, 3), FOUR, None, r"shape \(3, 3\) and the targets \(4,\)"),
        ("multilabel", torch.randn(3, 3), torch.zeros(3, 3, dtype=torch.long), "map", r"'map'.*one positive label"),
        ("segmentation", torch.zeros(4, 3), FOUR, "map", "'map' is none of segmentation: use one of accuracy, .*miou"),
    ],
)
def test_what_does_not_fit(kind, prediction, target, headline, message):
    with pytest.raises(TerraFMError, match=message):
        scores(kind, prediction, target, 3, headline=headline)

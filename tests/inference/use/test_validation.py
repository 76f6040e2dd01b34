"""Cross-validation in space: nothing near is learned from, and the score is no better than it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from terrafm_tg.inference.use.labels import Labels
from terrafm_tg.inference.use.validation import spatial_folds, validate
from terrafm_tg.inference.use.vectors import distances


def make(n: int, classes: int = 3, seed: int = 0, spread: float = 0.5, x: np.ndarray | None = None) -> Labels:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    lon, lat = 13 + spread * rng.random(n), 52 + spread * rng.random(n)
    own = rng.normal(size=(n, 6)) if x is None else x
    return Labels(tuple("abcdefgh"[:classes]), own.astype(np.float32), y, np.arange(n), lon, lat, ())


def knn(x: np.ndarray, y: np.ndarray) -> KNeighborsClassifier:
    return KNeighborsClassifier(1).fit(x, y)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.floats(0, 30_000), st.integers(0, 99))
def test_every_label_is_tested_once_far_from_what_is_learned(n: int, buffer: float, seed: int) -> None:
    labels = make(n, seed=seed)
    folds = spatial_folds(labels, buffer)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(n))
    assert len(folds) == (n if n <= 30 else 10)
    for train, test in folds:
        away = np.array([distances(labels.lon[train], labels.lat[train], labels.lon[i], labels.lat[i]) for i in test])
        rest = np.setdiff1d(np.arange(n), test)
        all_away = np.array([distances(labels.lon[rest], labels.lat[rest], labels.lon[i], labels.lat[i]) for i in test])
        assert (away > buffer).all()
        assert len(train) == (all_away.min(0) > buffer).sum()


def test_a_polygon_is_one_place() -> None:
    labels = make(12)
    one = labels.__class__(**labels.__dict__ | {"place": np.arange(12) // 3, "y": np.arange(12) // 6})
    assert [fold.test.tolist() for fold in spatial_folds(one, 0)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_scores_are_scikit_learns() -> None:
    labels = make(24, seed=3)
    predicted = []
    for i in range(24):
        away = distances(labels.lon, labels.lat, labels.lon[i], labels.lat[i])
        predicted.append(knn(labels.x[away > 5000], labels.y[away > 5000]).predict(labels.x[i : i + 1])[0])
    score = validate(labels, knn, 5000)
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels.y, predicted))
    assert score.accuracy == pytest.approx((labels.y == predicted).mean())
    assert np.sum(score.confusion) == 24
    assert score.confusion[0][1] == sum(p == 1 for p, y in zip(predicted, labels.y, strict=True) if y == 0)
    assert score.majority == pytest.approx(1 / 3)
    assert score.places == (8, 8, 8)


def test_noise_is_no_better_than_a_guess() -> None:
    """The interval holds chance, in nearly all of many draws."""
    scores = [validate(make(21, seed=seed), knn, 1000) for seed in range(40)]
    inside = [score.low <= 1 / 3 <= score.high for score in scores]
    assert np.mean(inside) >= 0.85
    assert np.mean([score.balanced_accuracy for score in scores]) == pytest.approx(1 / 3, abs=0.06)
    assert "so it may be no better" in next(s for s in scores if s.low <= s.guess).words


def test_neighbors_that_share_pixels_do_not_flatter() -> None:
    """Embeddings that follow the place alone: pairs of one class 100 m apart score 1 unless the buffer parts them."""
    rng = np.random.default_rng(0)
    base = np.repeat(rng.normal(size=(14, 6)), 2, axis=0)
    labels = make(28, 2, x=base + 0.01 * rng.normal(size=base.shape))
    lon, lat = (np.repeat(part[:14], 2) + np.tile([0, 0.001], 14) for part in (labels.lon, labels.lat))
    near = labels.__class__(**labels.__dict__ | {"lon": lon, "lat": lat, "y": np.repeat(rng.permutation(14) % 2, 2)})
    assert validate(near, knn, 0).balanced_accuracy == 1
    honest = validate(near, knn, 500)
    assert honest.balanced_accuracy < 0.8


def test_a_polygon_counts_as_much_as_a_point() -> None:
    labels = make(8, 2)
    x = np.array([[0], [1], [0], [0], [0], [0], [0], [1]], float)  # the polygon of class b (4 pixels) is wrong
    changed = {"x": x, "y": np.array([0, 1, 0, 1, 1, 1, 1, 1]), "place": np.array([0, 1, 2, 3, 3, 3, 3, 4])}
    score = validate(labels.__class__(**labels.__dict__ | changed), knn, 0)
    assert score.places == (2, 3)
    assert score.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("y", "spread", "tested", "said"),
    [
        ([0, 0, 0, 1, 1, 2], 0.5, ("a", "b"), "c: one label only"),
        ([0, 0, 0, 1], 0.5, (), "b: one label only"),
        ([0, 0, 1, 1], 0.001, (), "a and b: no two labels further apart than 5,000 m"),
    ],
)
def test_what_cannot_be_tested_is_said(y: list[int], spread: float, tested: tuple[str, ...], said: str) -> None:
    labels = make(len(y), spread=spread)
    own = {"y": np.array(y), "classes": tuple("abc"[: max(y) + 1])}
    score = validate(labels.__class__(**labels.__dict__ | own), knn, 5000 if spread < 0.1 else 100)
    assert score.tested == tested
    assert said in " ".join(score.said)
    if not tested:
        assert score.balanced_accuracy is None
        assert score.words == "Not scored: no label could be tested."
        assert score.to_dict()["low"] is None

"""Scores of a set of embeddings."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import one_hot

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import knn, scores
from terrafm_tg.evaluation.knn import accuracy, balanced_accuracy, chance, knn_predict, knn_votes
from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL, TileFeatures, recall, score
from terrafm_tg.models.embedding import FUSED

SENSORS = ("s1rtc", "s2l1c", "s2l2a")


def world(n: int, seed: int, widths: dict[str, int] | None = None, gap: float = 0.0) -> dict[str, TileFeatures]:
    """Tiles of four classes that all sensors see with their own noise; `gap` moves each sensor aside."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=generator)
    place = 3 * torch.eye(4, 16)[label] + torch.randn(n, 16, generator=generator)
    result = {}
    for i, name in enumerate((*SENSORS, FUSED)):
        x = place + 0.3 * torch.randn(n, 16, generator=generator) + gap * torch.eye(16)[i + 8]
        result[name] = TileFeatures(x[:, : (widths or {}).get(name, 16)], torch.arange(n), label)
    return result


def _frame(*args: object, **kwargs: object) -> pd.DataFrame:
    return pd.DataFrame(score(*args, **kwargs))


def test_every_sensor_every_ordered_pair_every_task():
    frame = _frame(world(200, 0), world(100, 1))
    pairs = {(a, b) for a in SENSORS for b in SENSORS if a != b}
    tasks = frame.groupby("task")[["bank", "query"]].apply(lambda part: set(zip(part.bank, part["query"], strict=True)))
    assert tasks[KNN] == {(name, name) for name in (*SENSORS, FUSED)}
    assert tasks[CROSS_SENSOR] == tasks[RETRIEVAL] == pairs
    assert frame.score.between(0, 1).all()
    assert (frame.score > frame.chance + 0.2).all(), "sensors that see the same place must agree"
    assert frame[frame.task == RETRIEVAL].chance.unique().tolist() == [0.1]
    assert len(frame) == 2 * 4 + 2 * 6 + 6


def test_embeddings_of_different_width_are_not_compared():
    widths = {"s1rtc": 4, "s2l1c": 12, "s2l2a": 12}
    frame = _frame(world(200, 0, widths), world(100, 1, widths))
    across = frame[frame.task != KNN]
    assert set(zip(across.bank, across["query"], strict=True)) == {("s2l1c", "s2l2a"), ("s2l2a", "s2l1c")}


def test_unknown_land_cover_votes_nowhere_and_counts_nowhere():
    bank, query = world(200, 0), world(100, 1)
    half = torch.arange(100) % 2 == 0
    partly = {name: t._replace(land_cover=t.land_cover.where(half, -1)) for name, t in query.items()}
    expected = _frame(bank, {name: t.select(half) for name, t in query.items()})
    got = _frame(bank, partly)
    pd.testing.assert_frame_equal(got[got.task != RETRIEVAL], expected[expected.task != RETRIEVAL])
    nowhere = {name: t._replace(land_cover=torch.full_like(t.land_cover, -1)) for name, t in query.items()}
    assert set(_frame(bank, nowhere).task) == {RETRIEVAL}


def test_a_gap_between_sensors_shows_in_cross_sensor_rows_only():
    near, far = _frame(world(200, 0), world(100, 1)), _frame(world(200, 0, gap=50), world(100, 1, gap=50))
    means = [frame[frame.metric == "accuracy"].groupby("task").score.mean() for frame in (near, far)]
    assert means[1][KNN] == pytest.approx(means[0][KNN], abs=0.1)
    assert means[1][CROSS_SENSOR] < means[0][CROSS_SENSOR] - 0.1


def test_a_sensor_without_tiles_and_pairs_without_common_tile_give_no_row():
    bank, query = world(50, 0), world(40, 1)
    del query["s1rtc"]
    query["s2l1c"] = query["s2l1c"]._replace(row=torch.arange(1000, 1040))
    frame = _frame(bank, query)
    assert "s1rtc" not in set(frame["query"])
    assert RETRIEVAL not in set(frame.task)


def _tiles(x: torch.Tensor, rows: list[int] | torch.Tensor) -> TileFeatures:
    rows = torch.as_tensor(rows)
    return TileFeatures(x, rows, torch.zeros_like(rows))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equals_a_sort(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "CHUNK", 7)
    rng = np.random.default_rng(0)
    place = rng.standard_normal((120, 8))
    a, b = (place + rng.standard_normal((120, 8)) for _ in range(2))
    rows_a, rows_b = rng.permutation(150)[:120], rng.permutation(150)[:120]
    found = []
    for x, row in zip(a, rows_a, strict=True):
        if row in rows_b:
            cosine = b @ x / np.linalg.norm(b, axis=1) / np.linalg.norm(x)
            found.append(row in rows_b[np.argsort(-cosine)[:k]])
    value, chance, count = recall(_tiles(torch.tensor(a), rows_a), _tiles(torch.tensor(b), rows_b), k=k)
    assert value == pytest.approx(np.mean(found))
    assert (chance, count) == (pytest.approx(k / 120), len(found))


def test_one_point_for_all_tiles_finds_nothing_and_no_common_tile_is_not_a_number():
    points = _tiles(torch.ones(50, 4), torch.arange(50))
    assert recall(points, points)[0] == 0.0
    value, _, count = recall(_tiles(torch.randn(3, 4), [0, 1, 2]), _tiles(torch.randn(2, 4), [3, 4]))
    assert math.isnan(value)
    assert count == 0


WEIGHTS = {
    ("cosine", "similarity"): lambda distance: np.exp((1 - distance) / 0.07),
    ("l2", "similarity"): lambda distance: np.exp(-(distance - distance.min(1, keepdims=True)) / 0.07),
    ("cosine", "uniform"): "uniform",
    ("l2", "uniform"): "uniform",
}


def oracle(bank: torch.Tensor, target: torch.Tensor, k: int, metric: str, votes: str) -> KNeighborsClassifier:
    distance = {"l2": "euclidean"}.get(metric, metric)
    model = KNeighborsClassifier(min(k, len(bank)), metric=distance, algorithm="brute", weights=WEIGHTS[metric, votes])
    return model.fit(bank.double().numpy(), target.numpy())


def draw(n: int, labels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bank, its labels, and queries; every label occurs and lacks somewhere."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (n, labels), generator=generator)
    target[0], target[1] = 0, 1
    bank = torch.randn(n, 12, generator=generator) + 2 * target.float() @ torch.randn(labels, 12, generator=generator)
    return (bank, target, bank[torch.randint(n, (40,), generator=generator)] + torch.randn(40, 12, generator=generator))


@pytest.mark.parametrize(("metric", "votes"), WEIGHTS)
@given(n=st.integers(2, 60), labels=st.integers(1, 6), k=st.integers(1, 25), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_several_labels_are_one_knn_each(metric: str, votes: str, n: int, labels: int, k: int, seed: int):
    bank, target, query = draw(n, labels, seed)
    share = knn_votes(query, bank, target, k, metric=metric, votes=votes)
    for label in range(labels):
        model = oracle(bank, target[:, label], k, metric, votes)
        expected = model.predict_proba(query.double().numpy())[:, 1]
        np.testing.assert_allclose(share[:, label].numpy(), expected, atol=2e-3)
        clear = abs(expected - 0.5) > 2e-3  # a tie is no label
        answer = model.predict(query.double().numpy())
        np.testing.assert_array_equal((share[:, label] > 0.5).numpy()[clear], answer[clear])


@pytest.mark.parametrize(("metric", "votes"), WEIGHTS)
@given(n=st.integers(1, 80), classes=st.integers(1, 12), k=st.integers(1, 30), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_one_class(metric: str, votes: str, n: int, classes: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    bank, query = (torch.randn(m, 12, generator=generator) for m in (n, 40))
    model = oracle(bank, labels, k, metric, votes)
    shares = np.sort(model.predict_proba(query.double().numpy()), axis=1)
    clear = shares[:, -1] - shares[:, -2] > 1e-3 if shares.shape[1] > 1 else np.ones(40, bool)
    found = knn_votes(query, bank, one_hot(labels), k, metric=metric, votes=votes).argmax(1)
    np.testing.assert_array_equal(found.numpy()[clear], model.predict(query.double().numpy())[clear])
    if (metric, votes) == ("cosine", "similarity"):
        assert torch.equal(knn_predict(1e4 * query, 1e-3 * bank, labels, k)[clear], found[clear])


def test_shares_of_one_class_add_up_and_large_distances_do_not_overflow() -> None:
    labels = torch.eye(4).repeat(5, 1)
    bank = 1e4 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    share = knn_votes(bank, bank, labels, metric="l2")
    torch.testing.assert_close(share.sum(1), torch.ones(20))
    assert torch.equal(share.argmax(1), labels.argmax(1))  # the nearest neighbor is the query itself


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, target, query = draw(60, 5, 0)
    whole = knn_votes(query, bank, target)
    monkeypatch.setattr(knn, "CHUNK", 7)
    torch.testing.assert_close(knn_votes(query, bank, target), whole)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=60))
def test_scores_equal_scikit_learn(pairs: list[tuple[int, int]]):
    target, predicted = torch.tensor(pairs).T
    known, answer = target.numpy(), predicted.numpy()
    recalls = [np.mean(answer[known == c] == c) for c in np.unique(known)]
    assert balanced_accuracy(predicted, target) == pytest.approx(np.mean(recalls))
    assert accuracy(predicted, target) == pytest.approx(np.mean(answer == known))


def test_chance_is_the_majority_of_the_bank():
    bank, target = torch.tensor([3, 3, 3, 1, 1, 0]), torch.tensor([3, 1, 1, 1, 2])
    dummy = DummyClassifier(strategy="most_frequent").fit(bank[:, None], bank)
    level = chance(bank, target)
    assert level["accuracy"] == pytest.approx(dummy.score(target[:, None], target)) == pytest.approx(0.2)
    assert level["balanced accuracy"] == pytest.approx(balanced_accuracy_score(target, dummy.predict(target[:, None])))


def test_an_empty_bank_and_another_width_are_refused():
    labels = torch.zeros(0, dtype=torch.long)
    with pytest.raises(TerraFMError, match=r"bank of shape \(0, 4\)"):
        knn_predict(torch.randn(3, 4), torch.randn(0, 4), labels)
    with pytest.raises(TerraFMError, match="same width"):
        knn_predict(torch.randn(3, 4), torch.randn(2, 5), torch.tensor([0, 1]))

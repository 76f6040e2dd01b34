"""k-NN of one class and of several labels, of distances and of equal votes, and its scores, against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import one_hot

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import knn
from terrafm_tg.evaluation.knn import accuracy, balanced_accuracy, chance, knn_predict, knn_votes

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
    assert torch.equal(share.argmax(1), labels.argmax(1))  # the nearest neighbour is the query itself


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

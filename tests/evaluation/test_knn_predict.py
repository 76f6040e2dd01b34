"""k-NN against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.knn import accuracy, balanced_accuracy, chance, knn_predict


def _clusters(n: int, classes: int, width: int, seed: int, spread: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, width, generator=generator), labels


@given(n=st.integers(1, 80), classes=st.integers(1, 12), k=st.integers(1, 30), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_equals_scikit_learn(n: int, classes: int, k: int, seed: int):
    bank, labels = _clusters(n, classes, 16, seed)
    query, _ = _clusters(50, classes, 16, seed + 1)
    oracle = KNeighborsClassifier(
        min(k, n), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = oracle.fit(bank.double().numpy(), labels.numpy()).predict(query.double().numpy())
    np.testing.assert_array_equal(knn_predict(query, bank, labels, k=k), expected)


def test_chunks_change_nothing():
    bank, labels = _clusters(300, 5, 8, 0)
    query, _ = _clusters(97, 5, 8, 1)
    assert torch.equal(knn_predict(query, bank, labels, chunk=10), knn_predict(query, bank, labels))


def test_length_of_embeddings_does_not_matter():
    bank, labels = _clusters(100, 5, 8, 0)
    query, _ = _clusters(40, 5, 8, 1)
    assert torch.equal(knn_predict(1e4 * query, 1e-3 * bank, labels), knn_predict(query, bank, labels))


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=60))
def test_scores_equal_scikit_learn(pairs: list[tuple[int, int]]):
    target, predicted = torch.tensor(pairs).T
    known, answer = target.numpy(), predicted.numpy()
    recalls = [np.mean(answer[known == c] == c) for c in np.unique(known)]
    assert balanced_accuracy(predicted, target) == pytest.approx(np.mean(recalls))
    if set(answer) <= set(known) and len(set(known)) > 1:  # scikit-learn warns otherwise
        expected = balanced_accuracy_score(known, answer)
        assert balanced_accuracy(predicted, target) == pytest.approx(expected)
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

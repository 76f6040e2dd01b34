"""k-NN of several labels, of distances and of equal votes, against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from terrafm_tg.evaluation.knn import knn_predict, knn_votes

WEIGHTS = {
    ("cosine", "similarity"): lambda distance: np.exp((1 - distance) / 0.07),
    ("l2", "similarity"): lambda distance: np.exp(-(distance - distance.min(1, keepdims=True)) / 0.07),
    ("cosine", "uniform"): "uniform",
    ("l2", "uniform"): "uniform",
}


def oracle(bank: torch.Tensor, target: torch.Tensor, k: int, metric: str, votes: str) -> KNeighborsClassifier:
    return KNeighborsClassifier(
        min(k, len(bank)),
        metric={"l2": "euclidean"}.get(metric, metric),
        algorithm="brute",
        weights=WEIGHTS[metric, votes],
    ).fit(bank.double().numpy(), target.numpy())


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
@given(n=st.integers(1, 60), k=st.integers(1, 25), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_one_class(metric: str, votes: str, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=generator)
    bank, query = (torch.randn(m, 12, generator=generator) for m in (n, 40))
    model = oracle(bank, labels, k, metric, votes)
    shares = np.sort(model.predict_proba(query.double().numpy()), axis=1)
    clear = shares[:, -1] - shares[:, -2] > 1e-3 if shares.shape[1] > 1 else np.ones(40, bool)
    found = knn_predict(query, bank, labels, k, metric=metric, votes=votes).numpy()
    np.testing.assert_array_equal(found[clear], model.predict(query.double().numpy())[clear])


def test_shares_of_one_class_add_up_and_large_distances_do_not_overflow() -> None:
    labels = torch.eye(4).repeat(5, 1)
    bank = 1e4 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    share = knn_votes(bank, bank, labels, metric="l2")
    torch.testing.assert_close(share.sum(1), torch.ones(20))
    assert torch.equal(share.argmax(1), labels.argmax(1))  # the nearest neighbour is the query itself

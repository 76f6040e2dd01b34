from itertools import combinations

import numpy as np
import pytest
import torch

from terrafm_tg.tasks.pretrain.statistics import PrototypeUse, embedding_statistics


def test_embedding_statistics_equal_the_eigenvalues() -> None:
    x = np.random.default_rng(0).normal(size=(40, 12)) * np.arange(1, 13)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit.T, ddof=0))
    std, rank = embedding_statistics(torch.tensor(x))
    assert std.item() == pytest.approx(np.sqrt(values.sum()), rel=1e-5)
    assert rank.item() == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)


def test_a_point_and_a_line_are_recognised() -> None:
    std, rank = embedding_statistics(torch.ones(16, 8))
    assert std < 1e-5
    assert torch.isfinite(rank)
    line = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.05], [1.0, 0.0]])
    assert embedding_statistics(line)[1].item() == pytest.approx(1, abs=0.01)


def test_prototype_use_equals_a_count_over_pairs() -> None:
    """Also over batches of different sizes, with unknown land cover left out."""
    torch.manual_seed(0)
    logits, land_cover = torch.randn(30, 20), torch.tensor([0, 3, 11, -1, 5] * 6)
    land_cover[land_cover == 5] = torch.tensor([5, 7, 7, 7, 7, 7])
    metric = PrototypeUse(prototypes=20, k=4)
    for some in torch.arange(30).split([7, 11, 12]):
        metric.update(logits[some], land_cover[some], teacher_temp=0.5)
    result = metric.compute()
    for kind in (0, 3, 7, 11):
        chosen = logits[land_cover == kind]
        p = (chosen / 0.5).softmax(-1)
        assert result["entropy"][kind].item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
        tops = [set(row.topk(4).indices.tolist()) for row in chosen]
        spread = np.mean([1 - len(a & b) / 4 for a, b in combinations(tops, 2)])
        assert result["spread"][kind].item() == pytest.approx(spread, abs=1e-6)
    assert result["tiles"].tolist() == [6, 0, 0, 6, 0, 1, 0, 5, 0, 0, 0, 6]
    assert torch.isnan(result["spread"][5])
    assert torch.isnan(result["entropy"][1])

"""Fusion against the paper's attention written out in float64, at its start, and in training."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm_tg.models.fusion import ModalityFusion

DIM = 12


@pytest.fixture
def trained() -> ModalityFusion:
    """A fusion whose parameters are far from their start."""
    torch.manual_seed(0)
    fusion = ModalityFusion(DIM)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    return fusion


def attention(fusion: ModalityFusion, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """The paper's formula at one position: M tokens (M, D) as keys and values -> (D,)."""
    queries, key, reduction = (p.detach().double().numpy() for p in fusion.parameters())
    scores = queries @ (tokens @ key.T).T / np.sqrt(DIM)  # (queries, M)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    answers = weights @ tokens  # z'_n: (queries, D)
    shares = np.exp(answers @ reduction)
    return shares / shares.sum() @ answers


def batch(size: int, rows: dict[str, list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(len(r), 2, 3, DIM) for r in rows.values()], [torch.tensor(r) for r in rows.values()]


def test_equals_attention_written_out(trained: ModalityFusion) -> None:
    values, rows = batch(5, {"a": [0, 3, 2], "b": [4, 1, 0, 3], "c": [3, 2]})
    fused = trained(values, rows, 5).detach().numpy()
    for sample in range(5):
        own = [v[r.tolist().index(sample)] for v, r in zip(values, rows, strict=True) if sample in r.tolist()]
        for y, x in np.ndindex(2, 3):
            tokens = torch.stack([v[y, x] for v in own]).double().numpy()
            np.testing.assert_allclose(fused[sample, y, x], attention(trained, tokens), rtol=1e-4, atol=1e-5)


def test_whole_batches_need_no_rows(trained: ModalityFusion) -> None:
    values, rows = batch(4, {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [0, 1, 2, 3]})
    torch.testing.assert_close(trained(values), trained(values, rows, 4))


def test_one_modality_through_the_attention(trained: ModalityFusion) -> None:
    value = torch.randn(3, 2, 2, DIM)
    torch.testing.assert_close(trained([value]), value, atol=1e-5, rtol=1e-5)


def test_samples_of_one_modality_bypass_the_attention(trained: ModalityFusion) -> None:
    values, rows = batch(4, {"a": [1, 0], "b": [0, 3, 2]})
    fused = trained(values, rows, 4)
    assert torch.equal(fused[[1, 3, 2]], torch.stack([values[0][0], values[1][1], values[1][2]]))


def test_starts_as_the_mean() -> None:
    fusion = ModalityFusion(DIM)
    values = [torch.randn(2, 2, 2, DIM) for _ in range(3)]
    torch.testing.assert_close(fusion(values), torch.stack(values).mean(0))
    torch.testing.assert_close(fusion.shares(values), torch.full((3, 2, 2, 2, 1), 1 / 3))


def test_everything_learns() -> None:
    torch.manual_seed(0)
    fusion = ModalityFusion(DIM)
    first = fusion.queries.detach().clone()
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-2)
    target = torch.randn(DIM)
    for _ in range(50):
        values, rows = batch(6, {"a": [0, 1, 2, 3], "b": [2, 3, 4, 5], "c": [1, 3, 5]})
        loss = (fusion(values, rows, 6) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    change = fusion.queries.detach() - first
    assert change.norm(dim=1).min() > 0.01
    assert torch.pdist(fusion.queries.detach()).min() > 0.03
    assert torch.pdist(change).min() > 1e-4
    assert fusion.reduction.abs().max() > 0.01
    assert fusion.key.abs().max() > 0.01


def test_softmax_is_in_fp32_under_autocast(trained: ModalityFusion) -> None:
    values = [torch.randn(2, 2, 2, DIM).bfloat16() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        fused = trained(values)
        shares = trained.shares(values)
    assert fused.dtype == shares.dtype == torch.bfloat16
    torch.testing.assert_close(shares.float().sum(0), torch.ones(2, 2, 2, 1), atol=1e-2, rtol=0)

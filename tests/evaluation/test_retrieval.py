"""Same-place retrieval against NumPy's sort."""

import math

import numpy as np
import pytest
import torch

from terrafm_tg.evaluation import scores
from terrafm_tg.evaluation.scores import TileFeatures, recall


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

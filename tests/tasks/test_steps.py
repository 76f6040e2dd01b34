import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from terrafm_tg.models import build_encoder
from terrafm_tg.tasks.pretrain.head import ProjectionHead
from terrafm_tg.tasks.pretrain.optimization import (
    DECAY,
    NO_DECAY,
    Schedules,
    clip_each_,
    parameter_groups,
    warmup_steps,
)
from terrafm_tg.tasks.pretrain.statistics import PrototypeUse, embedding_statistics


def test_embedding_statistics_equal_the_eigenvalues() -> None:
    x = np.random.default_rng(0).normal(size=(40, 12)) * np.arange(1, 13)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit.T, ddof=0))
    std, rank = embedding_statistics(torch.tensor(x))
    assert std.item() == pytest.approx(np.sqrt(values.sum()), rel=1e-5)
    assert rank.item() == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
    sensors = np.arange(40) % 3  # a gap between sensors is no direction: the rank is that within them
    apart = unit + 5 * np.eye(12)[sensors]
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    within = apart - np.stack([apart[sensors == s].mean(0) for s in sensors])
    values = np.linalg.eigvalsh(within.T @ within)
    rank = embedding_statistics(torch.tensor(apart), torch.tensor(sensors))[1]
    assert rank.item() == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)


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


def test_biases_and_vectors_are_not_decayed_but_token_and_positions_are() -> None:
    encoder = build_encoder("terrafm_tiny", depth=2)
    head = ProjectionHead(192, 64, 32, 16)
    names = {p: f"{name}" for module in (encoder, head) for name, p in module.named_parameters()}
    groups = {g["name"]: {names[p] for p in g["params"]} for g in parameter_groups((encoder, head))}
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "last_layer.weight_v"} <= groups[DECAY]
    assert {"norm.bias", "norm.weight", "blocks.1.mlp.fc1.bias", "layers.0.bias"} <= groups[NO_DECAY]
    assert not any(name.endswith("bias") for name in groups[DECAY])
    trained = {name for p, name in names.items() if p.requires_grad}
    assert groups[DECAY] | groups[NO_DECAY] == trained
    assert "last_layer.weight_g" not in trained


def test_clips_each_tensor_as_dino_does() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(3, 3))
    for scale, p in zip((0.01, 10, 100, 1e-3), model.parameters(), strict=False):
        p.grad = torch.randn_like(p) * scale
    expected = copy.deepcopy(model)
    for p, original in zip(expected.parameters(), model.parameters(), strict=True):
        p.grad = None if original.grad is None else original.grad.clone()
        if p.grad is not None:  # DINO's utils.clip_gradients
            coefficient = 3.0 / (p.grad.norm(2) + 1e-6)
            if coefficient < 1:
                p.grad.mul_(coefficient)
    clip_each_(model.parameters(), 3.0)
    for p, original in zip(expected.parameters(), model.parameters(), strict=True):
        assert (p.grad is None) == (original.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(original.grad, p.grad)


PAPER = Schedules(
    steps=1000,
    lr=(2e-3, 1e-6),
    lr_warmup=100,
    weight_decay=(0.04, 0.4),
    teacher_momentum=(0.996, 1.0),
    teacher_temp=(0.04, 0.06),
    temp_warmup=300,
    frozen=10,
)


def cosine(start: float, end: float, count: int) -> np.ndarray:
    """DINO's ``cosine_scheduler`` without warm-up, over ``count`` steps, both ends included."""
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(count) / (count - 1)))


def test_follow_the_formulas() -> None:
    values = np.array([PAPER.at(step) for step in range(PAPER.steps)])
    lr, weight_decay, momentum, temp = values.T
    np.testing.assert_allclose(lr[:100], 2e-3 * np.arange(1, 101) / 100)
    np.testing.assert_allclose(lr[100:], cosine(2e-3, 1e-6, 900))
    np.testing.assert_allclose(weight_decay, cosine(0.04, 0.4, 1000))
    np.testing.assert_allclose(momentum, cosine(0.996, 1.0, 1000))
    np.testing.assert_allclose(temp[:300], 0.04 + 0.02 * np.arange(300) / 300)
    np.testing.assert_allclose(temp[300:], 0.06)
    assert PAPER.at(1000) == PAPER.at(999)  # and stays there


@pytest.mark.parametrize(("epochs", "expected"), [(0, 0), (2, 20), (5, 50), (5.5, 50), (30, 50)])
def test_a_warmup_takes_at_most_half_of_the_run(epochs: float, expected: int) -> None:
    assert warmup_steps("warmup_epochs", epochs, steps_per_epoch=10, steps=100) == expected

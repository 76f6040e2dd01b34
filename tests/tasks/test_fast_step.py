"""The fast training step against the plain one of `plain_step.py`, for the same draws."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from plain_step import PlainTerraFM
from tiny_terrafm import ALL, loader, make_sample, tiny_terrafm, trainer
from torch._dynamo.utils import counters

from terrafm_tg.datasets.tiles.dataset import collate_tiles
from terrafm_tg.models import build_encoder, multi_crop
from terrafm_tg.models.multi_crop import DepthPlan, plan_depth

pytestmark = pytest.mark.filterwarnings("ignore")
S1, L1C, L2A = (("s1rtc",), ("s2l1c",), ("s2l2a",))
MIXES = {
    "every sensor": (ALL,) * 4,
    "one sensor": (L2A,) * 4,
    "two sensors, never together": (S1, L2A, S1, L2A),
    "all kinds": (S1, ALL, ("s1rtc", "s2l2a"), L1C),
}


class Gradients(Callback):
    """Losses and gradients of a run's steps."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"])


def batch(sensors: Sequence[Sequence[str]], start: int = 0) -> dict[str, Any]:
    return collate_tiles([make_sample(start + i, own) for i, own in enumerate(sensors)])


def run(folder: Path, batches: list[Any], plain: bool = False, **settings: Any) -> Gradients:
    """Some steps from weights as training leaves them: a fusion whose queries differ, centres away from zero."""
    task = tiny_terrafm(cls=PlainTerraFM, **settings) if plain else tiny_terrafm(**settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        fusion = task.student.patch_embed.fusion
        for parameter, size in ((fusion.queries, 1.0), (fusion.key, 0.1), (fusion.reduction, 0.3)):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        task.teacher.load_state_dict(task.student.state_dict())
        task.center.centers.copy_(0.1 * torch.randn(task.center.centers.shape, generator=generator))
    kept = Gradients()
    trainer(folder, max_epochs=1, callbacks=[kept]).fit(task, loader(batches))
    return kept


def assert_same(fast: Gradients, plain: Gradients, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(torch.stack(fast.losses), torch.stack(plain.losses), rtol=1e-5, atol=0)
    for ours, oracle in zip(fast.steps, plain.steps, strict=True):
        assert set(oracle) <= set(ours)
        for name, grad in ours.items():  # stems that no view needs have a gradient of zero in the fast step only
            expected = oracle.get(name, torch.zeros_like(grad))
            assert (grad - expected).norm() <= rtol * expected.norm() + 1e-9, name


@pytest.mark.parametrize("mix", MIXES)
def test_loss_and_gradients_are_those_of_the_plain_step(tmp_path: Path, mix: str) -> None:
    settings = {"drop_path": 0.4, "lr": 1e-6}
    batches = [batch(MIXES[mix])]
    assert_same(run(tmp_path, batches, **settings), run(tmp_path, batches, plain=True, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"local_crops": 0},
        {"local_crops": 3, "drop_path": 0.0},
        {"alpha": 1.0, "frequent_classes": None},
        {"alpha": 0.0},
        {"drop_path": 0.6, "seed": 1},
        {"drop_path": 0.6, "seed": 2, "depth": 3},
        {"freeze_last_layer_epochs": 1, "drop_path": 0.2},
        {"grad_checkpointing": True, "drop_path": 0.3},
        {"koleo": 0.1, "dimensions": 0.3, "contrast": {"weight": 0.7, "temp": 0.2}, "whiten_stems": True},
    ],
    ids=str,
)
def test_settings_do_not_part_the_two(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"lr": 1e-6} | settings
    batches = [batch(MIXES["all kinds"]), batch(MIXES["every sensor"], 4)]
    assert_same(run(tmp_path, batches, **settings), run(tmp_path, batches, plain=True, **settings))


@pytest.mark.parametrize("tokens_per_column", [0.1, 10])
def test_folds_early_where_there_are_many_tokens_and_late_where_few(tmp_path: Path, tokens_per_column: float) -> None:
    """The kernels of S1 have 512 columns: 18 tokens of one global crop are fewer, 72 of 4 batches of tiles more."""
    count = 2 if tokens_per_column < 1 else 40
    batches = [batch([S1] * count)]
    settings = {"local_crops": 2, "lr": 1e-6}
    seen = []
    original = torch.Tensor.__matmul__

    def watch(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(self.shape), tuple(other.shape)))
        return original(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", watch)
        fast = run(tmp_path, batches, **settings)
    assert (((576, 576), (576, 512)) in seen) == (tokens_per_column > 1)
    assert_same(fast, run(tmp_path, batches, plain=True, **settings))


def test_a_branch_that_no_view_keeps_has_gradients_of_zero(tmp_path: Path) -> None:
    """Otherwise DDP would wait for them."""
    settings = {"drop_path": 0.999, "local_crops": 0, "lr": 1e-6}
    batches = [batch([ALL, ALL])]
    fast, plain = run(tmp_path, batches, **settings), run(tmp_path, batches, plain=True, **settings)
    assert_same(fast, plain)
    assert fast.steps[0]["student.blocks.1.mlp.fc1.weight"].abs().max() == 0


def test_depth_is_a_function_of_the_draw() -> None:
    """Of seed, epoch, position and view: any part of a batch gets what the whole gets; rates are met."""
    blocks = build_encoder("terrafm_tiny", depth=3, drop_path_rate=0.5).blocks
    position = torch.arange(3, 4003)
    epoch = torch.full_like(position, 2)

    def plan(seed: int = 7, some: slice = slice(None), more: int = 0) -> DepthPlan:
        return plan_depth(blocks, seed, epoch[some] + more, position[some], [2, 3])

    assert plan().rates == (0, 0, 0.25, 0.25, 0.5, 0.5)
    whole, part = plan().branches(2), plan(some=slice(10, 20)).branches(2)
    assert whole[:2] == [None, None]
    for rate, (kept, scale), (of_part, _) in zip(plan().rates[2:], whole[2:], part[2:], strict=True):
        assert scale == pytest.approx(1 / (1 - rate))
        for group, (views, idx, some) in enumerate(zip((2, 3), kept, of_part, strict=True)):
            mask = np.zeros(views * 4000, bool)
            mask[idx.numpy()] = True
            assert mask.mean() == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / len(mask)) ** 0.5), group
            own = np.zeros(views * 10, bool)
            own[some.numpy()] = True
            np.testing.assert_array_equal(mask.reshape(views, 4000)[:, 10:20], own.reshape(views, 10))
    first = torch.cat(whole[2][0])
    assert not any(torch.equal(first, other.keep_idx[: len(first)]) for other in (plan(seed=8), plan(more=1)))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiles_once_whatever_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Numbers of views of each sensor, and of those that stochastic depth keeps, change in every step."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    multi_crop._branches.cache_clear()
    graphs: list[int] = []

    class Count(Gradients):
        def on_train_batch_end(self, *of_batch: Any) -> None:
            graphs.append(counters["stats"]["unique_graphs"])
            super().on_train_batch_end(*of_batch)

    batches = [batch(mix, 4 * i) for i, mix in enumerate([*MIXES.values()] * 3)]
    settings = {"drop_path": 0.5, "depth": 3, "lr": 1e-6}
    counters.clear()
    kept = Count()
    trainer(tmp_path, max_epochs=1, callbacks=[kept]).fit(tiny_terrafm(compile=True, **settings), loader(batches))
    multi_crop._branches.cache_clear()
    assert graphs[0] > 0
    assert graphs[2:] == [graphs[2]] * len(graphs[2:])
    eager = Gradients()
    trainer(tmp_path, max_epochs=1, callbacks=[eager]).fit(tiny_terrafm(**settings), loader(batches))
    torch.testing.assert_close(torch.stack(kept.losses), torch.stack(eager.losses), rtol=1e-5, atol=0)

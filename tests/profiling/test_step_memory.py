"""The memory that is computed for a step is what the allocator hands out when one is really made."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from refusals import refusal
from terrafm_tg.cli.main import main
from terrafm_tg.profiling import memory
from terrafm_tg.profiling.memory import TensorMemory, estimate_memory, step_peak, tile_bytes
from terrafm_tg.tasks import TerraFM

SMALL = {
    "model": "terrafm_tiny",
    "head": {"hidden_dim": 256, "bottleneck_dim": 64, "prototypes": 2048},
    "crops": {"global_size": 96, "local_size": 48, "local_crops": 4},
}


def test_shared_memory_counts_once_and_is_given_back() -> None:
    with TensorMemory() as counted:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a.view(10, 100).T
        c = b.contiguous()
        a.add_(1)
        assert counted.now == 8000
        del a, b
        assert counted.now == 4000
        d = (c + 1).sum()  # the sum lives beside 4,000 bytes that go at once
        assert counted.now == 4004
    assert counted.peak == 8004
    assert d == 1000


def allocated(task: TerraFM, batch: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes that torch's own allocator had handed out during a real step."""
    monkeypatch.setattr(memory, "FakeTensorMode", lambda **_: torch.enable_grad())
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as watched:
        step_peak(task, batch)
    events = watched.profiler.kineto_results.events()
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("again", [False, True])
def test_a_computed_step_takes_what_a_real_one_does(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TerraFM(**SMALL, depth=3, grad_checkpointing=again)
    assert step_peak(task, 6) == pytest.approx(allocated(task, 6, monkeypatch), rel=0.03)
    assert all(p.grad is None for p in task.parameters())


@pytest.mark.soak
def test_all_follows_from_four_steps() -> None:
    fixed, per_tile = estimate_memory(**SMALL, depth=5)
    task = TerraFM(**SMALL, depth=5)
    trained, others = (sum(4 * p.numel() for p in task.parameters() if p.requires_grad == own) for own in (True, False))
    real = 3 * trained + others + step_peak(task, 40) + 40 * tile_bytes(task.sensors)
    assert fixed + 40 * per_tile == pytest.approx(real, rel=0.02)
    assert step_peak(TerraFM(**SMALL, depth=5, grad_checkpointing=True), 16) < 0.8 * step_peak(task, 16)


def test_a_tile_is_as_large_as_measured() -> None:
    assert tile_bytes(["s1rtc", "s2l1c", "s2l2a"]) == pytest.approx(7.48e6, rel=2e-3)  # three modalities at 534 px


@pytest.mark.soak
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", "memory", "--model=terrafm_tiny", "--crops.local_crops=0", "--head.prototypes=64"])
    printed = capsys.readouterr().out
    assert "largest batch" in printed
    assert "recomputed" in printed


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model=terrafm_huge", "'terrafm_huge' is unknown"),
        ("--crops.local_cropz=3", "did you mean `--crops.local_crops`?"),
        ("--crops.local_crops=abc", "Got value: abc"),
        ("--tile_size=-6", "`tile_size` must be a multiple of 6 pixels up to 4092, got -6"),
    ],
)
def test_a_wrong_option_is_one_sentence(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(capsys, "profile", "memory", option)

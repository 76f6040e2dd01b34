"""Stages share out all of a step's time, on the host's clock and on that of a device that runs behind it."""

from types import SimpleNamespace

import pytest
import torch

from terrafm_tg.profiling import stages
from terrafm_tg.profiling.stages import StageProfiler


class Device:
    """Stands for torch.cuda: `work` adds to its queue, and it has done all of it when `now` has come."""

    def __init__(self) -> None:
        self.now = self.queue = 0.0

    def work(self, seconds: float) -> None:
        self.queue = max(self.queue, self.now) + seconds

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(elapsed_time=lambda end: 1000 * (end.time - event.time))
        event.record = lambda: setattr(event, "time", max(self.queue, self.now))
        return event

    def current_stream(self) -> SimpleNamespace:
        return SimpleNamespace(query=lambda: self.queue <= self.now)

    def is_available(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.now = max(self.queue, self.now)

    reset_peak_memory_stats = synchronize


def test_every_second_goes_to_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading 3 s, then a step: views 1 s, student 4 s, 0.2 s more, backward 2 s, rest 3 s; outside 0.5 s."""
    clock = SimpleNamespace(time=0.0)
    monkeypatch.setattr(stages, "perf_counter", lambda: clock.time)
    profiler = StageProfiler(warmup=2)
    for _ in range(5):
        with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
            clock.time += 3
        with profiler.profile("run_training_batch"), profiler.profile("[LightningModule]TerraFM.optimizer_step"):
            with profiler.profile("[Strategy]SingleDeviceStrategy.training_step"):
                with profiler.profile("views"):
                    clock.time += 1
                with profiler.profile("student"):
                    clock.time += 4
                    torch.ones(2, 3) @ torch.ones(3, 5)
                clock.time += 0.2
            with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
                clock.time += 2
            clock.time += 3
        clock.time += 0.5
    with profiler.profile("on_train_end"):
        clock.time += 100  # no part of a step
    seconds, steps = profiler.times()
    names = ["loader", "views", "student", "rest of the forward pass", "backward", "clipping, optimizer", "other"]
    assert list(seconds) == names
    assert list(seconds.values()) == pytest.approx([3, 1, 4, 0.2, 2, 3, 0.5])
    assert steps == pytest.approx([13.7] * 3)
    assert profiler.waits == 0
    assert {name: count for name, count in profiler.operations.items() if count} == {"student": 2 * 2 * 3 * 5}


@pytest.mark.parametrize(("work", "host", "waits"), [((2, 5), 0.05, False), ((0.5, 0.5), 1, True)])
def test_a_device_behind_its_host(
    work: tuple[float, float], host: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host queues is booked as long as it takes there, and a device that waits for the host shows."""
    device = Device()
    monkeypatch.setattr(torch, "cuda", device)
    profiler = StageProfiler(warmup=1)
    for _ in range(4):
        with profiler.profile("run_training_batch"):
            for stage, seconds in zip(("teacher", "student"), work, strict=True):
                with profiler.profile(stage):
                    device.work(seconds)
                    device.now += host
    seconds, steps = profiler.times()
    each = [max(host, seconds) for seconds in work]
    assert (seconds["teacher"], seconds["student"]) == pytest.approx(each, abs=0.6 if waits else 1e-6)
    assert steps == pytest.approx([sum(each)] * 3)
    assert (profiler.waits > 0.5 * profiler.boundaries) == waits

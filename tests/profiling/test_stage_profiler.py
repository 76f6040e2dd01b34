"""Stages share out all of a step's time, on the host's clock and on that of a device that runs behind it."""

from dataclasses import dataclass, field

import pytest

from terrafm_tg.profiling.stages import StageProfiler


@dataclass
class Host:
    """A clock that the test sets."""

    time: float = 0.0

    def mark(self) -> float:
        return self.time

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def idle(self) -> bool:
        return False


@dataclass
class Device:
    """A device with a queue: `work` adds to it, and it has passed a mark when its time has come."""

    now: float = 0.0
    queue: float = 0.0
    asked: list[float] = field(default_factory=list)

    def work(self, seconds: float) -> None:
        self.queue = max(self.queue, self.now) + seconds

    def mark(self) -> float:
        self.queue = max(self.queue, self.now)
        return self.queue

    def seconds(self, start: float, end: float) -> float | None:
        self.asked.append(end)
        return end - start if end <= self.now else None

    def idle(self) -> bool:
        return self.queue <= self.now


def host_step(profiler: StageProfiler, clock: Host) -> None:
    """Loading 3 s, then a step: views 1 s, student 4 s, backward 2 s, the rest of the optimizer 3 s; outside 0.5 s."""
    with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
        clock.time += 3
    with profiler.profile("run_training_batch"), profiler.profile("[LightningModule]TerraFM.optimizer_step"):
        with profiler.profile("[Strategy]SingleDeviceStrategy.training_step"):
            with profiler.profile("views"):
                clock.time += 1
            with profiler.profile("student"):
                clock.time += 4
        with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
            clock.time += 2
        clock.time += 3
    clock.time += 0.5


def test_every_second_goes_to_one_stage() -> None:
    clock = Host()
    profiler = StageProfiler(warmup=2, clock=clock)
    for _ in range(5):
        host_step(profiler, clock)
    with profiler.profile("on_train_end"):
        clock.time += 100  # no part of a step
    profiler.finish()
    steps = {"loader": 3, "views": 1, "student": 4, "backward": 2, "clipping, optimizer": 3, "other": 0.5}
    assert profiler.timed == 3
    assert profiler.seconds == pytest.approx({stage: 3 * seconds for stage, seconds in steps.items()})
    assert profiler.step_seconds == pytest.approx([13.5] * 3)
    assert profiler.waits == 0


def test_a_device_behind_its_host_is_not_waited_for() -> None:
    """The host queues 2 s of teacher and 5 s of student within 0.1 s: both are booked as long as they take there."""
    clock = Device()
    profiler = StageProfiler(warmup=1, clock=clock)
    for _ in range(4):
        with profiler.profile("run_training_batch"):
            with profiler.profile("teacher"):
                clock.work(2)
            with profiler.profile("student"):
                clock.work(5)
            clock.now += 0.1
    assert sum(profiler.seconds.values()) < 21  # most is not known yet
    clock.now = 100
    profiler.finish()
    assert profiler.seconds == pytest.approx({"teacher": 6, "student": 15, "other": 0})
    assert profiler.step_seconds == pytest.approx([7] * 3)
    assert profiler.waits == 0


def test_a_device_that_waits_for_the_host_shows() -> None:
    clock = Device()
    profiler = StageProfiler(warmup=1, clock=clock)
    for _ in range(4):
        with profiler.profile("run_training_batch"):
            with profiler.profile("teacher"):
                clock.work(0.5)
                clock.now += 1  # the host is slower
            with profiler.profile("student"):
                clock.work(0.5)
                clock.now += 1
    profiler.finish()
    assert profiler.waits > 0.5 * profiler.boundaries
    assert sum(profiler.seconds.values()) == pytest.approx(6, abs=0.5)

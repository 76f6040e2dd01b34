"""A Lightning profiler that shares out the time of training steps among stages."""

import sys
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import Profiler
from torch.utils.flop_counter import FlopCounterMode

from terrafm_tg.errors import TerraFMError

#: What each action that Lightning or the task profiles belongs to; the first part that its name contains decides.
STAGES = {
    "train_dataloader_next": "loader",
    "on_before_batch_transfer": "view plan",
    "batch_to_device": "transfer",
    "on_after_batch_transfer": "transfer",
    "views": "views",
    "teacher": "teacher",
    "student": "student",
    "loss": "loss",
    "backward": "backward",
    "average": "teacher average",
    "reduction": "reduction, centers",
    "optimizer_step": "clipping, optimizer",
}
#: Time of a step outside of all these.
OTHER = "other"
#: A stage (None for a whole step) between two marks of a clock.
type Span = tuple[str | None, Any, Any]


class Clock(Protocol):
    """Tells the time between marks."""

    def mark(self) -> Any:
        """A mark at the present place of the program."""

    def seconds(self, start: Any, end: Any) -> float | None:
        """Time between two marks; None while it is not known yet."""

    def idle(self) -> bool:
        """True if the device has done all that was queued, and so waits for the host."""


class HostClock:
    """The host's time.

    Args:
        now: Seconds; wall time by default. ``time.process_time`` leaves out what other programs take from this one, and
            also what this one waits for.
    """

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        """Now."""
        return self._now()

    def seconds(self, start: float, end: float) -> float:
        """Known at once."""
        return end - start

    def idle(self) -> bool:
        """There is no device that could wait."""
        return False


class DeviceClock:
    """A GPU's own time, by events in its queue: nothing waits, so a watched step is as fast as any other."""

    def mark(self) -> torch.cuda.Event:
        """An event behind all work that was queued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """None until the device has passed both."""
        return start.elapsed_time(end) / 1000 if end.query() else None

    def idle(self) -> bool:
        """True if the device is through with all work."""
        return torch.cuda.current_stream().query()


class StageProfiler(Profiler):
    """Shares out the time of training steps among stages, without overlap and without rest.

    An action's time without that of the actions inside it goes to its stage; where its name belongs to none, to the
    stage around it, and at the outermost to "other". On a GPU the time is that of the device's queue: what the host
    does while the device is busy costs nothing, and what the device waits for the host is booked where the host was.

    Args:
        warmup: Steps left out: the first ones wait for workers, caches, compilation and kernels.
        count: Whether to count the operations of the first step as torch knows them, for tasks without a count of
            their own.
        clock: Tells the time; that of the GPU where there is one.
    """

    def __init__(self, warmup: int = 3, count: bool = False, clock: Clock | None = None) -> None:
        super().__init__()
        self.warmup = warmup
        self.steps = 0
        #: Time of each stage, all steps that count together.
        self.seconds: dict[str, float] = {}
        #: Time of each step that counts, from the end of the one before to its own end.
        self.step_seconds: list[float] = []
        #: Operations of the first step on this process, where they were counted.
        self.operations: int | None = None
        #: Graphs that torch compiled during the warm-up, and since.
        self.graphs = self.recompiled = 0
        #: Boundaries of stages at which the device had nothing left to do, and all of them.
        self.waits = self.boundaries = 0
        self._clock: Clock = clock or (DeviceClock() if torch.cuda.is_available() else HostClock())
        self._counter = FlopCounterMode(display=False) if count else None
        self._stack = [OTHER]
        self._since = self._step_start = self._clock.mark()
        self._step: list[Span] = []  # since the last step's end: what follows the last one is no step
        self._unknown: deque[Span] = deque()  # waiting for the device

    def start(self, action_name: str) -> None:
        """Book the time so far, and enter an action."""
        self._book()
        if action_name == "run_training_batch":
            self.steps += 1
            if self.steps == 1 and self._counter is not None:
                self._counter.__enter__()
        stage = next((stage for part, stage in STAGES.items() if part in action_name), self._stack[-1])
        self._stack.append(stage)

    def stop(self, action_name: str) -> None:
        """Book the time so far, and leave the action."""
        self._book()
        self._stack.pop()
        if action_name == "run_training_batch":
            self._end_step()

    def finish(self) -> None:
        """Wait until the device has done all steps."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._drain()

    @property
    def timed(self) -> int:
        """Steps that count."""
        return max(self.steps - self.warmup, 0)

    def _book(self) -> None:
        self.boundaries += 1
        self.waits += self._clock.idle()
        now = self._clock.mark()
        self._step.append((self._stack[-1], self._since, now))
        self._since = now

    def _end_step(self) -> None:
        if self.steps == 1 and self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.operations = self._counter.get_total_flops()
        if self.steps > self.warmup:
            self._unknown.extend([*self._step, (None, self._step_start, self._since)])
            self.recompiled = _compiled_graphs() - self.graphs
        else:
            self.waits = self.boundaries = 0
            self.graphs = _compiled_graphs()
        self._step = []
        self._step_start = self._since
        self._drain()

    def _drain(self) -> None:
        """Adds up what the device has finished."""
        while self._unknown:
            stage, start, end = self._unknown[0]
            seconds = self._clock.seconds(start, end)
            if seconds is None:
                return
            self._unknown.popleft()
            if stage is None:
                self.step_seconds.append(seconds)
            else:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def finished_profiler(trainer: Trainer) -> StageProfiler:
    """The profiler of a run that has ended, with the times of its steps.

    Raises:
        TerraFMError: If the Trainer has another profiler, or no step was left to measure.
    """
    profiler = getattr(trainer, "profiler", None)
    if not isinstance(profiler, StageProfiler):
        raise TerraFMError(f"The Trainer's profiler is {profiler}: give it a StageProfiler.")
    profiler.finish()
    if not profiler.step_seconds:
        raise TerraFMError(
            f"Training ended after {profiler.steps} batches, and {profiler.warmup} are left out to warm up: the "
            "run is too short, so lower `--warmup` or `data.batch_size`."
        )
    return profiler


def _compiled_graphs() -> int:
    """Graphs that ``torch.compile`` has made in this process."""
    compiler = sys.modules.get("torch._dynamo.utils")
    return compiler.counters["stats"]["unique_graphs"] if compiler else 0

"""A Lightning profiler that shares out the time of training steps among stages."""

from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
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
    "training_step": "rest of the forward pass",
    "backward": "backward",
    "average": "teacher average",
    "reduction": "reduction, centers",
    "optimizer_step": "clipping, optimizer",
}
#: Time of a step outside of all these.
OTHER = "other"


class StageProfiler(Profiler):
    """Shares out the time of training steps among stages, without overlap and without rest.

    An action's time without that of the actions inside it goes to its stage; where its name belongs to none, to the
    stage around it, and at the outermost to "other". On a GPU the time is that of the device's queue, by events in it:
    what the host does while the device is busy costs nothing, and what the device waits for the host is booked where
    the host was. Nothing waits for an event, so a watched step is as fast as any other.

    Args:
        warmup: Steps left out: the first ones wait for workers, caches, compilation and kernels.

    Attributes:
        steps: All steps so far.
        operations: Of the matrix products and convolutions of the first step on this process, by stage, as torch
            counts them. The step is not compiled while they are counted.
        waits: Boundaries of stages in timed steps at which the GPU had nothing left to do.
        boundaries: All of them.
    """

    def __init__(self, warmup: int = 3) -> None:
        super().__init__()
        self.warmup = warmup
        self.steps = self.waits = self.boundaries = 0
        self.operations: dict[str, int] = {}
        self._counter = FlopCounterMode(display=False)
        self._on_gpu = torch.cuda.is_available()
        self._stack = [OTHER]
        self._step: list[tuple[str, Any]] = []  # stages and the marks at their ends, since the last step's end
        self._timed: list[list[tuple[str, Any]]] = []
        self._start: Any = None  # of the first timed step

    def start(self, action_name: str) -> None:
        """Book the time so far, and enter an action."""
        self._book()
        if action_name == "run_training_batch":
            self.steps += 1
            if self.steps == 1:
                self._counter.__enter__()
        stage = next((stage for part, stage in STAGES.items() if part in action_name), self._stack[-1])
        self._stack.append(stage)

    def stop(self, action_name: str) -> None:
        """Book the time so far, and leave the action."""
        self._book()
        self._stack.pop()
        if action_name == "run_training_batch":
            if self.steps == 1:
                self._counter.__exit__(None, None, None)
            if self.steps > self.warmup:
                self._timed.append(self._step)
            else:
                self._start = self._step[-1][1]
                self.waits = self.boundaries = 0
                if self._on_gpu:
                    torch.cuda.reset_peak_memory_stats()
            self._step = []

    def times(self) -> tuple[dict[str, float], list[float]]:
        """Waits until the device has done all steps.

        Returns:
            Mean seconds of each stage per timed step; seconds of each timed step, from the end of the one before.

        Raises:
            TerraFMError: If no step was left to measure.
        """
        if not self._timed:
            raise TerraFMError(
                f"Training ended after {self.steps} batches, and {self.warmup} are left out to warm up: the "
                "run is too short, so lower `--warmup` or `data.batch_size`."
            )
        if self._on_gpu:
            torch.cuda.synchronize()
        stages: dict[str, list[float]] = {}
        last = self._start
        for stage, mark in (span for step in self._timed for span in step):
            stages.setdefault(stage, []).append(self._seconds(last, mark))
            last = mark
        ends = [self._start, *(step[-1][1] for step in self._timed)]
        steps = [self._seconds(start, end) for start, end in pairwise(ends)]
        order = [*dict.fromkeys(STAGES.values()), OTHER]
        return {name: sum(stages[name]) / len(steps) for name in order if name in stages}, steps

    def _book(self) -> None:
        """Marks the end of the present stage's time."""
        stage, mark = self._stack[-1], self._mark()
        self._step.append((stage, mark))
        self.boundaries += 1
        self.waits += self._on_gpu and torch.cuda.current_stream().query()
        if self.steps == 1:
            new = self._counter.get_total_flops() - sum(self.operations.values())
            self.operations[stage] = self.operations.get(stage, 0) + new

    def _mark(self) -> Any:
        """Returns the present place in the GPU's queue, or the present time."""
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start

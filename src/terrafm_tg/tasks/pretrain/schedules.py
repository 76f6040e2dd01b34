"""What changes from step to step: learning rate, weight decay, teacher momentum and temperature."""

from dataclasses import dataclass
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info


class StepValues(NamedTuple):
    """The scheduled values at one optimiser step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float


@dataclass(frozen=True)
class Schedules:
    """The schedules of a run, per optimiser step (paper, "Pretraining").

    Momentum and temperature are the paper's; learning rate and weight decay, which it does not give, DINO's.

    Args:
        steps: Optimiser steps of the whole run.
        lr: Learning rate after the warm-up and at the end (cosine); the warm-up is linear from 0.
        lr_warmup: Steps of its warm-up.
        weight_decay: Weight decay at the start and at the end (cosine).
        teacher_momentum: Share of the old teacher that a step keeps, at the start and at the end (cosine).
        teacher_temp: Temperature of the teacher at the start and after its warm-up (linear, then constant).
        temp_warmup: Steps of that warm-up.
        frozen: First steps in which the head's last layer stays as it is.
    """

    steps: int
    lr: tuple[float, float]
    lr_warmup: int
    weight_decay: tuple[float, float]
    teacher_momentum: tuple[float, float]
    teacher_temp: tuple[float, float]
    temp_warmup: int
    frozen: int

    def at(self, step: int) -> StepValues:
        """The values with which optimiser step ``step`` (0 is the first) is made."""
        from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule, linear_warmup_schedule

        step = min(step, self.steps - 1)
        return StepValues(
            lr=cosine_warmup_schedule(step, self.steps, *self.lr, self.lr_warmup, warmup_start_value=0.0),
            weight_decay=cosine_schedule(step, self.steps, *self.weight_decay),
            teacher_momentum=cosine_schedule(step, self.steps, *self.teacher_momentum),
            teacher_temp=linear_warmup_schedule(step, self.temp_warmup, *self.teacher_temp),
        )


def warmup_steps(name: str, epochs: float, steps_per_epoch: int, steps: int) -> int:
    """Length of a warm-up in optimiser steps, at most half of the run; says so where it had to be cut.

    Args:
        name: The setting's name.
        epochs: Its value.
        steps_per_epoch: Optimiser steps per epoch.
        steps: Optimiser steps of the whole run.
    """
    wanted, most = round(epochs * steps_per_epoch), steps // 2
    if wanted > most:
        rank_zero_info(
            f"{name}={epochs:g} is {wanted} steps, more than half of this run's {steps}: cut to {most}."
        )
    return min(wanted, most)

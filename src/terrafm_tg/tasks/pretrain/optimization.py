"""The optimization of a run: parameter groups, clipping, EMA, centered stems, and what changes from step to step."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.patch_embed import PatchStem

#: Names of the two parameter groups.
DECAY, NO_DECAY = "decay", "no_decay"


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those with weight decay, and biases and other 1-D tensors without.

    DINO's rule: class token and positions are decayed.
    """
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"name": DECAY, "params": [p for p in trained if p.ndim > 1]},
        {"name": NO_DECAY, "params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clip_each_(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scales down, in place, each gradient whose own norm exceeds ``max_norm``, as DINO does."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        norms = whole(torch.stack(torch._foreach_norm(grads)))
        scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(local(grads), list(scale.unbind()))


@torch.no_grad()
def ema_(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float) -> None:
    """Moves each of the teacher's parameters to ``momentum * teacher + (1 - momentum) * student``, in place.

    Args:
        teacher: Parameters of the teacher.
        student: Those of the student, in the same order.
        momentum: Share of the teacher that stays.
    """
    get_ema_multi_avg_fn(momentum)(local(teacher), local(student), None)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's shares of tensors that are sharded; others as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; to be called by all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class CenteredStems:
    """The stems of an encoder, stepped in the coordinates of centered inputs by an optimizer that knows (k, b) only.

    Normalized inputs have mean 0.5 (paper, "Data"). A kernel k therefore also moves the output by 0.5 sum(k), and all
    of its 256 C entries share that part of the gradient: AdamW, whose steps have the size of the learning rate whatever
    the gradient's, takes it in all of them at once. At a learning rate of 1e-3 the constant moves by more than 1 in a
    step, what differs between tiles drowns in it, and within 50 steps DINO's teacher is uniform. With

        k * x + b  =  k * (x - 0.5) + c,   c = b + 0.5 sum(k)

    the step is taken in (k, c) instead of (k, b). The function, its gradient and the published names stay as they are.

    Args:
        encoder: Its stems are found once.

    Example:
        >>> stems = CenteredStems(encoder)
        >>> loss.backward()
        >>> stems.center_gradients_()
        >>> with stems.stepping():
        ...     optimizer.step()
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.stems = [module for module in encoder.modules() if isinstance(module, PatchStem)]

    @torch.no_grad()
    def center_gradients_(self) -> None:
        """Turns the kernels' gradients at constant b into those at constant c; before clipping."""
        for stem in self.stems:
            if stem.weight.grad is not None and stem.bias is not None and stem.bias.grad is not None:
                stem.weight.grad.sub_(0.5 * stem.bias.grad[:, None, None, None])

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Around the optimizer's step: afterwards moves the biases so that c has made the step made with b."""
        before = [stem.weight.detach().sum((1, 2, 3)) for stem in self.stems]
        yield
        with torch.no_grad():
            for stem, old in zip(self.stems, before, strict=True):
                if stem.bias is not None:
                    stem.bias.sub_(0.5 * (stem.weight.sum((1, 2, 3)) - old))


class StepValues(NamedTuple):
    """The scheduled values at one optimizer step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float


@dataclass(frozen=True)
class Schedules:
    """The schedules of a run, per optimizer step (paper, "Pretraining").

    Momentum and temperature are the paper's; learning rate and weight decay, which it does not give, DINO's.

    Args:
        steps: Optimizer steps of the whole run.
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
        """The values with which optimizer step ``step`` (0 is the first) is made."""
        from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule, linear_warmup_schedule

        step = min(step, self.steps - 1)
        return StepValues(
            lr=cosine_warmup_schedule(step, self.steps, *self.lr, self.lr_warmup, warmup_start_value=0.0),
            weight_decay=cosine_schedule(step, self.steps, *self.weight_decay),
            teacher_momentum=cosine_schedule(step, self.steps, *self.teacher_momentum),
            teacher_temp=linear_warmup_schedule(step, self.temp_warmup, *self.teacher_temp),
        )


def warmup_steps(name: str, epochs: float, steps_per_epoch: int, steps: int) -> int:
    """Length of a warm-up in optimizer steps, at most half of the run; says so where it had to be cut.

    Args:
        name: The setting's name.
        epochs: Its value.
        steps_per_epoch: Optimizer steps per epoch.
        steps: Optimizer steps of the whole run.
    """
    wanted, most = round(epochs * steps_per_epoch), steps // 2
    if wanted > most:
        rank_zero_info(f"{name}={epochs:g} is {wanted} steps, more than half of this run's {steps}: cut to {most}.")
    return min(wanted, most)


def global_batch(trainer: Trainer) -> int:
    """Tiles per optimizer step: those of all ranks and accumulated micro-batches.

    Raises:
        TerraFMError: If the train dataloader does not tell its batch size.
    """
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if size is None:
        raise TerraFMError(
            "The train dataloader has no batch_size, by which the learning rate is scaled: set "
            "`optimizer.lr_batch: null` and an absolute `optimizer.lr`."
        )
    return int(size) * trainer.world_size * trainer.accumulate_grad_batches


def count_steps(trainer: Trainer) -> tuple[int, int]:
    """Optimizer steps of the whole run and of one epoch; sets up the train dataloader.

    Raises:
        TerraFMError: If the run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 1:
        raise TerraFMError(
            f"This run has {steps} optimizer steps, but the schedules need an end: set the Trainer's "
            "`max_epochs` or `max_steps`."
        )
    batches = trainer.num_training_batches
    per_epoch = int(steps) if batches == float("inf") else -(-int(batches) // trainer.accumulate_grad_batches)
    return int(steps), per_epoch


def make_schedules(settings: Mapping[str, Any], trainer: Trainer) -> Schedules:
    """Returns the schedules of this run.

    Args:
        settings: TerraFM's hyper-parameters.
        trainer: The trainer; its dataloader is set up, and gives the number of steps.

    Raises:
        TerraFMError: If the run has no end, or its batch size is unknown.
    """
    steps, per_epoch = count_steps(trainer)
    optimizer, schedule = settings["optimizer"], settings["schedule"]
    scale = 1.0 if optimizer["lr_batch"] is None else global_batch(trainer) / optimizer["lr_batch"]
    names = ("warmup_epochs", "temp_warmup_epochs", "freeze_last_layer_epochs")
    lr_warmup, temp_warmup, frozen = (warmup_steps(n, schedule[n], per_epoch, steps) for n in names)
    return Schedules(
        steps=steps,
        lr=(optimizer["lr"] * scale, schedule["min_lr"]),
        lr_warmup=lr_warmup,
        weight_decay=optimizer["weight_decay"],
        teacher_momentum=schedule["teacher_momentum"],
        teacher_temp=schedule["teacher_temp"],
        temp_warmup=temp_warmup,
        frozen=frozen,
    )

"""Parameter groups, clipping and schedules of a run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from terrafm_tg.errors import TerraFMError

from .schedules import Schedules, warmup_steps
from .sharding import local, whole

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


def global_batch(trainer: Trainer) -> int:
    """Tiles per optimiser step: those of all ranks and accumulated micro-batches.

    Raises:
        TerraFMError: If the train dataloader does not tell its batch size.
    """
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if size is None:
        size = getattr(getattr(trainer.train_dataloader, "batch_sampler", None), "batch_size", None)
    if size is None:
        raise TerraFMError(
            "The train dataloader has no batch_size, by which the learning rate is scaled: set "
            "`optimizer.lr_batch: null` and an absolute `optimizer.lr`."
        )
    return int(size) * trainer.world_size * trainer.accumulate_grad_batches


def count_steps(trainer: Trainer) -> tuple[int, int]:
    """Optimiser steps of the whole run and of one epoch; sets up the train dataloader.

    Raises:
        TerraFMError: If the run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 1:
        raise TerraFMError(
            f"This run has {steps} optimiser steps, but the schedules need an end: set the Trainer's "
            "`max_epochs` or `max_steps`."
        )
    batches = trainer.num_training_batches
    per_epoch = steps if batches == float("inf") else -(-int(batches) // trainer.accumulate_grad_batches)
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

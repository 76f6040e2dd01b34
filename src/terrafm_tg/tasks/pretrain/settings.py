"""The settings of pretraining in groups, what each may be, and their comparison with a checkpoint's.

Every number of the paper is a default here. A group is a section in YAML and a prefix on the command line
(``--model.optimizer.lr 1e-3``); a tuple of two is a schedule's start and end.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from reprlib import repr as short
from typing import Any

import numpy as np

from terrafm_tg.errors import TerraFMError
from terrafm_tg.transforms import Augment


@dataclass(frozen=True)
class Crops:
    """The size and number of crops.

    Args:
        global_size: Height and width of the two global crops in pixels, divisible by 16.
        local_size: Height and width of the local crops in pixels, divisible by 16.
        local_crops: Number of local crops, of which only the student sees any (the paper: 8 to 10).
        global_scale: Range of the global crops' share of the tile's area.
        local_scale: Range of the local crops' share of the tile's area.
        ratio: Range of a crop's width / height.
    """

    global_size: int = 224
    local_size: int = 96
    local_crops: int = 8
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Center:
    """Dual centering of the teacher's logits.

    Args:
        alpha: Weight of the center over all samples; 1 - alpha is that of the frequent classes. 1 is plain DINO.
        frequent_classes: Names of the frequent land-cover classes; by default those whose share of the draws
            exceeds 1 / (number of classes present).
        momentum: Share of the old centers that a step keeps.
    """

    alpha: float = 0.8
    frequent_classes: list[str] | None = None
    momentum: float = 0.9


@dataclass(frozen=True)
class PrototypeHead:
    """The projection head.

    Args:
        prototypes: Width K of its output.
        hidden_dim: Width of its hidden layers.
        bottleneck_dim: Width before the prototypes.
        norm_last_layer: Keep the prototypes at length one.
    """

    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm_last_layer: bool = True


@dataclass(frozen=True)
class Contrast:
    """The contrast of places, which the paper does not have; for small batches and short runs.

    Args:
        weight: Its weight in the loss; 0 leaves it out.
        temp: Temperature of its softmax.
    """

    weight: float = 0.0
    temp: float = 0.1


@dataclass(frozen=True)
class Optimization:
    """AdamW and the gradients that it gets.

    Args:
        lr: Peak learning rate for a global batch of ``lr_batch`` tiles (all ranks and accumulated micro-batches).
        lr_batch: Global batch to which ``lr`` refers; null takes ``lr`` as it is.
        weight_decay: Weight decay, cosine; biases and other 1-D tensors have none.
        clip_grad: Largest norm of each parameter tensor's gradient; null does not clip.
    """

    lr: float = 5e-4
    lr_batch: int | None = 256
    weight_decay: tuple[float, float] = (0.04, 0.4)
    clip_grad: float | None = 3.0


@dataclass(frozen=True)
class Schedule:
    """Warm-ups and courses over the run.

    Args:
        warmup_epochs: Linear warm-up of the learning rate.
        min_lr: Learning rate at the end of its cosine.
        teacher_momentum: Share of the old teacher that a step keeps, cosine.
        teacher_temp: Temperature of the teacher's softmax, linear.
        temp_warmup_epochs: Length of that schedule; then it stays.
        freeze_last_layer_epochs: Epochs in which the prototypes stay as they are.
    """

    warmup_epochs: float = 10
    min_lr: float = 1e-6
    teacher_momentum: tuple[float, float] = (0.996, 1.0)
    teacher_temp: tuple[float, float] = (0.04, 0.06)
    temp_warmup_epochs: float = 30
    freeze_last_layer_epochs: float = 1


#: The groups by the task's parameter.
GROUPS: dict[str, type[Any]] = {
    "crops": Crops,
    "augmentation": Augment,
    "center": Center,
    "head": PrototypeHead,
    "contrast": Contrast,
    "optimizer": Optimization,
    "schedule": Schedule,
}

type _Limit = tuple[Callable[[Any], bool], str]
_POSITIVE: _Limit = (lambda x: x > 0, "above 0")
_NOT_NEGATIVE: _Limit = (lambda x: x >= 0, "at least 0")
_COUNT: _Limit = (lambda x: 1 <= x < 2**31, "at least 1, and below 2^31")
_SHARE: _Limit = (lambda x: 0 <= x <= 1, "from 0 to 1")
_PATCHES: _Limit = (lambda x: 16 <= x < 2**16 and x % 16 == 0, "a multiple of 16, the width of a patch")
#: The range of each number, and of the start and the end of each schedule; null passes where it has a meaning.
_LIMITS: dict[str, _Limit] = {
    **dict.fromkeys(("crops.global_size", "crops.local_size"), _PATCHES),
    **dict.fromkeys(("depth", "head.prototypes", "head.hidden_dim", "head.bottleneck_dim"), _COUNT),
    **dict.fromkeys(
        ("student_temp", "contrast.temp", "schedule.teacher_temp", "optimizer.lr", "optimizer.clip_grad"), _POSITIVE
    ),
    **dict.fromkeys(
        (f"schedule.{name}_epochs" for name in ("warmup", "temp_warmup", "freeze_last_layer")), _NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("koleo", "dimensions", "contrast.weight", "schedule.min_lr", "optimizer.weight_decay"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("center.alpha", "center.momentum", "schedule.teacher_momentum"), _SHARE),
    "optimizer.lr_batch": _COUNT,
    "drop_path": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
}


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's settings as plain values and dicts of them, which a checkpoint can hold.

    Args:
        settings: By parameter; a group as its dataclass, or as a mapping of some of its fields.

    Raises:
        TerraFMError: If a group has no such field.
    """
    return {name: _group(name, x) if name in GROUPS else plain(x) for name, x in settings.items()}


def _group(name: str, settings: Any) -> dict[str, Any]:
    kind = GROUPS[name]
    known = [field.name for field in fields(kind)]
    if isinstance(settings, Mapping):
        for field in settings:
            if field not in known:
                raise TerraFMError(f"`{name}.{field}` is no setting: `{name}` has {', '.join(known)}.")
        settings = kind(**settings)
    if not isinstance(settings, kind):
        raise TerraFMError(f"`{name}` is {settings!r}: give {kind.__name__}(...), or a mapping of its fields.")
    return {field: plain(value) for field, value in asdict(settings).items()}


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by their dotted names, such as ``optimizer.lr``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{field}": x for field, x in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def check_limits(settings: Mapping[str, Any]) -> None:
    """Stops where a number is one that nothing can be learned with.

    Args:
        settings: The task's.

    Raises:
        TerraFMError: Naming the setting, its value and its range.
    """
    flat = flatten(settings)
    for name, (fits, words) in _LIMITS.items():
        value = flat[name]
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(x is None or (isinstance(x, int | float) and fits(x)) for x in numbers):
            each = "each of its two numbers must be" if numbers is value else "it must be"
            raise TerraFMError(f"`{name}` is {plain(value)!r}: {each} {words}.")
    start, end = flat["schedule.teacher_temp"]
    if start > end:
        raise TerraFMError(
            f"`schedule.teacher_temp` is {[start, end]}: set its start and an end that is not lower, above 0."
        )


def check_settings(saved: Mapping[str, Any], present: Mapping[str, Any], free: Collection[str]) -> None:
    """Stops where a setting differs from the checkpoint's.

    Args:
        saved: The checkpoint's settings; those that this version does not know are named too.
        present: The settings of now; a checkpoint written before a setting existed lacks it and says nothing.
        free: Dotted names of settings that may differ.

    Raises:
        TerraFMError: Naming each setting that differs, with both values.
    """
    missing = object()
    now = flatten(present)
    differing = [
        f"{name} ({short(value)} in the checkpoint, {short(now.get(name, _of_group(name, present)))} now)"
        for name, value in flatten(saved).items()
        if not name.startswith("_") and name not in free and plain(value) != plain(now.get(name, missing))
    ]
    if differing:
        raise TerraFMError(
            f"The checkpoint was made with other settings: {'; '.join(differing)}. Set them as in the "
            "checkpoint to resume, or start a new run without it."
        )


def _of_group(name: str, present: Mapping[str, Any]) -> Any:
    """Returns the setting that has no value of that dotted name now."""
    group, _, field = name.partition(".")
    value = present.get(group, "unknown")
    return "unknown" if field and isinstance(value, Mapping) else value


def plain(value: Any) -> Any:
    """Returns the value as YAML would hold it: arrays and tuples as lists, NumPy's numbers and paths as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value

"""What the task's settings may be, for themselves and beside a checkpoint's."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from terrafm_tg.errors import TerraFMError

type _Limit = tuple[Callable[[Any], bool], str]
_POSITIVE: _Limit = (lambda x: x > 0, "above 0")
_NOT_NEGATIVE: _Limit = (lambda x: x >= 0, "at least 0")
_COUNT: _Limit = (lambda x: x >= 1, "at least 1")
_SHARE: _Limit = (lambda x: 0 <= x <= 1, "from 0 to 1")
_PATCHES: _Limit = (lambda x: x >= 16 and x % 16 == 0, "a multiple of 16, the width of a patch")
#: What each number must be, and the start and the end of each schedule; null passes where it has a meaning.
_LIMITS: dict[str, _Limit] = {
    **dict.fromkeys(("global_size", "local_size"), _PATCHES),
    **dict.fromkeys(("depth", "prototypes", "head_hidden", "head_bottleneck", "lr_batch"), _COUNT),
    **dict.fromkeys(("student_temp", "teacher_temp", "lr", "clip_grad"), _POSITIVE),
    **dict.fromkeys(("temp_warmup_epochs", "warmup_epochs", "freeze_last_layer_epochs"), _NOT_NEGATIVE),
    **dict.fromkeys(("koleo", "min_lr", "weight_decay"), _NOT_NEGATIVE),
    **dict.fromkeys(("center_momentum", "teacher_momentum"), _SHARE),
    "drop_path": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
}


def check_limits(settings: Mapping[str, Any]) -> None:
    """Stops where a number is one that nothing can be learnt with.

    Args:
        settings: The task's.

    Raises:
        TerraFMError: Naming the setting, its value and what it must be.
    """
    for name, (fits, words) in _LIMITS.items():
        value = settings[name]
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(number is None or fits(number) for number in numbers):
            each = "each of its two numbers must be" if numbers is value else "it must be"
            raise TerraFMError(f"`{name}` is {plain(value)}: {each} {words}.")


def check_settings(saved: Mapping[str, Any], present: Mapping[str, Any], free: Collection[str]) -> None:
    """Stops where a setting differs from the checkpoint's.

    Args:
        saved: The checkpoint's settings; those that this version does not know are named too.
        present: The settings of now; a checkpoint written before a setting existed lacks it and says nothing.
        free: Settings that may differ.

    Raises:
        TerraFMError: Naming each setting that differs, with both values.
    """
    missing = object()
    differing = [
        f"{name} ({value!r} in the checkpoint, {present.get(name, 'unknown')!r} now)"
        for name, value in saved.items()
        if not name.startswith("_") and name not in free and plain(value) != plain(present.get(name, missing))
    ]
    if differing:
        raise TerraFMError(
            f"The checkpoint was made with other settings: {'; '.join(differing)}. Set them as in the "
            "checkpoint to resume, or start a new run without it."
        )


def plain(value: Any) -> Any:
    """The value with tuples as lists, so that YAML's and Python's compare equal."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

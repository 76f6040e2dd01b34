"""Compares a checkpoint's settings with the present ones."""

from collections.abc import Collection, Mapping
from typing import Any

from terrafm_tg.errors import TerraFMError


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

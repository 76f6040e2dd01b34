"""The folder of a packed store while it is written: whose it is, how it was made, and what lies in it for nothing."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from terrafm_tg.datasets.shards import SUFFIX
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES

#: Says that a folder is a packed store, also before it has an index, and with which settings it is made.
MARKER = "store.json"
_LOCK = ".lock"


@contextmanager
def alone_in(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of a store, or take the one that is there, for one process at a time.

    Args:
        out: The folder.
        settings: How tiles are stored; all of one store alike.

    Raises:
        TerraFMError: If it is something else, was made with other settings, or another process packs into it.
    """
    if out.exists() and not out.is_dir():
        raise TerraFMError(f"{out} is a file: name a folder for the store.")
    marker = out / MARKER
    ours = {_LOCK, f"{MARKER}.part"}  # of a process that was killed at its start
    if out.exists() and not marker.is_file() and {path.name for path in out.iterdir()} - ours:
        raise TerraFMError(
            f"{out} is no packed store and not empty: name another folder, which may be absent."
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / _LOCK, timeout=0):
            if marker.is_file():
                _compare(marker, settings)
            else:
                write_text(marker, json.dumps(settings, indent=2) + "\n")
            yield
    except Timeout as error:
        raise TerraFMError(f"Another process packs into {out}: wait for its end.") from error


def remove_others(out: Path, shards: Collection[str]) -> int:
    """Remove shards that the index does not name any more, and what killed processes were writing.

    Args:
        out: The store, whose new index is in place.
        shards: Paths below it that the index names.

    Returns:
        How many shards.
    """
    removed = 0
    for path in (path for name in MODALITIES for path in sorted((out / name).glob(f"*{SUFFIX}"))):
        if path.relative_to(out).as_posix() not in shards:
            path.unlink(missing_ok=True)
            removed += 1
    for path in [*out.glob("*.part"), *out.glob("*/*.part")]:
        path.unlink(missing_ok=True)
    return removed


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _compare(marker: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that the store was not made with."""
    try:
        held = json.loads(marker.read_text())
    except ValueError as error:
        raise TerraFMError(f"{marker} cannot be read ({error}): pack into another folder.") from error
    for name, value in settings.items():
        if held.get(name) != value:
            raise TerraFMError(
                f"The store {marker.parent} was made with {name}={held.get(name)!r}, not {value!r}: set that, or name "
                "another folder."
            )

"""The folder of a packed store while it is written: whose it is, how it was made, and what lies in it for nothing."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import remove_leftovers, write_text

#: Says that a folder is a packed store, also before it has an index, and with which settings it is made.
MARKER = "store.json"
_LOCK = ".lock"
_GONE = ".gone.json"


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
    if out.exists() and not marker.is_file() and any(map(_is_foreign, out.iterdir())):
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


def plan_removal(out: Path, shards: Collection[str]) -> None:
    """Note, before a new index is written, which shards of the present one it does not name any more.

    Only these are ever removed: a shard that no index names may hold what has no source any more, of a store whose
    index was lost.
    """
    gone = sorted({*shards, *_planned(out)})
    if gone:
        write_text(out / _GONE, json.dumps(gone))


def remove_planned(out: Path, named: Collection[str]) -> int:
    """Remove the shards noted, once the new index is in place, and what killed processes were writing.

    Args:
        out: The store.
        named: Paths below it that the new index names.

    Returns:
        How many shards.
    """
    gone = [path for name in _planned(out) if name not in named and (path := out / name).is_file()]
    for path in [*gone, out / _GONE]:
        path.unlink(missing_ok=True)
    remove_leftovers(out)
    return len(gone)


def _is_foreign(path: Path) -> bool:
    """Whether it is not what a process leaves that was killed at its start."""
    return path.name != _LOCK and not path.name.startswith(f".{MARKER}.")


def _planned(out: Path) -> list[str]:
    """What was noted and not removed, because the process was killed in between."""
    return json.loads((out / _GONE).read_text()) if (out / _GONE).is_file() else []


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

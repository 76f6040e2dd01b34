"""Files that appear whole or not at all, and survive a power cut."""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_ENDING = ".tmp"


def remove_leftovers(*folders: Path) -> None:
    """Remove files that a killed process was writing, also in folders below; nothing may write there meanwhile."""
    for folder in folders:
        for path in folder.rglob(f".*{_ENDING}"):
            path.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, alone: bool = False) -> Iterator[Path]:
    """A path to write to; it becomes ``path`` when the block ends without an error.

    Args:
        path: The file; its folder is made where missing.
        alone: No other process writes this file at the same time: what a killed one left of it is removed.

    Yields:
        A path beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{_ENDING}"):
            left.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}{_ENDING}")
    try:
        yield beside
        settle(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file that no other process writes at the same time."""
    with whole_file(path, alone=True) as beside:
        beside.write_text(text, newline="")


def write_json(path: Path, content: Any) -> None:
    """Write plain values for people and programs, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def settle(beside: Path, path: Path) -> None:
    """Flush a finished file to the disk and give it its name."""
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the name itself survives
    finally:
        os.close(folder)

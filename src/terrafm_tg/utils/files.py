"""Files on disk: written atomically, listed in order, and told apart from other sets of files."""

import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

_ENDING = ".tmp"
_WORK = ".work"


@contextmanager
def atomic_write(path: Path, sole_writer: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which takes the name ``path`` if the block ends without an error.

    Args:
        path: The file; its folder is made where missing.
        sole_writer: No other process writes this file at the same time: what a killed one left of it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sole_writer:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{_ENDING}"):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{_ENDING}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the name itself survives a power cut
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside a file or folder that only this process writes, on the same disk.

    It is removed at the end, and what a killed process left of one before that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_WORK}"):
        shutil.rmtree(left)
    folder = path.with_name(f".{path.name}.{uuid4().hex}{_WORK}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file that no other process writes at the same time."""
    with atomic_write(path, sole_writer=True) as temporary:
        temporary.write_text(text, newline="")


def write_json(path: Path, content: Any) -> None:
    """Writes plain values for people and programs, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def remove_leftovers(*folders: Path) -> None:
    """Removes files that a killed process was writing, also in folders below; nothing may write there meanwhile."""
    for folder in folders:
        for path in folder.rglob(f".*{_ENDING}"):
            path.unlink(missing_ok=True)


def files_below(root: Path, *endings: str, deep: bool = True) -> Iterator[Path]:
    """Lists files with one of some endings, in any case: those of a folder by name, then those of its folders.

    Args:
        root: The folder; nothing is listed where there is none.
        endings: Such as ``".tif"``; all files where none is given.
        deep: Look into folders below too, but not through links to folders.
    """
    for base, folders, names in os.walk(root):
        folders[:] = sorted(folders) if deep else []
        yield from (Path(base, name) for name in sorted(names) if name.lower().endswith(endings or ""))


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """Names a set of files: the name changes when one is added, removed or replaced, also by one of equal size."""
    entries = sorted(f"{file.relative_to(root).as_posix()} {stamp(file)}" for file in files)
    return sha256("\n".join(entries).encode()).hexdigest()


def content(file: Path, most: int = 1 << 24) -> str:
    """Digests a file's size and bytes: all of them up to ``most``, else 256 blocks spread evenly, first and last too.

    Other than :func:`stamp`, it stays where a file is copied, or fetched again.
    """
    size = file.stat().st_size
    digest = sha256(str(size).encode())
    block = min(size, most) if size <= most else most >> 8
    starts = range(1) if size <= most else (i * (size - block) // 255 for i in range(256))
    with file.open("rb") as opened:
        for start in starts:
            opened.seek(start)
            digest.update(opened.read(block))
    return digest.hexdigest()


def stamp(file: Path) -> str:
    """Returns a file's size and the time of its last change: others where it was replaced or written anew."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"

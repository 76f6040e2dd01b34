"""The folder of a packed store: settings, lock, and index with its checksum."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from xxhash import xxh3_128

from terrafm_tg.datasets.tiles.columns import index_settings
from terrafm_tg.datasets.tiles.dataset import check_tile_size
from terrafm_tg.datasets.tiles.index_file import NAME, read_index, read_shared, write_index
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_json, write_text
from terrafm_tg.utils.remote import shared_reader
from terrafm_tg.utils.shared import is_large, shared_table

_log = logging.getLogger(__name__)

#: Says that a folder is a packed store, also before it has an index, and with which settings it is made.
MARKER = "store.json"


@contextmanager
def alone_in(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder of a store, or takes the one that is there, for one process at a time.

    Raises:
        TerraFMError: If it is something else, was made with other settings, or another process packs into it.
    """
    if out.exists() and not out.is_dir():
        raise TerraFMError(f"{out} is a file: name a folder for the store.")
    marker = out / MARKER
    # hidden files are of a process that was killed at its start
    if out.exists() and not marker.is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise TerraFMError(f"{out} is no packed store and not empty: name another folder, which may be absent.")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if not marker.is_file():
                write_json(marker, settings)
            try:
                held = index_settings(marker.read_bytes()) or {}
            except (OSError, ValueError) as error:
                raise TerraFMError(f"{marker} cannot be read ({error}): pack into another folder.") from error
            for name, value in settings.items():
                if held.get(name) != value:
                    raise TerraFMError(
                        f"The store {out} was made with {name.replace('quantise', 'quantize')}={held.get(name)!r}, not "
                        f"{value!r}: set that, or name another folder."
                    )
            yield
    except Timeout as error:
        raise TerraFMError(f"Another process packs into {out}: wait for its end.") from error


#: The file with the index' checksum.
SUM = f"{NAME}.xxh128"
#: The folder of tables that are not in the index yet.
LOG = "log"
#: The format of stores that this version writes and reads.
FORMAT = 1
_MOST_INDEX = 1 << 32  # bytes, on a server
_ROW = 128  # bytes that a tile takes of it, about
#: Columns of its index that each modality has, besides those of a tile index.
PLACES = ("shard_", "start_", "bytes_", "layout_", "xxh3_", "offset_")


def append_log(table: pd.DataFrame, root: Path, made_for: dict[str, Any]) -> None:
    """Adds the table of a run to the log of a store, without a look at what the store holds besides.

    Args:
        table: Of :func:`~terrafm_tg.datasets.store.table.entry_table`.
        root: Of the store.
        made_for: As for :func:`write_store_index`.
    """
    new, paths = root / LOG / "new.parquet", _log_files(root)
    write_index(table, new, made_for)
    name = _line(new).split()[0]
    if paths and paths[-1].stem.endswith(name):  # the run before was killed behind this line
        new.unlink()
    else:
        new.replace(root / LOG / f"{len(paths) and int(paths[-1].stem[:6]) + 1:06}-{name}.parquet")


def read_log(root: Path) -> list[pd.DataFrame]:
    """Reads the tables of the runs that the index of a store lacks, the latest first.

    Raises:
        TerraFMError: If one is damaged.
    """
    paths = _log_files(root)[::-1]
    for path in paths:
        if not path.stem.endswith(_line(path).split()[0]):
            raise TerraFMError(f"{path} is damaged: remove it, and pack the part again that it is of.")
    return [read_index(path, needs=PLACES)[0] for path in paths]


def clear_log(root: Path) -> None:
    """Removes the log of a store, the oldest part first: what is left, if that is stopped, can be joined again."""
    for path in _log_files(root):
        path.unlink()
    if (root / LOG).is_dir():
        shutil.rmtree(root / LOG)


def _log_files(root: Path) -> list[Path]:
    return sorted((root / LOG).glob("[0-9]*.parquet"))


def write_store_index(index: pd.DataFrame, root: Path, made_for: dict[str, Any]) -> None:
    """Writes the index of a store and its checksum, or puts them in the place of those there.

    Args:
        index: A tile index or tile table; see :class:`~terrafm_tg.datasets.PackedTiles` for its columns.
        root: Of the store.
        made_for: ``{"format": FORMAT, "tile_size": ...}`` and other settings; JSON can hold it.
    """
    new, path = root / f"{NAME}.new", root / NAME
    write_index(index, new, made_for)
    line = _line(new)
    held = _line(path) if path.is_file() else ""
    write_text(root / SUM, line + held)  # either index is right while one takes the other's place
    new.replace(path)
    write_text(root / SUM, line)


def read_store_index(root: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads the index of a store after its checksum was found right.

    Returns:
        The tile table, and the settings it was made for.

    Raises:
        TerraFMError: If there is no store, its index is damaged, or of a newer format.
    """
    if "://" not in root:
        if _log_files(Path(root)):
            _log.warning("Tiles in the log of %s are not in its index yet: pack its last part with --merge true.", root)
        table, made_for = read_shared(Path(root, NAME), needs=PLACES, check=lambda: _check(Path(root), root))
    else:
        table, made_for = _read_remote(root)
    if made_for.get("format") != FORMAT:
        raise TerraFMError(
            f"The store {root} has format {made_for.get('format')!r}, this version reads {FORMAT}: update terrafm-tg, "
            "or pack again."
        )
    check_tile_size(made_for.get("tile_size", 0))
    return table, made_for


def _read_remote(root: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads the index of a store on a server, which a machine fetches once if it is large."""
    with tempfile.TemporaryDirectory(prefix="terrafm-") as name:
        folder, base = Path(name), root.rstrip("/")

        def read() -> tuple[pd.DataFrame, dict[str, Any]]:
            with _no_store(root):
                shared_reader().save(f"{base}/{NAME}", folder / NAME, _MOST_INDEX)
            _check(folder, root)
            return read_index(folder / NAME, needs=PLACES)

        with _no_store(root):
            size, *_ = shared_reader().describe(f"{base}/{NAME}")
            shared_reader().save(f"{base}/{SUM}", folder / SUM, _MOST_INDEX)
            key = f"{base} {(folder / SUM).read_text()}"
        return shared_table(key, read) if is_large(size // _ROW) else read()


def _check(folder: Path, root: str) -> None:
    """Refuses the index of a store whose checksum is not the one beside it."""
    with _no_store(root):
        right = _line(folder / NAME).encode() in (folder / SUM).read_bytes().splitlines(keepends=True)
    if not right:
        raise TerraFMError(
            f"{root.rstrip('/')}/{NAME} is damaged: its checksum is not the one in {SUM}. Restore both from a copy, or "
            "pack the sources again into a new folder."
        )


@contextmanager
def _no_store(root: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise TerraFMError(
            f"{root} is no packed store ({NAME} or {SUM} cannot be read: {error}): make one with `terrafm pack`."
        ) from error


def _line(path: Path) -> str:
    """Returns a file's checksum in the form of ``xxh128sum``, under the name of an index."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, xxh3_128).hexdigest()}  {NAME}\n"

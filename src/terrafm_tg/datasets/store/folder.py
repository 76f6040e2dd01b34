"""The folder of a packed store: settings, lock, and index with its checksum."""

import hashlib
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
from terrafm_tg.datasets.tiles.index_file import NAME, read_index, write_index
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_json, write_text
from terrafm_tg.utils.remote import shared_reader

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
#: The format of stores that this version writes and reads.
FORMAT = 1
_MOST_INDEX = 1 << 32  # bytes, on a server
#: Columns of its index that each modality has, besides those of a tile index.
PLACES = ("shard_", "start_", "bytes_", "layout_", "xxh3_", "offset_")


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
    with tempfile.TemporaryDirectory(prefix="terrafm-") as folder:
        local = Path(folder) if "://" in root else Path(root)
        try:
            if "://" in root:
                for name in (NAME, SUM):
                    shared_reader().save(f"{root.rstrip('/')}/{name}", local / name, _MOST_INDEX)
            lines = (local / SUM).read_bytes().splitlines(keepends=True)
            right = _line(local / NAME).encode() in lines
        except OSError as error:
            raise TerraFMError(
                f"{root} is no packed store ({NAME} or {SUM} cannot be read: {error}): make one with `terrafm pack`."
            ) from error
        if not right:
            raise TerraFMError(
                f"{root.rstrip('/')}/{NAME} is damaged: its checksum is not the one in {SUM}. Restore both from a "
                "copy, or pack the sources again into a new folder."
            )
        table, made_for = read_index(local / NAME, needs=PLACES)
    if made_for.get("format") != FORMAT:
        raise TerraFMError(
            f"The store {root} has format {made_for.get('format')!r}, this version reads {FORMAT}: update terrafm-tg, "
            "or pack again."
        )
    check_tile_size(made_for.get("tile_size", 0))
    return table, made_for


def _line(path: Path) -> str:
    """Returns a file's checksum in the form of ``xxh128sum``, under the name of an index."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, xxh3_128).hexdigest()}  {NAME}\n"

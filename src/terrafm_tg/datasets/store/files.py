"""The index of a packed store and its checksum: what is read is what was written, or nothing.

Beside ``index.parquet`` lies ``index.parquet.xxh128`` with its XXH3 (128 bits), in the form that ``xxh128sum -c``
checks. Whoever is stopped between the two leaves either the old index or the new one, never neither.
"""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from xxhash import xxh3_128

from terrafm_tg.datasets.index.file import NAME, read_index, write_index
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_text
from terrafm_tg.utils.remote import shared_reader

#: The file with the index' checksum.
SUM = f"{NAME}.xxh128"
#: The format of stores that this version writes and reads.
FORMAT = 1


def write_store_index(index: pd.DataFrame, root: Path, made_for: dict[str, Any]) -> None:
    """Write the index of a store and its checksum, or put them in the place of the ones there.

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
    """Read the index of a store after its checksum was found right.

    Args:
        root: Folder of the store, or its URL.

    Returns:
        The tile table, and what it was made for.

    Raises:
        TerraFMError: If there is no store, its index is damaged, or of a newer format.
    """
    with tempfile.TemporaryDirectory(prefix="terrafm-") as folder:
        local = Path(folder) if "://" in root else Path(root)
        try:
            if "://" in root:
                for name in (NAME, SUM):
                    shared_reader().save(f"{root.rstrip('/')}/{name}", local / name)
            lines = (local / SUM).read_bytes().splitlines(keepends=True)
            right = _line(local / NAME).encode() in lines
        except OSError as error:
            raise TerraFMError(
                f"{root} is no packed store ({NAME} or {SUM} cannot be read: {error}): make one with `terrafm pack`."
            ) from error
        if not right:
            raise TerraFMError(
                f"{root.rstrip('/')}/{NAME} is damaged: its checksum is not the one in {SUM}. Restore both from a "
                "copy, or delete both and run `terrafm pack` again on all its sources, whose shards stay."
            )
        table, made_for = read_index(local / NAME)
    if made_for.get("format") != FORMAT:
        raise TerraFMError(
            f"The store {root} has format {made_for.get('format')!r}, this version reads {FORMAT}: update terrafm-tg, "
            "or pack again."
        )
    return table, made_for


def _line(path: Path) -> str:
    """A file's checksum in the form of ``xxh128sum``, under the name that an index has."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{digest.hexdigest()}  {NAME}\n"

"""Shards of a packed store: Arrow IPC files of one modality with a tile per record batch.

Any Arrow library reads them. We read a record by its place in the file, which the store's index knows: one read of
consecutive bytes from a disk or an object store, and no parser sees them before their checksum was found right.
"""

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from terrafm_tg.datasets.tiles.pixels import only_nodata
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.files import OpenFiles, atomic_write
from terrafm_tg.utils.remote import shared_reader

from .records import checksum, encode

#: Ending of the files.
SUFFIX = ".arrow"
_FORMAT = b"shard 1"
_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("quadrant", pa.int16()),
        ("fault", pa.string()),
        ("layout", pa.string()),
        ("xxh3", pa.uint64()),
        ("data", pa.binary()),
    ]
)


class Record(NamedTuple):
    """One tile to be written."""

    cell: str
    quadrant: int
    #: Native pixels (C, h, w) per resolution as they lie at the source, with the offset; None where unreadable.
    groups: Mapping[int, np.ndarray] | None
    fault: str = ""  # the cause, as the `reason` of a DamagedTileError


def write_shard(path: Path, modality: Modality, records: Iterable[Record]) -> pd.DataFrame:
    """Writes a shard, one record at a time, atomically; the same records give the same bytes.

    Of a tile that could not be read, or of which a band holds only nodata, the reason is kept instead of pixels:
    reading it raises that error again.

    Args:
        path: The file, ``<store>/<modality>/<name>.arrow``; its folder exists.
        modality: Their sensor.
        records: The tiles; consumed as they are written.

    Returns:
        The table of :func:`shard_table`.
    """
    schema = _SCHEMA.with_metadata({"terrafm": _FORMAT, "modality": modality.name})
    with atomic_write(path) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for record in records:
                writer.write_batch(_batch(record, modality))
        return shard_table(part)


def _batch(record: Record, modality: Modality) -> pa.RecordBatch:
    data = layout = digest = None
    fault = record.fault
    if record.groups is not None:
        fault = fault or only_nodata(record.groups, modality)
    if record.groups is not None and not fault:
        data, layout = encode(record.groups, modality)
        digest = checksum(data, record.cell, record.quadrant, modality, layout)
    row = [record.cell, record.quadrant, fault, layout, digest, data]
    return pa.record_batch(
        [pa.array([value], field.type) for value, field in zip(row, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def shard_table(path: Path) -> pd.DataFrame:
    """Lists the records of a shard and their places; the pixels are not read.

    Args:
        path: A local file that :func:`write_shard` wrote.

    Returns:
        A row per record, in the file's order: ``cell``, ``quadrant``, ``fault`` (empty where there are pixels),
        ``start`` (int64) and ``bytes`` (int32) of the record in the file, ``xxh3`` (uint64), ``layout``. These are
        the columns of a store's index (with ``_<modality>`` behind the name, and ``shard_<modality>`` for the
        file's path below the root).

    Raises:
        TerraFMError: If the file is damaged, or no shard.
    """
    try:
        with pa.memory_map(str(path)) as file:
            rows = list(_rows(file.read_buffer()))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(f"{path} is no whole shard ({error}): pack the sources into a new folder.") from error
    names = {"cell": str, "quadrant": np.int16, "fault": str, "start": np.int64, "bytes": np.int32,
             "xxh3": np.uint64, "layout": str}  # fmt: skip
    return pd.DataFrame(rows, columns=list(names)).astype(names)


def _rows(whole: pa.Buffer) -> Iterator[tuple[Any, ...]]:
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    said = reader.schema.metadata or {}
    if not reader.schema.equals(_SCHEMA) or said.get(b"terrafm") != _FORMAT or b"modality" not in said:
        raise ValueError("its columns, or what it says of itself, are others")
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        cell, quadrant, fault, layout, digest, data = (column[0] for column in batch.columns)
        start = size = 0
        if data.is_valid:
            stored = batch.column("data").buffers()[2]  # where they lie, not a copy
            start, size = stored.address - whole.address, stored.size
            if not 0 <= start <= whole.size - size:
                raise ValueError("its pixels are stored in another way")
        yield (cell.as_py(), quadrant.as_py(), fault.as_py(), start, size, digest.as_py() or 0, layout.as_py() or "")


class ShardFiles(OpenFiles["_LocalFile"]):
    """The last few shards that this process read."""

    def __init__(self, limit: int = 64) -> None:
        super().__init__(limit)

    def read(self, path: str, start: int, size: int) -> bytes:
        """Reads consecutive bytes of a file: one system call, or one range request.

        Not through a memory map: a file that is cut while it is mapped would end the process.

        Returns:
            The bytes.

        Raises:
            OSError: If they cannot be read, or the file ends before.
        """
        if "://" in path:
            return shared_reader().read(path, start, start + size)
        data = self.opened(path).read(start, size)
        if len(data) != size:
            raise OSError(f"{len(data)} bytes came from byte {start} on, expected {size}")
        return data

    def _open(self, path: str) -> "_LocalFile":
        return _LocalFile(path)


class _LocalFile:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

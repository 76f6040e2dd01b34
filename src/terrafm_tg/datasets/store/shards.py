"""Shards of a packed store: Arrow IPC files of one modality with a tile per record batch.

Any Arrow library reads them. We read a record by its place in the file, which the store's index knows: one read of
consecutive bytes from a disk or an object store, and no parser sees them before their checksum was found right.

A record is the tile's native groups (10, 20, 60 m), each a Blosc frame (bytes shuffled by significance, then LZ4)
of its pixels in C order, little-endian, one after the other. What they decode to is said by the *layout*, such as
``uint16 4x534x534 6x267x267 2x89x89``. The checksum of a record is XXH3 (64 bits) over its bytes, seeded with that
of ``"<cell>/<quadrant> <modality> <layout>"``: so it fails for other pixels and for another tile's.
"""

import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numcodecs import blosc
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from terrafm_tg.datasets.tiles.pixels import check_fit, only_nodata
from terrafm_tg.datasets.tiles.table import MAX_TILE
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.remote import shared_reader

# Several threads put a frame's blocks into the order in which they finish: other bytes each time. We use processes.
blosc.use_threads = False

#: LZ4's high-compression search; 1 is the fastest. Any level decodes as fast or faster.
LEVEL = 1
# A Blosc frame's header: the bytes that it decodes to, those of a block, and its own length.
_HEADER = struct.Struct("<4xIII")
_LAYOUT = re.compile(r"(u?int16|float32)((?: [1-9][0-9]?x[1-9][0-9]{0,3}x[1-9][0-9]{0,3})+)")
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


def encode(groups: Mapping[int, np.ndarray], modality: Modality) -> tuple[bytes, str]:
    """Encodes a tile's native groups, (C, h, w) per resolution of ``modality.native``, as one record.

    Returns:
        The record and its layout. The same pixels give the same bytes.
    """
    arrays = [np.ascontiguousarray(groups[resolution]) for resolution in modality.native]
    frames = [blosc.compress(array, b"lz4hc", LEVEL, blosc.SHUFFLE) for array in arrays]
    shapes = ["x".join(map(str, array.shape)) for array in arrays]
    return b"".join(frames), " ".join([arrays[0].dtype.name, *shapes])


def checksum(data: bytes, cell: str, quadrant: int, modality: Modality, layout: str) -> int:
    """Computes the XXH3 of a record, which holds for this tile, modality and layout only."""
    key = f"{cell}/{quadrant} {modality.name} {layout}".encode()
    return xxh3_64_intdigest(data, seed=xxh3_64_intdigest(key))


@lru_cache
def _parse(modality: Modality, layout: str) -> tuple[np.dtype, list[tuple[int, ...]]]:
    """Reads a layout: the type, and the shape of each native group.

    Raises:
        ValueError: If no tile of the modality has it.
    """
    found = _LAYOUT.fullmatch(layout)
    shapes = [tuple(map(int, text.split("x"))) for text in found[2].split()] if found else []
    expected = [len(bands) for bands in modality.native.values()]
    if not found or [shape[0] for shape in shapes] != expected or max(map(max, shapes)) > MAX_TILE:
        raise ValueError(
            f"its layout is {layout[:80]!r}, expected {expected} bands of at most {MAX_TILE} pixels a side"
        )
    return np.dtype(found[1]), shapes


def most_bytes(modality: Modality, layout: str) -> int:
    """Returns the length of the longest record with a layout: pixels that cannot be compressed.

    Raises:
        ValueError: If no tile of the modality has the layout.
    """
    dtype, shapes = _parse(modality, str(layout))
    return sum(math.prod(shape) * dtype.itemsize + blosc.MAX_OVERHEAD for shape in shapes)


def decode(
    data: bytes, modality: Modality, layout: str, out: dict[int, np.ndarray] | None = None
) -> dict[int, np.ndarray]:
    """Decodes a record whose checksum holds to its native groups (C, h, w), straight into C-contiguous arrays.

    The lengths that the frames declare are compared with the layout first: memory that was not written is no pixel.

    Args:
        data: The record.
        modality: Of the record.
        layout: Of the record.
        out: By resolution, the arrays to be overwritten; new ones where None.

    Raises:
        ValueError: If no tile has the layout, or the record does not decode to it.
        UnfitTileError: If the arrays do not have the layout's shapes and type.
    """
    dtype, shapes = _parse(modality, layout)
    frames, view = [], memoryview(data)
    for shape in shapes:
        pixels, _, length = _HEADER.unpack_from(view) if len(view) >= _HEADER.size else (0, 0, 0)
        if pixels != math.prod(shape) * dtype.itemsize or not _HEADER.size <= length <= len(view):
            raise ValueError(f"a frame declares {pixels:,} bytes in {length:,}, expected {dtype} {shape}")
        frames.append(view[:length])
        view = view[length:]
    if view:
        raise ValueError(f"{len(view):,} bytes follow its last frame")
    groups = {}
    for resolution, shape, frame in zip(modality.native, shapes, frames, strict=True):
        group = groups[resolution] = np.empty(shape, dtype) if out is None else out[resolution]
        check_fit(shape, dtype, group)
        try:
            blosc.decompress(frame, group)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    return groups


def make_row(
    cell: str,
    quadrant: int,
    modality: Modality,
    groups: Mapping[int, np.ndarray] | None,
    fault: str = "",
    held: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Makes the row of a tile in a shard.

    Args:
        cell: The tile's cell.
        quadrant: Its number in the cell.
        modality: Its sensor.
        groups: Native pixels (C, h, w) per resolution as they lie at the source, with the offset; None where they
            cannot be read. Where a band holds only nodata, that is kept instead of pixels.
        fault: The cause, as the ``reason`` of a DamagedTileError.
        held: For each band of the stem, whether the tile has it; None where it has them all.
    """
    row: dict[str, Any] = {"cell": cell, "quadrant": quadrant, "fault": fault}
    if groups is not None:
        row["fault"] = fault or only_nodata(groups, modality, held)
    if groups is not None and not row["fault"]:
        row["data"], row["layout"] = encode(groups, modality)
        row["xxh3"] = checksum(row["data"], cell, quadrant, modality, row["layout"])
    return row


def write_shard(path: Path, modality: Modality, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Writes a shard, one record at a time, atomically; the same rows give the same bytes.

    Args:
        path: The file, ``<store>/<modality>/<name>.arrow``; its folder exists.
        modality: Their sensor.
        rows: Of the tiles, as :func:`make_row` makes them; consumed as they are written.

    Returns:
        The table of :func:`shard_table`.
    """
    schema = _SCHEMA.with_metadata({"terrafm": _FORMAT, "modality": modality.name})
    with atomic_write(path) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for row in rows:
                writer.write_batch(pa.RecordBatch.from_pylist([row], _SCHEMA))
        return shard_table(part)


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
            whole = file.read_buffer()
            records = pa.ipc.open_file(pa.BufferReader(whole)).read_all()
            said = records.schema.metadata or {}
            if not records.schema.equals(_SCHEMA) or said.get(b"terrafm") != _FORMAT or b"modality" not in said:
                raise ValueError("its columns, or what it says of itself, are others")
            records.validate(full=True)
            # where the pixels lie, not a copy of them
            stored = [chunk.buffers()[2] if chunk[0].is_valid else None for chunk in records["data"].chunks]
            start = np.array([0 if data is None else data.address - whole.address for data in stored], np.int64)
            size = np.array([0 if data is None else data.size for data in stored], np.int32)
            if (start < 0).any() or (start + size > whole.size).any():
                raise ValueError("its pixels are stored in another way")
            table = pd.DataFrame({
                "cell": records["cell"].to_pylist(),
                "quadrant": records["quadrant"].to_numpy(),
                "fault": records["fault"].to_pylist(),
                "start": start,
                "bytes": size,
                "xxh3": records["xxh3"].fill_null(0).to_numpy(),
                "layout": records["layout"].fill_null("").to_pylist(),
            })  # fmt: skip
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise TerraFMError(f"{path} is no whole shard ({error}): pack the sources into a new folder.") from error
    return table.astype(dict.fromkeys(("cell", "fault", "layout"), str))


def read_bytes(path: str, start: int, size: int) -> bytes:
    """Reads consecutive bytes of a shard: one system call, or one range request.

    Not through a memory map: a file that is cut while it is mapped would end the process.

    Raises:
        OSError: If they cannot be read, or the file ends before.
    """
    if "://" in path:
        return shared_reader().read(path, start, start + size)
    data = os.pread(_opened(path).fileno(), size, start)
    if len(data) != size:
        raise OSError(f"{len(data)} bytes came from byte {start} on, expected {size}")
    return data


@lru_cache(maxsize=64)
def _opened(path: str) -> FileIO:
    """Opens a file, which stays open while it is one of the last few read."""
    return FileIO(path)

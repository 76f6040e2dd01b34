"""Parquet files, which may be a stranger's: what they take in memory is bounded before a library decodes them.

The footer of a file declares sizes, which are compared with what is to be read. PyArrow, though, takes the memory that
the header of each page asks for, and decodes as many values as it names; so the headers are compared with the footer.
They are Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (``PageHeader``).
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_VERSION_1, _DICTIONARY, _VERSION_2 = 5, 7, 8  # fields that say more of a page of that kind
_ENCODINGS = (0, 2, 3, 5, 6, 8, 9)  # not those whose values repeat what comes before: they make much of a few bytes
_STRUCT, _BINARY = 12, 8
_MOST_HEADER = 1 << 15  # bytes, with the least and the largest value of a page
_MOST_NAMES = 1024  # of a dictionary, for each value
#: Bytes of a footer, that may take 200 times as much memory; a published file of 5.3 GB has 0.9 MB.
MOST_FOOTER = 1 << 22
#: Row groups or columns.
MOST_PARTS = 1 << 17
_MOST_TABLE = 1 << 26  # bytes that a table may take in memory, and besides
_MOST_PER_BYTE = 16  # for each byte of its file


def chunks_of(
    metadata: pq.FileMetaData, columns: Container[str] | None = None, row_groups: Iterable[int] | None = None
) -> Iterator[pq.ColumnChunkMetaData]:
    """Yields the column chunks that are read, those of the fields of nested columns too.

    Args:
        metadata: Of the file.
        columns: Names of the columns; all where None.
        row_groups: All where None.
    """
    for row in map(metadata.row_group, range(metadata.num_row_groups) if row_groups is None else row_groups):
        for chunk in map(row.column, range(row.num_columns)):
            name = chunk.path_in_schema
            if columns is None or name in columns or name.partition(".")[0] in columns:
                yield chunk


def check_declared(
    metadata: pq.FileMetaData,
    limit: int,
    columns: Container[str] | None = None,
    row_groups: Iterable[int] | None = None,
) -> None:
    """Refuses a file whose columns would take more memory than what it is to hold can be.

    Texts that repeat are bounded where they are read as dictionaries, or come alone.

    Args:
        metadata: Of the file.
        limit: Most bytes.
        columns: Names of the columns that are to be read; all where None.
        row_groups: Those that are to be read; all where None.

    Raises:
        ValueError: If it does.
    """
    kinds = {kind.path: kind for kind in map(metadata.schema.column, range(metadata.num_columns))}
    size = 0
    for chunk in chunks_of(metadata, columns, row_groups):
        kind = kinds[chunk.path_in_schema]
        if kind.physical_type == "BYTE_ARRAY" and kind.max_repetition_level:
            raise ValueError(f"its column {kind.path} holds lists of texts")
        told = chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.num_values, kind.length or 0
        size += max(told[:2]) + max(8, told[3]) * told[2] if min(told) >= 0 else limit + 1
    if size > limit:
        raise ValueError(f"it declares {size / 1e6:,.0f} MB of values, expected {limit / 1e6:,.0f} at most")


def span(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Returns the first byte of a column chunk in its file, and the one behind its last."""
    start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    return start, start + chunk.total_compressed_size


def check_pages(read: Callable[[int, int], bytes], chunk: pq.ColumnChunkMetaData) -> None:
    """Refuses a column chunk whose pages are more than the footer says.

    Args:
        read: ``read(start, stop)`` gives bytes of the file.
        chunk: What the footer says.

    Raises:
        ValueError: If its pages have another number of values, need more bytes, or have no header that is understood.
    """
    (at, stop), size, count = span(chunk), 0, 0
    try:
        while at < stop and chunk.num_values:  # of none, no page is read
            header, length = _read_struct(read(at, min(stop, at + _MOST_HEADER)), 0)
            (kind,) = {_VERSION_1, _DICTIONARY, _VERSION_2} & header.keys()
            values, encoding = header[kind][1], header[kind][4 if kind == _VERSION_2 else 2]
            size, at, most = size + header[2], at + length + header[3], chunk.num_values
            if kind == _DICTIONARY:  # may hold values of other row groups, too
                most = max(most, min(_MOST_NAMES * most, header[2] // 4))
            else:
                count += values
            if not 0 <= values <= most or encoding not in _ENCODINGS or header[2] < 0 or header[3] < 0:
                raise ValueError(f"one has {values:,} values in encoding {encoding}")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"the pages of {chunk.path_in_schema} are not as its footer says ({error})") from error
    if size > chunk.total_uncompressed_size or count != chunk.num_values:
        raise ValueError(
            f"the pages of {chunk.path_in_schema} need {size:,} bytes for {count:,} values, expected "
            f"{chunk.total_uncompressed_size:,} at most for {chunk.num_values:,}"
        )


class CheckedFile(pq.ParquetFile):
    """A Parquet file on disk, of which each row group is checked before it is decoded.

    Args:
        path: The file.
        **options: As PyArrow takes them.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: If it cannot be opened, or its footer is larger than any.
    """

    def __init__(self, path: str | PathLike[str], **options: Any) -> None:
        self._bytes = pa.OSFile(str(path))
        size = self._bytes.size()
        if size >= 8 and (length := int.from_bytes(self._bytes.read_at(4, size - 8), "little")) > MOST_FOOTER:
            raise ValueError(f"its footer has {length:,} bytes, expected {MOST_FOOTER:,} at most")
        options |= {"page_checksum_verification": True, "thrift_container_size_limit": MOST_PARTS}
        super().__init__(self._bytes, **options)

    def read_row_group(self, i: int, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        """Reads a row group.

        Raises:
            pyarrow.ArrowException, OSError, ValueError: If it does not decode, or is more than its footer says.
        """
        for chunk in chunks_of(self.metadata, columns, [i]):
            check_pages(lambda start, stop: self._bytes.read_at(stop - start, start), chunk)
        return super().read_row_group(i, columns, **options)


def read_schema(path: str | PathLike[str]) -> pa.Schema:
    """Reads the columns' names and types, and the metadata. Errors as of :class:`CheckedFile`."""
    with CheckedFile(path) as file:
        return file.schema_arrow


def read_table(path: str | PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a table whose size in memory is bounded by that of its file.

    Args:
        path: The file.
        columns: Names of the columns; all where None.

    Raises:
        pyarrow.ArrowException, OSError, ValueError: If it cannot be read, lacks a column, or is larger.
    """
    schema, limit = read_schema(path), _MOST_TABLE + _MOST_PER_BYTE * Path(path).stat().st_size
    names = schema.names if columns is None else [*columns]
    if wrong := [name for name in names if schema.names.count(name) != 1]:
        raise ValueError(f"it has not one column {', '.join(wrong)}")
    texts = [name for name in names if _is_text(schema.field(name).type)]
    with CheckedFile(path, read_dictionary=texts) as file:
        check_declared(file.metadata, limit, names)
        groups = [file.read_row_group(i, names) for i in range(file.num_row_groups)]
    table = pa.concat_tables([pa.schema(map(file.schema_arrow.field, names)).empty_table(), *groups])
    repeated = [chunk for name in texts for chunk in table[name].chunks]
    size = sum(pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0 for c in repeated)
    if size > limit:
        raise ValueError(f"it holds {size / 1e6:,.0f} MB of texts, expected {limit / 1e6:,.0f} at most")
    return table.cast(pa.schema(map(schema.field, names), schema.metadata))


def _is_text(kind: pa.DataType) -> bool:
    return any(fits(kind) for fits in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Reads the fields of a struct, by their number, and returns what follows it."""
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        number, at = (number + (head >> 4), at) if head >> 4 else _read_integer(data, at)
        if number in fields:  # readers differ in which one they take
            raise ValueError(f"field {number} twice")
        kind = head & 15
        if kind in (1, 2):  # true, false
            fields[number] = kind
        elif kind in (4, 5, 6):
            fields[number], at = _read_integer(data, at)
        elif kind == _BINARY:
            length, at = _read_varint(data, at)
            fields[number], at = length, at + length
        elif kind == _STRUCT:
            fields[number], at = _read_struct(data, at)
        else:
            raise ValueError(f"field {number} of type {kind}")
    return fields, at + 1


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

"""Major-TOM's image files, Parquet with one row per row group: single rows of those on disk and on servers."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile

from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.parquet import MOST_PARTS, CheckedFile, check_declared, check_pages, chunks_of, span
from terrafm_tg.utils.remote import RemoteError, RemoteReader, shared_reader
from terrafm_tg.utils.trust import OpenFiles

_MAGIC = b"PAR1"
#: Of a file on a server: a published one of 5.3 GB has 0.9 MB and 10,000 chunks. A footer can take 230 times its bytes
#: in memory while it is parsed.
_MOST_FOOTER, _MOST_CHUNKS = 1 << 21, 1 << 15
_MOST_ROW = 1 << 25  # bytes of all bands of a cell, even of float32 ones that are not compressed


class RemotePart:
    """A Parquet file on a server, of which only the footer and the columns asked for are fetched, each byte once.

    Args:
        reader: Fetches them.
        url: Of the file.
        kept: Where the footer is kept, so that it is fetched once.

    Raises:
        RemoteError: If the server cannot be read, or the file is no Parquet file.
    """

    def __init__(self, reader: RemoteReader, url: str, kept: Path | None = None) -> None:
        self.reader, self.url = reader, url
        known = kept is not None and kept.is_file()
        footer = kept.read_bytes() if kept is not None and known else self._fetch_footer()
        try:
            self.metadata = _parser(os.getpid()).submit(_parse, footer).result()
        except (pa.ArrowException, OSError) as error:
            advice = f"; move {kept} away, and it is fetched again" if known else ""
            raise RemoteError(f"The footer of {url} is damaged ({error}){advice}.") from error
        self.said = int.from_bytes(footer[:8], "little"), footer[8 : -8 - self.metadata.serialized_size].decode()
        if kept is not None and not known:
            with atomic_write(kept) as temporary:
                temporary.write_bytes(footer)

    def _fetch_footer(self) -> bytes:
        """Returns the file's size in 8 bytes, its version, and its end."""
        size, version = said = self.reader.describe(self.url)
        tail = self.reader.read(self.url, max(0, size - 8), size, said)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= min(size - 12, _MOST_FOOTER):
            raise RemoteError(f"{self.url} is no Parquet file: correct `source`.")
        known = size.to_bytes(8, "little") + version.encode()
        return known + self.reader.read(self.url, size - 8 - length, size - 8, said) + tail

    def chunks(self, group: int, columns: Sequence[str]) -> list[pq.ColumnChunkMetaData]:
        """Returns where each of a row's columns lies.

        Raises:
            RemoteError: If the file has no such row group, it holds more than one row, or more than a cell can have.
        """
        if not 0 <= group < self.metadata.num_row_groups or self.metadata.row_group(group).num_rows != 1:
            raise RemoteError(
                f"{self.url} has no row group {group} of one row: the source's table does not fit its files."
            )
        found = [*chunks_of(self.metadata, columns, [group])]
        size, sizes = _bytes_of(found), [part.total_uncompressed_size for part in found]
        if (
            not all(0 <= a < b <= self.said[0] for a, b in map(span, found))
            or min(sizes, default=0) < 0
            or size > _MOST_ROW
        ):
            raise RemoteError(
                f"{self.url} declares {size:,} bytes in row group {group}, expected {_MOST_ROW:,} at most, within the "
                "file: use another source."
            )
        return found

    def row_bytes(self, group: int, columns: Sequence[str]) -> int:
        """Returns the bytes of a row's columns, on the line or when not compressed. Errors as :meth:`chunks`."""
        return _bytes_of(self.chunks(group, columns))

    def read_row_group(self, group: int, columns: Sequence[str], use_threads: bool = False) -> pa.Table:
        """Reads columns of a row, as PyArrow's method of that name.

        Raises:
            RemoteError: If the server cannot be read.
            pyarrow.ArrowException, OSError, ValueError: If the bytes do not decode, or to more than was declared.
        """
        chunks, ranges = self.chunks(group, columns), list[tuple[int, int]]()
        for start, stop in map(span, chunks):  # those that touch are one request
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        spans = {(a, b): self.reader.read(self.url, a, b, self.said) for a, b in ranges}

        def fetched(start: int, stop: int) -> bytes:
            return next(data[start - a : stop - a] for (a, b), data in spans.items() if a <= start <= b)

        for chunk in chunks:
            check_pages(fetched, chunk)
        known = {"cache_type": "parts", "cache_options": {"data": spans}}
        file = AbstractBufferedFile(None, self.url, size=self.said[0], **known)
        part = pq.ParquetFile(file, metadata=self.metadata, page_checksum_verification=True)
        return part.read_row_group(group, columns, use_threads=use_threads)


@cache
def _parser(process: int) -> ThreadPoolExecutor:
    """Makes the one thread of a process in which footers are parsed: what they take is taken once."""
    return ThreadPoolExecutor(1)


def _parse(footer: bytes) -> pq.FileMetaData:
    metadata = pq.ParquetFile(pa.BufferReader(footer), thrift_container_size_limit=MOST_PARTS).metadata
    count = sum(metadata.row_group(group).num_columns for group in range(metadata.num_row_groups))
    if count > _MOST_CHUNKS:
        del metadata  # which the error would keep
        raise OSError(f"it has {count:,} column chunks, expected {_MOST_CHUNKS:,} at most")
    return metadata


def _bytes_of(chunks: list[pq.ColumnChunkMetaData]) -> int:
    return sum(max(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks)


class PartFiles(OpenFiles[CheckedFile | RemotePart]):
    """The last few image files that this process read."""

    def __init__(self, limit: int = 16) -> None:
        super().__init__(limit)

    def read(self, path: str, group: int, columns: list[str]) -> dict[str, Any]:
        """Reads one row that is a row group of its own.

        Args:
            path: Local path, or a URL.
            group: The row group.
            columns: Names in any case; those that the file lacks are absent from the result.

        Returns:
            Value by the name given.

        Raises:
            OSError: If the file or the row group cannot be read.
        """
        try:
            file = self.opened(path)
            if not 0 <= group < file.metadata.num_row_groups:
                raise OSError(f"it has {file.metadata.num_row_groups} row groups, no {group}")
            if (rows := file.metadata.row_group(group).num_rows) != 1:
                raise OSError(f"it has {rows:,} rows, expected 1")
            stored = {name.lower(): name for name in file.metadata.schema.names}
            found = {name: stored[name.lower()] for name in columns if name.lower() in stored}
            check_declared(file.metadata, _MOST_ROW, found.values(), [group])
            table = file.read_row_group(group, list(found.values()), use_threads=False)
            return {name: table.column(column)[0].as_py() for name, column in found.items()}
        # What damaged bytes lead to as well: names that are no text, row groups without a row.
        except (pa.ArrowException, ValueError, LookupError) as error:
            raise OSError(str(error)) from error

    def _open(self, path: str) -> CheckedFile | RemotePart:
        if "://" in path:
            return RemotePart(shared_reader(), path)
        # As published the parts have no checksums; those that `terrafm download` writes have one per page.
        return CheckedFile(path)

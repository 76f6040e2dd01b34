"""Major-TOM's image files, Parquet with one row per row group: single rows of those on disk and on servers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile

from terrafm_tg.utils.files import OpenFiles, atomic_write
from terrafm_tg.utils.remote import RemoteError, RemoteReader, shared_reader

_MAGIC = b"PAR1"
_MOST_FOOTER = 1 << 28  # bytes, in memory


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
        footer = kept.read_bytes() if kept is not None and kept.is_file() else self._fetch_footer()
        try:
            self.metadata = pq.read_metadata(pa.BufferReader(footer))
        except (pa.ArrowException, OSError) as error:
            advice = f"remove {kept}" if kept is not None and kept.is_file() else "it is damaged"
            raise RemoteError(f"The footer of {url} cannot be read ({error}): {advice}.") from error
        self.size = int.from_bytes(footer[:8], "little")
        if kept is not None and not kept.is_file():
            with atomic_write(kept) as temporary:
                temporary.write_bytes(footer)

    def _fetch_footer(self) -> bytes:
        """Returns the file's size in 8 bytes, and its end."""
        size, _ = self.reader.describe(self.url)
        tail = self.reader.read(self.url, max(0, size - 8), size, size)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= min(size - 12, _MOST_FOOTER):
            raise RemoteError(f"{self.url} is no Parquet file: correct `source`.")
        return size.to_bytes(8, "little") + self.reader.read(self.url, size - 8 - length, size - 8, size) + tail

    def ranges(self, group: int, columns: Sequence[str]) -> list[tuple[int, int]]:
        """The bytes of a row's columns, as ranges that do not touch.

        Raises:
            RemoteError: If the file has no such row group, or it holds more than one row.
        """
        if not 0 <= group < self.metadata.num_row_groups or self.metadata.row_group(group).num_rows != 1:
            raise RemoteError(
                f"{self.url} has no row group {group} of one row: the source's table does not fit its files."
            )
        row, ranges = self.metadata.row_group(group), list[tuple[int, int]]()
        for i, name in enumerate(self.metadata.schema.names):
            if name not in columns:
                continue
            chunk = row.column(i)
            start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
            stop = start + chunk.total_compressed_size
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        return ranges

    def row_bytes(self, group: int, columns: Sequence[str]) -> int:
        """Returns the bytes of a row's columns where pages are not compressed.

        Raises:
            RemoteError: As :meth:`ranges`.
        """
        self.ranges(group, columns)  # refuses another layout
        chunks = map(self.metadata.row_group(group).column, range(self.metadata.num_columns))
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)

    def read_row_group(self, group: int, columns: Sequence[str], use_threads: bool = False) -> pa.Table:
        """Reads columns of a row, as PyArrow's method of that name.

        Raises:
            RemoteError: If the server cannot be read.
            pyarrow.ArrowException, OSError: If the bytes do not decode.
        """
        spans = {span: self.reader.read(self.url, *span, self.size) for span in self.ranges(group, columns)}
        known = {"cache_type": "parts", "cache_options": {"data": spans}}
        file = AbstractBufferedFile(None, self.url, size=self.size, **known)
        part = pq.ParquetFile(file, metadata=self.metadata, page_checksum_verification=True)
        return part.read_row_group(group, columns, use_threads=use_threads)


class PartFiles(OpenFiles[pq.ParquetFile | RemotePart]):
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
            if group >= file.metadata.num_row_groups:
                raise OSError(f"it has {file.metadata.num_row_groups} row groups, no {group}")
            stored = {name.lower(): name for name in file.metadata.schema.names}
            found = {name: stored[name.lower()] for name in columns if name.lower() in stored}
            table = file.read_row_group(group, list(found.values()), use_threads=False)
            return {name: table.column(column)[0].as_py() for name, column in found.items()}
        # What damaged bytes lead to as well: names that are no text, row groups without a row.
        except (pa.ArrowException, ValueError, LookupError) as error:
            raise OSError(str(error)) from error

    def _open(self, path: str) -> pq.ParquetFile | RemotePart:
        if "://" in path:
            return RemotePart(shared_reader(), path)
        # As published the parts have no checksums; those that `terrafm download` writes have one per page.
        return pq.ParquetFile(path, page_checksum_verification=True)

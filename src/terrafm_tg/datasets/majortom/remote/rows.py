"""Single rows of a Parquet file on a server: its footer once, then of a row the column chunks that are needed."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import whole_file

from .http import Http

#: Columns of a product besides its bands.
KEYS = ("product_id", "grid_cell", "product_datetime")
#: Columns that nothing here reads: fetched only when asked for.
EXTRAS = ("thumbnail", "cloud_mask", "B10")
_MAGIC = b"PAR1"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class SourceFile:
    """A Parquet file on a server, of which single rows are read.

    The footer is kept on disk as a Parquet file without rows, so that it is read once.

    Args:
        http: Reads it.
        url: Of the file.
        modality: That it holds.
        extra: Columns of :data:`EXTRAS` to read too.
        footer: Where the footer is kept.

    Raises:
        TerraFMError: If the server cannot be read, or the file is no product of that modality.
    """

    def __init__(self, http: Http, url: str, modality: str, extra: Sequence[str], footer: Path) -> None:
        self.http, self.url, self.modality = http, url, modality
        self._footer = footer
        if not footer.is_file() or not self._size_file.is_file():
            self._fetch_footer()
        try:
            self.metadata = pq.read_metadata(footer)
            self.size = int(json.loads(self._size_file.read_text()))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise TerraFMError(f"The footer of {url} cannot be read ({error}): remove {footer}.") from error
        held = {name.lower(): i for i, name in enumerate(self.metadata.schema.names)}
        bands = get_modality(modality).bands
        if missing := [name for name in ("grid_cell", *bands) if name.lower() not in held]:
            raise TerraFMError(f"{url} lacks {', '.join(missing)}: it is not Major-TOM's {modality}.")
        wanted = [name.lower() for name in (*KEYS, *bands, *extra)]
        self._columns = sorted(held[name] for name in wanted if name in held)
        self.names = [self.metadata.schema.names[i] for i in self._columns]

    @property
    def _size_file(self) -> Path:
        return self._footer.with_name(f"{self._footer.name}.size")

    def _fetch_footer(self) -> None:
        tail, size = self.http.tail(self.url, 8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= size - 12:
            raise TerraFMError(f"{self.url} is no Parquet file: correct `source`.")
        body = self.http.fetch(self.url, size - 8 - length, size - 8, size)
        with whole_file(self._size_file) as beside:
            beside.write_text(json.dumps(size))
        with whole_file(self._footer) as beside:
            beside.write_bytes(_MAGIC + body + tail)

    def ranges(self, group: int) -> list[tuple[int, int]]:
        """The bytes of a row's columns, as ranges that do not touch.

        Raises:
            TerraFMError: If the file has no such row group, or it holds more than one row.
        """
        if not 0 <= group < self.metadata.num_row_groups or self.metadata.row_group(group).num_rows != 1:
            raise TerraFMError(
                f"{self.url} has no row group {group} of one row: the source's table does not fit its files."
            )
        row, ranges = self.metadata.row_group(group), list[tuple[int, int]]()
        for column in self._columns:
            chunk = row.column(column)
            start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
            stop = start + chunk.total_compressed_size
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        return ranges

    def row_bytes(self, group: int) -> tuple[int, int]:
        """Bytes of a row over the line, and on disk, where pages are not compressed."""
        row = self.metadata.row_group(group)
        return sum(stop - start for start, stop in self.ranges(group)), sum(
            row.column(column).total_uncompressed_size for column in self._columns
        )

    def read(self, group: int, cell: str, product_id: str) -> pa.Table:
        """Fetch one row; a row that arrives damaged is fetched once more.

        Raises:
            DamagedTileError: If it is not the product it should be, lacks a band, or does not decode.
            TerraFMError: If the server cannot be read.
        """
        try:
            return self._read(group, cell, product_id)
        except DamagedTileError:
            return self._read(group, cell, product_id)

    def _read(self, group: int, cell: str, product_id: str) -> pa.Table:
        spans = [
            (start, self.http.fetch(self.url, start, stop, self.size)) for start, stop in self.ranges(group)
        ]
        name = f"{cell} {self.modality}"
        try:
            file = pq.ParquetFile(
                _Spans(spans, self.size),
                metadata=self.metadata,
                pre_buffer=False,
                page_checksum_verification=True,
            )
            table = file.read_row_group(group, self.names, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedTileError(
                name, f"row group {group} of {self.url} does not decode ({error})"
            ) from error
        row = {column.lower(): value for column, (value,) in table.to_pydict().items()}
        if row["grid_cell"] != cell or row.get("product_id", product_id) != product_id:
            raise DamagedTileError(name, f"row group {group} of {self.url} holds cell {row['grid_cell']}")
        for band in get_modality(self.modality).bands:
            if (row[band.lower()] or b"")[:4] not in _TIFF:
                raise DamagedTileError(name, f"band {band} in row group {group} of {self.url} is no TIFF")
        return table


class _Spans(io.RawIOBase):
    """A file of which only some spans are at hand; reading others is an error."""

    def __init__(self, spans: list[tuple[int, bytes]], size: int) -> None:
        self._spans, self._size, self._at = spans, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._size if count < 0 else self._at + count
        for start, data in self._spans:
            if start <= self._at and stop <= start + len(data):
                found = data[self._at - start : stop - start]
                self._at = stop
                return found
        raise OSError(f"bytes {self._at} to {stop} were not fetched")

"""Rows of the source's files: each fetched and kept as it comes, then put together to a local file."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.majortom.part_files import RemotePart
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.remote import RemoteError, RemoteReader

from .catalog import KEPT, ROWS

#: Columns of a product besides its bands.
KEYS = ("product_id", "grid_cell", "product_datetime")
#: Columns that nothing here reads: fetched only when asked for.
EXTRAS = ("thumbnail", "cloud_mask", "B10")
_AHEAD = 16  # rows per connection that are asked for at once
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class SourceFile(RemotePart):
    """A file of a product at its source.

    Args:
        reader: Reads it.
        url: Of the file.
        modality: That it holds.
        extra: Columns of :data:`EXTRAS` to read too.
        kept: Where the footer is kept.

    Raises:
        TerraFMError: If the server cannot be read, or the file is no product of that modality.
    """

    def __init__(self, reader: RemoteReader, url: str, modality: str, extra: Sequence[str], kept: Path) -> None:
        super().__init__(reader, url, kept)
        self.modality, self.bands = modality, get_modality(modality).bands
        held = {name.lower() for name in self.metadata.schema.names}
        if missing := [name for name in ("grid_cell", *self.bands) if name.lower() not in held]:
            raise TerraFMError(f"{url} lacks {', '.join(missing)}: it is not Major-TOM's {modality}.")
        wanted = {name.lower() for name in (*KEYS, *self.bands, *extra)}
        self.columns = [name for name in self.metadata.schema.names if name.lower() in wanted]

    def row_bytes(self, group: int) -> tuple[int, int]:
        """Bytes of a row over the line, and on disk, where pages are not compressed."""
        chunks = [self.metadata.row_group(group).column(i) for i in range(self.metadata.num_columns)]
        disk = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in self.columns)
        return sum(stop - start for start, stop in self.ranges(group, self.columns)), disk

    def read(self, row: "SourceRow") -> pa.Table:
        """Fetches one row.

        Raises:
            DamagedTileError: If it is not the product it should be, lacks a band, or does not decode.
            RemoteError: If the server cannot be read.
        """
        name, place = f"{row.cell} {self.modality}", f"row group {row.group} of {self.url}"
        try:
            table = self.read_row_group(row.group, self.columns)
        except RemoteError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedTileError(name, f"{place} does not decode ({error})") from error
        held = {column.lower(): value for column, (value,) in table.to_pydict().items()}
        if held["grid_cell"] != row.cell or held.get("product_id", row.product_id) != row.product_id:
            raise DamagedTileError(name, f"{place} holds cell {held['grid_cell']}")
        for band in self.bands:
            if (held[band.lower()] or b"")[:4] not in _TIFF:
                raise DamagedTileError(name, f"band {band} in {place} is no TIFF")
        return table


class SourceRow(NamedTuple):
    """A row of a file of the source: its row group, cell and product, and its place in the product's table."""

    group: int
    cell: str
    product_id: str
    position: int


@dataclass(frozen=True)
class PartRows:
    """Rows to fetch from one file of the source, and their places on disk.

    Args:
        root: Of the local copy.
        modality: Of the product.
        url: Of the file.
        name: Of the file to make below ``images``.
        rows: In the order of the source.
        extra: Columns besides those that are needed.
    """

    root: Path
    modality: str
    url: str
    name: str
    rows: tuple[SourceRow, ...]
    extra: tuple[str, ...] = ()

    @property
    def kept(self) -> Path:
        """Folder of what is kept of the product's source."""
        return self.root / KEPT / FOLDERS[self.modality]

    @property
    def staging(self) -> Path:
        """Folder of the rows that have come."""
        return self.kept / ROWS / Path(self.url).stem

    @property
    def target(self) -> Path:
        """The file to make."""
        return self.root / FOLDERS[self.modality] / "images" / self.name

    def open(self, reader: RemoteReader) -> SourceFile:
        """The file of the source."""
        footer = self.kept / "footers" / f"{Path(self.url).stem}.footer"
        return SourceFile(reader, self.url, self.modality, self.extra, footer)

    def staged(self, row: SourceRow) -> Path:
        """The place where a row waits; another set of columns is another file."""
        return self.staging / ".".join([f"{row.group:05d}", *sorted(self.extra), "parquet"])


def fetch_parts(
    reader: RemoteReader, parts: Iterable[PartRows], connections: int
) -> Generator[tuple[PartRows, list[SourceRow], list[str]]]:
    """Fetches the rows of files and writes the local ones.

    Args:
        reader: Fetches them.
        parts: The files of the source.
        connections: Rows that are fetched at the same time.

    Yields:
        A file, the rows that its local file holds, in its order (there is no local file without any), and the reasons
        why others were left out.

    Raises:
        TerraFMError: If the source cannot be read; rows that have come are kept.
    """
    pool, waiting = ThreadPoolExecutor(connections), iter(parts)
    coming: deque[tuple[PartRows, list[Future[str | None]]]] = deque()
    try:
        while True:
            # so many rows are asked for that no connection idles while a file is put together
            while sum(len(rows) for _, rows in coming) < _AHEAD * connections and (part := next(waiting, None)):
                source = part.open(reader)
                coming.append((part, [pool.submit(_stage, source, part, row) for row in part.rows]))
            if not coming:
                return
            part, results = coming.popleft()
            reasons = [result.result() for result in results]
            rows = [row for row, reason in zip(part.rows, reasons, strict=True) if reason is None]
            if paths := [part.staged(row) for row in rows]:
                with atomic_write(part.target) as temporary:
                    _write(temporary, map(pq.read_table, paths), pq.read_schema(paths[0]))
            for path in paths:  # nothing waits for the local file any more
                path.unlink()
            if part.staging.is_dir() and not any(part.staging.iterdir()):
                part.staging.rmdir()
            yield part, rows, sorted(filter(None, reasons))
    finally:
        pool.shutdown(cancel_futures=True)


def _stage(source: SourceFile, part: PartRows, row: SourceRow, last: bool = False) -> str | None:
    """Fetches one row, if it is not there, and keeps it; of one damaged twice, returns the reason."""
    path = part.staged(row)
    if path.is_file():
        return None
    try:
        table = source.read(row)
    except DamagedTileError as error:
        return str(error) if last else _stage(source, part, row, last=True)
    with atomic_write(path) as temporary:
        _write(temporary, iter([table]), table.schema)
    return None


def _write(path: Path, rows: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Writes rows without compression, as pictures have theirs; a checksum per page tells of later damage."""
    options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, schema.remove_metadata(), write_page_checksum=True, **options) as writer:
        for row in rows:
            writer.write_table(row.replace_schema_metadata())

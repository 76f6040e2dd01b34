"""Wanted rows of the source's files: each fetched and kept as it comes, then put together to a local file."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.majortom.part_files import RemotePart
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.remote import RemoteError, RemoteReader, Traffic

from .catalog import KEPT, ROWS

#: Columns of a product besides its bands.
KEYS = ("product_id", "grid_cell", "product_datetime")
#: Columns that nothing here reads: fetched only when asked for.
EXTRAS = ("thumbnail", "cloud_mask", "B10")
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

    def __init__(
        self, reader: RemoteReader, url: str, modality: str, extra: Sequence[str], kept: Path
    ) -> None:
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

    def read(self, group: int, cell: str, product_id: str) -> pa.Table:
        """Fetches one row; a row that arrives damaged is fetched once more.

        Raises:
            DamagedTileError: If it is not the product it should be, lacks a band, or does not decode.
            RemoteError: If the server cannot be read.
        """
        try:
            return self._read(group, cell, product_id)
        except DamagedTileError:
            return self._read(group, cell, product_id)

    def _read(self, group: int, cell: str, product_id: str) -> pa.Table:
        name = f"{cell} {self.modality}"
        try:
            table = self.read_row_group(group, self.columns)
        except RemoteError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedTileError(
                name, f"row group {group} of {self.url} does not decode ({error})"
            ) from error
        row = {column.lower(): value for column, (value,) in table.to_pydict().items()}
        if row["grid_cell"] != cell or row.get("product_id", product_id) != product_id:
            raise DamagedTileError(name, f"row group {group} of {self.url} holds cell {row['grid_cell']}")
        for band in self.bands:
            if (row[band.lower()] or b"")[:4] not in _TIFF:
                raise DamagedTileError(name, f"band {band} in row group {group} of {self.url} is no TIFF")
        return table


@dataclass(frozen=True)
class PartRows:
    """What to fetch from one file of the source.

    Args:
        root: Of the local copy.
        modality: Of the product.
        url: Of the file.
        name: Of the file to make below ``images``.
        rows: Row group, cell and product of each row, in the order of the source.
        extra: Columns besides those that are needed.
    """

    root: Path
    modality: str
    url: str
    name: str
    rows: tuple[tuple[int, str, str], ...]
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

    def staged(self, group: int) -> Path:
        """Where a row waits; another set of columns is another file."""
        return self.staging / ".".join([f"{group:05d}", *sorted(self.extra), "parquet"])


@dataclass(frozen=True)
class Batch:
    """Files of the source that one worker fetches.

    Args:
        parts: The files.
        connections: Rows that are fetched at the same time.
        retries: See :class:`~terrafm_tg.utils.remote.RemoteReader`.
        timeout: See :class:`~terrafm_tg.utils.remote.RemoteReader`.
    """

    parts: tuple[PartRows, ...]
    connections: int
    retries: int
    timeout: float


@dataclass
class Fetched:
    """What came of a file.

    Args:
        modality: Of the product.
        source: Name of the file.
        name: Of the local file, if one was made.
        groups: Row groups of the source that it holds, in the file's order.
        damaged: What is wrong with the rows that were left out.
    """

    modality: str
    source: str
    name: str
    groups: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@cache
def _reader(retries: int, timeout: float) -> RemoteReader:
    """One per process, so that connections are kept."""
    return RemoteReader(retries, timeout)


def fetch_batch(batch: Batch) -> tuple[list[Fetched], Traffic]:
    """Fetch the rows of some files and write the local ones; runs again to the same end.

    Returns:
        What came of each file, and what went over the line.

    Raises:
        TerraFMError: If the source cannot be read; rows that have come are kept.
    """
    reader = _reader(batch.retries, batch.timeout)
    before = reader.traffic
    results = [Fetched(part.modality, Path(part.url).name, part.name) for part in batch.parts]
    pool = ThreadPoolExecutor(batch.connections)
    try:
        work: dict[Future[str | None], tuple[int, int]] = {}
        missing = [len(part.rows) for part in batch.parts]
        for i, part in enumerate(batch.parts):
            if part.target.is_file():  # a worker that died had come so far
                results[i] = _made_before(part)
                _drop_staged(part)
                continue
            source = part.open(reader)
            work |= {pool.submit(_stage, source, part, *row): (i, row[0]) for row in part.rows}
        for future in as_completed(work):
            i, group = work[future]
            if reason := future.result():
                results[i].damaged.append(reason)
            else:
                results[i].groups.append(group)
            missing[i] -= 1
            if not missing[i]:
                results[i].groups.sort()
                results[i].damaged.sort()
                _assemble(batch.parts[i], results[i].groups)
    finally:
        pool.shutdown(cancel_futures=True)
    return results, reader.traffic - before


def _stage(source: SourceFile, part: PartRows, group: int, cell: str, product_id: str) -> str | None:
    """Fetch one row, if it is not there, and keep it; returns what is wrong with it."""
    path = part.staged(group)
    if path.is_file():
        return None
    try:
        table = source.read(group, cell, product_id)
    except DamagedTileError as error:
        return str(error)
    with atomic_write(path) as temporary:
        _write(temporary, iter([table]), table.schema)
    return None


def _made_before(part: PartRows) -> Fetched:
    """What came of a file that was made already."""
    held = set(pq.read_table(part.target, columns=["grid_cell"])["grid_cell"].to_pylist())
    left = [
        f"Tile {cell} {part.modality} is damaged in {part.url}."
        for _, cell, _ in part.rows
        if cell not in held
    ]
    groups = [group for group, cell, _ in part.rows if cell in held]
    return Fetched(part.modality, Path(part.url).name, part.name, groups, left)


def _assemble(part: PartRows, groups: list[int]) -> None:
    """Write the local file, one row per row group; nothing waits for it any more."""
    if groups:
        paths = [part.staged(group) for group in groups]
        with atomic_write(part.target) as temporary:
            _write(temporary, map(pq.read_table, paths), pq.read_schema(paths[0]))
    _drop_staged(part)


def _drop_staged(part: PartRows) -> None:
    """Remove what waited for the local file, which is there."""
    for group, _, _ in part.rows:
        part.staged(group).unlink(missing_ok=True)
    if part.staging.is_dir() and not any(part.staging.iterdir()):
        part.staging.rmdir()


def _write(path: Path, rows: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Pictures are compressed already; a checksum per page tells a file that was damaged later."""
    options = {
        "compression": "NONE",
        "use_dictionary": False,
        "write_statistics": False,
        "write_page_checksum": True,
    }
    with closing(pq.ParquetWriter(path, schema.remove_metadata(), **options)) as writer:
        for row in rows:
            writer.write_table(row.replace_schema_metadata())

"""One product of Major-TOM: its table and files at the source, and the local copy, which lists what it holds."""

from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from shutil import rmtree
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.majortom.part_files import RemotePart
from terrafm_tg.datasets.majortom.rows import FOLDERS, read_metadata
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import atomic_write, files_below
from terrafm_tg.utils.parallel import Room
from terrafm_tg.utils.parquet import read_schema, read_table
from terrafm_tg.utils.remote import ChangedError, NotThereError, RemoteError, RemoteReader

#: Below a root: what is kept of the source (tables, footers of its files) and rows that wait for their file.
KEPT = ".download"
#: Columns of a product besides its bands; thumbnails, cloud masks and L1C's B10 are left at the source.
_KEYS = ["grid_cell", "product_id", "product_datetime"]
_IDENTITY = _KEYS[:2]
_MOST_TABLE = 1 << 30  # bytes; the published ones have some 0.3 GB
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Product:
    """A product at its source, and its folder below a local root.

    Files of ``images`` are never changed: rows that come later go to new files.

    Args:
        modality: Of the product.
        source: Address of the products, as :func:`download` takes it.
        root: Of the local copy.
        reader: Reads the source.
        room: For the rows that are in memory at the same time.
    """

    def __init__(self, modality: str, source: str, root: Path, reader: RemoteReader, room: Room) -> None:
        name = FOLDERS[modality]
        self.modality, self.bands, self.reader, self.room = modality, get_modality(modality).bands, reader, room
        self.url = source.replace("{product}", name) if "{product}" in source else f"{source.rstrip('/')}/{name}"
        self.folder, self.kept = root / name, root / KEPT / name
        self.published = self.kept / "metadata.parquet"

    def read_table(self) -> pd.DataFrame:
        """Fetches the complete table of the source, where it is new there, and reads it.

        Returns:
            Columns ``modality``, ``cell``, ``product_id``, ``epsg``, ``nodata``, ``cloud_cover``, ``timestamp``,
            ``part`` (name of the file), ``group`` (its row group), ``position`` (row of the table). Rows outside UTM
            are left out.

        Raises:
            TerraFMError: If the source cannot be read, or it is not Major-TOM's metadata.
        """
        url = f"{self.url}/metadata.parquet"
        try:
            fresh = self.reader.save(url, self.published, _MOST_TABLE)
        except NotThereError as error:
            raise TerraFMError(
                f"{url} does not exist (404): correct `source`, or leave {self.modality} out."
            ) from error
        if fresh:  # what was known of the files may no longer hold
            for folder in ("footers", "rows"):
                rmtree(self.kept / folder, ignore_errors=True)
        frame = read_metadata(self.published)
        urls = frame.pop("parquet_url").array
        names = urls.categories.to_series().str.extract(r"([\w.-]*\w\.parquet)(?:[?#]|$)", expand=False)
        table = frame.rename(columns={"grid_cell": "cell", "parquet_row": "group"}).assign(
            modality=self.modality,
            part=pd.Categorical(np.array([*names, None], dtype=object)[urls.codes]),
            position=np.arange(len(frame)),
        )
        return table[table["epsg"].notna() & table["part"].notna()]

    def list_local(self, table: pd.DataFrame, write: bool = True) -> pd.Series:
        """Lists the rows that are on disk in the product's own ``metadata.parquet``.

        Rows that it names stay, as far as their file is there. Into files that it does not name (new, of a run that
        was killed, laid there by hand) one looks, and takes their rows from the source's table.

        Args:
            table: From :meth:`read_table`.
            write: Write ``metadata.parquet`` where it changed.

        Returns:
            The rows, as :func:`row_keys` names them.

        Raises:
            TerraFMError: If a file there cannot be read.
        """
        path, images = self.folder / "metadata.parquet", self.folder / "images"
        here = [file.name for file in files_below(images, ".parquet", deep=False)]
        before = _read(path) if path.is_file() else read_schema(self.published).empty_table()
        names = pd.Series([url.rpartition("/")[2] for url in before["parquet_url"].to_pylist()], dtype=str)
        rows = before.filter(pa.array(names.isin(here)))  # the source's own table names files that are elsewhere
        if new := sorted({*here} - {*names}):
            held = [_read(images / name, _IDENTITY).to_pandas().assign(file=f"images/{name}") for name in new]
            held = pd.concat([frame.reset_index(names="row") for frame in held])
            known = table[["cell", "product_id", "position"]].drop_duplicates(["cell", "product_id"])
            held = held.merge(known, left_on=_IDENTITY, right_on=["cell", "product_id"])
            found = _read(self.published).take(held["position"].to_numpy())
            for column, values in (("parquet_url", held["file"]), ("parquet_row", held["row"])):
                i = found.schema.get_field_index(column)
                found = found.set_column(i, found.schema.field(i), pa.array(values).cast(found.schema.field(i).type))
            rows = pa.concat_tables([rows, found], promote_options="permissive")
        if write and not rows.equals(before):
            geo = {key: value for key, value in (rows.schema.metadata or {}).items() if key == b"geo"}
            with atomic_write(path) as temporary:
                pq.write_table(rows.replace_schema_metadata(geo), temporary)
        return row_keys(*(rows[name].to_pandas() for name in _IDENTITY))

    def open(self, part: str) -> RemotePart:
        """Opens a file of the source.

        Raises:
            TerraFMError: If the server cannot be read, or the file is no product of that modality.
        """
        file = RemotePart(self.reader, f"{self.url}/images/{part}", self.kept / "footers" / f"{part}.footer")
        held = {name.lower() for name in file.metadata.schema.names}
        if missing := [name for name in ("grid_cell", *self.bands) if name.lower() not in held]:
            raise TerraFMError(f"{file.url} lacks {', '.join(missing)}: it is not Major-TOM's {self.modality}.")
        return file

    def columns(self, file: RemotePart) -> list[str]:
        """Names the columns of a file that are needed."""
        wanted = {name.lower() for name in (*_KEYS, *self.bands)}
        return [name for name in file.metadata.schema.names if name.lower() in wanted]

    def sizes(self, part: str, groups: Iterable[int]) -> list[int]:
        """Returns the bytes on disk of rows of a file; over the line they are as many, as pictures are compressed."""
        file = self.open(part)
        columns = self.columns(file)
        return [file.row_bytes(group, columns) for group in groups]

    def waiting(self, part: str, group: int) -> Path:
        """Returns the place where a row waits for its file."""
        return self.kept / "rows" / f"{Path(part).stem}.{group:05d}.parquet"

    def fetch(self, part: str, rows: pd.DataFrame, show: Callable[..., None], stop: Event) -> dict[int, str]:
        """Fetches rows of a file, keeps each as it comes, and puts them together to a local file.

        Args:
            part: Name of the file.
            rows: ``group``, ``cell``, ``product_id`` and ``size``, in the order of the source.
            show: Moves a bar on by ``advance``, the size of each row.
            stop: Ends it after a row; those that have come are kept.

        Returns:
            Why rows were left out, by their labels.

        Raises:
            RemoteError: If the server cannot be read.
        """
        file, damage, came = self.open(part), dict[int, str](), list[Path]()
        for row in rows.itertuples():
            if stop.is_set():
                return damage
            path = self.waiting(part, row.group)
            try:
                if not path.is_file():
                    with self.room.taken(file.row_bytes(row.group, self.columns(file))):
                        _write(path, [self._fetch_row(file, row)])
                came.append(path)
            except DamagedTileError as error:
                damage[row.Index] = str(error)
            show(advance=row.size)
        if came:
            names = chain([part], (f"{Path(part).stem}_{number}.parquet" for number in count(2)))
            targets = (self.folder / "images" / name for name in names)
            _write(next(target for target in targets if not target.exists()), map(_read, came))
        for path in came:  # nothing waits for the local file any more
            path.unlink()
        return damage

    def _fetch_row(self, file: RemotePart, row: Any) -> pa.Table:
        """Fetches one row.

        Raises:
            DamagedTileError: If it is not the product it should be, lacks a band, or does not decode.
            RemoteError: If the server cannot be read.
        """
        name, place = f"{row.cell} {self.modality}", f"row group {row.group} of {file.url}"
        try:
            table = file.read_row_group(row.group, self.columns(file))
        except ChangedError:
            (self.kept / "footers" / f"{row.part}.footer").unlink(missing_ok=True)
            raise
        except RemoteError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedTileError(name, f"{place} does not decode ({error})") from error
        held = {column.lower(): table[column][0] for column in table.column_names}
        names = [held[column].as_py() for column in _IDENTITY if column in held]
        if names != [row.cell, row.product_id][: len(names)]:
            raise DamagedTileError(name, f"{place} holds cell {str(names[0])[:99]}")
        for band in self.bands:
            if _head(held[band.lower()]) not in _TIFF:
                raise DamagedTileError(name, f"band {band} in {place} is no TIFF")
        return table


def _head(value: pa.Scalar) -> bytes:
    """The first bytes of a picture, of which no copy is made."""
    return value.as_buffer()[:4].to_pybytes() if isinstance(value, pa.BinaryScalar) and value.is_valid else b""


def row_keys(cells: pd.Series, product_ids: pd.Series) -> pd.Series:
    """Names rows by cell and product, here and at the source alike."""
    return cells.astype("str") + " " + product_ids.astype("str")


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return read_table(path, columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): move it away, and start again.") from error


def _write(path: Path, rows: Iterable[pa.Table]) -> None:
    """Writes rows without compression, as pictures have theirs; a checksum per page tells of later damage."""
    options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    rows = iter(rows)
    first = next(rows)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, first.schema.remove_metadata(), **options) as out:
        for row in chain([first], rows):
            out.write_table(row.replace_schema_metadata())

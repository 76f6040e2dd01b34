"""Major-TOM's tables: those of the source, and of the local copy, which list exactly what it holds."""

import json
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.majortom.rows import FOLDERS, read_metadata
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write, files_below
from terrafm_tg.utils.remote import NotThereError, RemoteReader

#: Where Major-TOM is published; the name of the product (``Core-S2L2A``) takes the place of ``{product}``.
SOURCE = "https://huggingface.co/datasets/Major-TOM/{product}/resolve/main"
#: Where ESA publishes its map of land cover.
WORLDCOVER = "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v200/2021/map"
#: Bytes of an average file of the map (117 GB in 2,651 files).
MAP_FILE_BYTES = 44_000_000
#: Below a root: what is kept of the source (tables, footers of its files) and rows that wait for their file.
KEPT = ".download"
#: Below a product's folder there: the rows, in folders by file of the source.
ROWS = "rows"
_KEYS = ["grid_cell", "product_id"]


def product_url(source: str, modality: str) -> str:
    """The address of a product's folder.

    Raises:
        TerraFMError: If the source is no address.
    """
    if urlparse(source).scheme not in ("http", "https"):
        raise TerraFMError(
            f"`source` is {source!r}: give an address that begins with http:// or https://, such as {SOURCE}."
        )
    product = FOLDERS[modality]
    return source.format(product=product) if "{product}" in source else f"{source.rstrip('/')}/{product}"


def fetch_table(reader: RemoteReader, root: Path, source: str, modality: str) -> Path:
    """Fetches the product's complete ``metadata.parquet`` where the source's is new.

    Raises:
        TerraFMError: If the source cannot be read.
    """
    url = f"{product_url(source, modality)}/metadata.parquet"
    path = root / KEPT / FOLDERS[modality] / "metadata.parquet"
    try:
        fresh = reader.save(url, path)
    except NotThereError as error:
        raise TerraFMError(f"{url} does not exist (404): correct `source`, or leave {modality} out.") from error
    if fresh:  # what was known of the files may no longer hold
        for footer in (path.parent / "footers").glob("*"):
            footer.unlink()
    return path


def read_table(path: Path, modality: str) -> pd.DataFrame:
    """Reads the rows of a product's table.

    Returns:
        Columns ``modality``, ``cell``, ``product_id``, ``epsg``, ``nodata``, ``cloud_cover``, ``timestamp``, ``part``
        (name of the file), ``group`` (its row group), ``position`` (row of the table). Rows outside UTM are left out.

    Raises:
        TerraFMError: If it is not Major-TOM's metadata.
    """
    frame = read_metadata(path)
    urls = frame.pop("parquet_url").array
    names = np.array([*(urlparse(url).path.rpartition("/")[2] for url in urls.categories), None], dtype=object)
    table = frame.rename(columns={"grid_cell": "cell", "parquet_row": "group"})
    table = table.assign(modality=modality, part=pd.Categorical(names[urls.codes]), position=np.arange(len(frame)))
    return table[table["epsg"].notna() & table["part"].notna()]


class LocalProduct:
    """A product's folder below a local root.

    Files of ``images`` are never changed: rows that come later go to new files. ``metadata.parquet`` is
    written last, so that at every moment what it lists is there.

    Args:
        folder: Such as ``root/Core-S2L2A``.
        source: The product's complete table.

    Raises:
        TerraFMError: If a file there cannot be read.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self._source, self.table = folder, source, folder / "metadata.parquet"
        self._new: list[tuple[str, Sequence[int], Sequence[int]]] = []
        self._rows: list[pa.Table] = []
        self._names: set[str] = set()
        self._dirty = False
        if self.table.is_file():
            try:
                rows = pq.read_table(self.table)
                names = pd.Series([url.rpartition("/")[2] for url in rows["parquet_url"].to_pylist()], dtype=str)
            except (pa.ArrowException, OSError, KeyError) as error:
                raise TerraFMError(f"{self.table} cannot be read ({error}): remove it, and start again.") from error
            self._names = {name for name in names.unique() if (folder / "images" / name).is_file()}
            there = names.isin(self._names)
            self._dirty = not there.all()  # such as the source's own table: it names files that are elsewhere
            self._rows = [rows.filter(pa.array(there))]

    def keys(self) -> pd.Index:
        """The rows that are there, as :func:`row_keys` names them."""
        self._look_up()
        found = [row_keys(*(rows[name].to_pandas() for name in _KEYS)) for rows in self._rows]
        return pd.Index(pd.concat(found)) if found else pd.Index([])

    def adopt(self, source: pd.DataFrame) -> None:
        """Lists files that are there without being listed: of a run that was killed, or laid there by hand.

        Args:
            source: The product's rows, as :func:`read_table` gives them.

        Raises:
            TerraFMError: If such a file cannot be read.
        """
        there = files_below(self.folder / "images", ".parquet", deep=False)
        new = [path for path in there if path.name not in self._names]
        if new:
            source = source.drop_duplicates(["cell", "product_id"])
            known = pd.Index(row_keys(source["cell"], source["product_id"]))
        for path in new:
            try:
                held = pq.read_table(path, columns=_KEYS).to_pandas()
            except (pa.ArrowException, OSError) as error:
                raise TerraFMError(f"{path} cannot be read ({error}): remove it, and start again.") from error
            found = known.get_indexer(row_keys(held["grid_cell"], held["product_id"]))
            positions = source["position"].to_numpy()[found[found >= 0]]
            self.add(path.name, positions.tolist(), np.flatnonzero(found >= 0).tolist())

    def drop_waiting(self, folder: Path) -> None:
        """Removes rows that wait for a file which was made: the run that made it was killed before it tidied up.

        Args:
            folder: Of rows in folders by file of the source; those of files that are not made yet stay.
        """
        waiting = list(folder.glob("*/*.parquet"))
        held = self.keys() if waiting else pd.Index([])
        for path in waiting:
            row = pq.read_table(path, columns=_KEYS).to_pandas()
            if row_keys(*(row[name] for name in _KEYS)).isin(held).all():
                path.unlink()
        for empty in (of_file for of_file in folder.glob("*") if not any(of_file.iterdir())):
            empty.rmdir()

    def free_name(self, name: str) -> str:
        """Finds a name for a new file of rows of the source's file of that name."""
        names = chain([name], (f"{Path(name).stem}_{number}.parquet" for number in count(2)))
        return next(free for free in names if not (self.folder / "images" / free).exists())

    def add(self, name: str, positions: Sequence[int], groups: Sequence[int]) -> None:
        """Lists rows of a local file.

        Args:
            name: Of the file.
            positions: Of the rows in the source's table.
            groups: Their row groups in the file.
        """
        self._names.add(name)
        if len(positions):
            self._new.append((name, positions, groups))

    def commit(self) -> None:
        """Writes ``metadata.parquet``, where it changed."""
        self._look_up()
        if not self._dirty:
            return
        geo = _geo(self._rows[-1].schema)
        rows = pa.concat_tables([r.replace_schema_metadata() for r in self._rows], promote_options="permissive")
        with atomic_write(self.table) as temporary:
            pq.write_table(rows.replace_schema_metadata(geo), temporary)
        self._rows, self._dirty = [rows.replace_schema_metadata(geo)], False

    def _look_up(self) -> None:
        """Takes the rows that were added from the source's table."""
        if not self._new:
            return
        names, positions, groups = zip(*self._new, strict=True)
        rows = pq.read_table(self._source, memory_map=True).take(pa.array(np.concatenate(positions), pa.int64()))
        urls = np.repeat([f"images/{name}" for name in names], [len(p) for p in positions])
        for column, values in (("parquet_url", urls), ("parquet_row", np.concatenate(groups))):
            i = rows.schema.get_field_index(column)
            rows = rows.set_column(i, rows.schema.field(i), pa.array(values).cast(rows.schema.field(i).type))
        self._rows.append(rows)
        self._new, self._dirty = [], True


def row_keys(cells: pd.Series, product_ids: pd.Series) -> pd.Series:
    """Names rows by cell and product, here and at the source alike."""
    return cells.astype("str") + " " + product_ids.astype("str")


def _geo(schema: pa.Schema) -> dict[bytes, bytes]:
    """Takes GeoParquet's part of a schema, without the box of all rows."""
    geo = (schema.metadata or {}).get(b"geo")
    if geo is None:
        return {}
    said = json.loads(geo)
    for column in said["columns"].values():
        column.pop("bbox", None)
    return {b"geo": json.dumps(said).encode()}

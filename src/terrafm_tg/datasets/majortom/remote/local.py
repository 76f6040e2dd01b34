"""The local copy of a product: what it holds, and its ``metadata.parquet``, which lists exactly that."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import whole_file

_KEY = ["grid_cell", "product_id"]


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
        self.folder, self._source = folder, source
        self._rows: list[pa.Table] = []
        self._new: list[tuple[str, np.ndarray, np.ndarray]] = []
        self._names: set[str] = set()
        self.table = folder / "metadata.parquet"
        self._dirty = False
        if self.table.is_file():
            self._read_table()

    def _read_table(self) -> None:
        try:
            table = pq.read_table(self.table)
            names = [url.rpartition("/")[2] for url in table["parquet_url"].to_pylist()]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise TerraFMError(
                f"{self.table} cannot be read ({error}): remove it, and start again."
            ) from error
        on_disk = {name: (self.folder / "images" / name).is_file() for name in set(names)}
        there = np.array([on_disk[name] for name in names], dtype=bool)
        self._dirty = not there.all()  # such as the source's own table: it names files that are elsewhere
        self._names = {name for name, is_there in on_disk.items() if is_there}
        self._rows = [table.filter(pa.array(there))]

    def keys(self) -> pd.Index:
        """The rows that are there, as :func:`row_keys` names them."""
        self._look_up()
        found = [row_keys(*(rows[name].to_pandas() for name in _KEY)) for rows in self._rows]
        return pd.Index(pd.concat(found)) if found else pd.Index([])

    def adopt(self, source: pd.DataFrame) -> None:
        """List files that are there without being listed: of a run that was killed, or laid there by hand.

        Args:
            source: The product's rows, as :func:`~.catalogue.read_table` gives them.

        Raises:
            TerraFMError: If such a file cannot be read.
        """
        new = [p for p in sorted((self.folder / "images").glob("*.parquet")) if p.name not in self._names]
        if new:
            source = source.drop_duplicates(["cell", "product_id"])
            known = pd.Index(row_keys(source["cell"], source["product_id"]))
        for path in new:
            try:
                held = pq.read_table(path, columns=_KEY).to_pandas()
            except (pa.ArrowException, OSError) as error:
                raise TerraFMError(f"{path} cannot be read ({error}): remove it, and start again.") from error
            found = known.get_indexer(row_keys(held["grid_cell"], held["product_id"]))
            self.add(path.name, source["position"].to_numpy()[found[found >= 0]], np.flatnonzero(found >= 0))

    def drop_waiting(self, folder: Path) -> None:
        """Remove rows that wait for a file which was made: the run that made it was killed before it tidied up.

        Args:
            folder: Of rows in folders by file of the source; those of files that are not made yet stay.
        """
        waiting = list(folder.glob("*/*.parquet"))
        held = self.keys() if waiting else pd.Index([])
        for path in waiting:
            row = pq.read_table(path, columns=_KEY).to_pandas()
            if row_keys(*(row[name] for name in _KEY)).isin(held).all():
                path.unlink()
        for empty in (of_file for of_file in folder.glob("*") if not any(of_file.iterdir())):
            empty.rmdir()

    def free_name(self, name: str) -> str:
        """A name for a new file of rows of the source's file of that name."""
        stem, free, number = Path(name).stem, name, 1
        while (self.folder / "images" / free).exists():
            number += 1
            free = f"{stem}_{number}.parquet"
        return free

    def add(self, name: str, positions: np.ndarray, groups: np.ndarray) -> None:
        """List rows of a local file.

        Args:
            name: Of the file.
            positions: Of the rows in the source's table.
            groups: Their row groups in the file.
        """
        self._names.add(name)
        if len(positions):
            self._new.append((name, positions, groups))

    def commit(self) -> None:
        """Write ``metadata.parquet``, where it changed."""
        self._look_up()
        if not self._dirty:
            return
        geo = _geo(self._rows[-1].schema)
        rows = pa.concat_tables(
            [r.replace_schema_metadata() for r in self._rows], promote_options="permissive"
        )
        with whole_file(self.table) as beside:
            pq.write_table(rows.replace_schema_metadata(geo), beside)
        self._rows, self._dirty = [rows.replace_schema_metadata(geo)], False

    def _look_up(self) -> None:
        """Take the rows that were added from the source's table."""
        if not self._new:
            return
        names, positions, groups = zip(*self._new, strict=True)
        rows = pq.read_table(self._source, memory_map=True).take(pa.array(np.concatenate(positions)))
        urls = np.repeat([f"images/{name}" for name in names], [len(p) for p in positions])
        for column, values in (("parquet_url", urls), ("parquet_row", np.concatenate(groups))):
            i = rows.schema.get_field_index(column)
            rows = rows.set_column(i, rows.schema.field(i), pa.array(values).cast(rows.schema.field(i).type))
        self._rows.append(rows)
        self._new, self._dirty = [], True


def row_keys(cells: pd.Series, product_ids: pd.Series) -> pd.Series:
    """What a row is known by, here and at the source: its cell and product."""
    return cells.astype("str") + " " + product_ids.astype("str")


def _geo(schema: pa.Schema) -> dict[bytes, bytes]:
    """GeoParquet's part of a schema, without the box of all rows."""
    geo = (schema.metadata or {}).get(b"geo")
    if geo is None:
        return {}
    said = json.loads(geo)
    for column in said["columns"].values():
        column.pop("bbox", None)
    return {b"geo": json.dumps(said).encode()}

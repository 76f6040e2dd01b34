"""Tables of embeddings as GeoParquet 1.1: tiles, points and polygons, near ones together."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.utils.files import atomic_write, work_folder

if TYPE_CHECKING:
    import geopandas as gpd

#: Columns of vectors; both where class token and mean were asked for.
VECTORS = ("embedding", "embedding_class", "embedding_mean")
#: Key of the file's metadata that says what the table is made of, and how vectors are restored: JSON.
KEY = "terrafm"
_GROUP = 1 << 25  # bytes of vectors in a row group
_MOST_ROWS = 1 << 16  # of a row group
_PIECE = 1 << 12  # rows whose vectors are in memory as the encoder gave them
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def write_table(
    frames: "Iterable[gpd.GeoDataFrame]",
    path: Path,
    about: Mapping[str, Any],
    dtype: str = "float32",
    pca: int | Reduction | None = None,
) -> dict[str, Reduction]:
    """Writes rows with vectors as GeoParquet 1.1, whole or not at all, in memory that does not depend on their number.

    Rows come in the order of a Hilbert curve, with a ``bbox`` column and ZSTD, so that a reader of a region reads few
    row groups. A vector is a list of fixed size; a missing one (None, or not finite) is null.

    Args:
        frames: The rows in portions. Each has geometries, any CRS, and one or more columns of :data:`VECTORS`, with a
            float32 array (D,) per row; all have the same columns.
        path: The file.
        about: What the table is made of: plain values.
        dtype: How vectors are stored: float32, float16 or int8 with a scale per dimension, which the metadata has.
        pca: As of :meth:`Reduction.fit`.

    Returns:
        How the vectors of each column are stored.

    Raises:
        TerraFMError: If there is no row or no vector, a geometry or the CRS is missing, or frames differ in columns.
    """
    with work_folder(path) as folder:
        spilled = _Spilled(folder, path)
        for frame in frames:
            spilled.add(frame)
        spilled.close()
        reductions = {
            name: Reduction.fit(spilled.chunks(name), depth, dtype, pca) for name, depth in spilled.depths.items()
        }
        metadata = {"geo": json.dumps(spilled.geo()), KEY: json.dumps(_said(about, reductions))}
        columns = [pa.field(name, _list_of(reduction)) for name, reduction in reductions.items()]
        schema = pa.schema([*spilled.schema, *columns], metadata)
        width = max(reduction.stored * np.dtype(dtype).itemsize for reduction in reductions.values())
        size = int(np.clip(_GROUP // width, 1, _MOST_ROWS))
        order = spilled.order()
        with atomic_write(path, sole_writer=True) as temporary, _writer(temporary, schema, reductions) as writer:
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                plain = spilled.take(rows)
                arrays = [_lists(one, spilled.encoded(name, one, rows)) for name, one in reductions.items()]
                writer.write_table(pa.Table.from_arrays([*plain.columns, *arrays], schema=schema), row_group_size=size)
    return reductions


def read_reductions(schema: pa.Schema) -> dict[str, Reduction]:
    """Returns how the vectors of each column of a table are stored, as its schema says."""
    said = json.loads((schema.metadata or {}).get(KEY.encode(), b"{}"))
    return {name: Reduction.from_json(json.dumps(text)) for name, text in said.get("reductions", {}).items()}


def _said(about: Mapping[str, Any], reductions: Mapping[str, Reduction]) -> dict[str, Any]:
    return {**about, "reductions": {name: json.loads(one.to_json()) for name, one in reductions.items()}}


def _list_of(reduction: Reduction) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(np.dtype(reduction.dtype)), reduction.stored)


def _lists(reduction: Reduction, numbers: NDArray) -> pa.Array:
    """Makes a column of what is stored of vectors, (n, stored)."""
    missing = (numbers == reduction.missing if reduction.dtype == "int8" else np.isnan(numbers)).any(1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(numbers.ravel()), type=_list_of(reduction), mask=pa.array(missing)
    )


def _writer(path: Path, schema: pa.Schema, reductions: Mapping[str, Reduction]) -> pq.ParquetWriter:
    texts = [f.name for f in schema if f.name not in (*reductions, "geometry", "bbox")]
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=3, use_dictionary=texts, write_page_checksum=True
    )


class _Spilled:
    """Rows on disk, in the order in which they came: vectors as plain numbers, the rest as Arrow's batches."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path
        self.depths = dict[str, int]()
        self.schema = pa.schema([])
        self.kinds = set[str]()
        self._starts, self._middles, self._bounds = [0], list[NDArray](), list[NDArray]()
        self._writer: pa.RecordBatchFileWriter | None = None

    def add(self, frame: "gpd.GeoDataFrame") -> None:
        """Takes some rows."""
        import shapely

        if not len(frame):
            return
        if frame.crs is None or frame.geometry.isna().any() or frame.geometry.is_empty.any():
            raise TerraFMError(
                f"{self.path} was not written: {int(frame.geometry.isna().sum())} of {len(frame)} rows lack a geometry "
                f"and their CRS is {frame.crs}; give geometries with a CRS."
            )
        frame = frame.to_crs("EPSG:4326")
        names = [name for name in VECTORS if name in frame]
        shapes = shapely.force_2d(frame.geometry.array)
        bounds = shapely.bounds(shapes)
        rest = frame.drop(columns=[*names, frame.geometry.name])
        plain = pa.Table.from_pandas(rest, preserve_index=False)
        columns = dict(zip(plain.column_names, plain.columns, strict=True))
        columns["geometry"] = pa.array(shapely.to_wkb(shapes), pa.binary())
        columns["bbox"] = pa.StructArray.from_arrays([pa.array(edge) for edge in bounds.T], _EDGES)
        table = pa.table(columns)
        vectors = {name: _stack(frame[name]) for name in names}
        if self._writer is None:
            self.schema, self.depths = table.schema, {name: array.shape[1] for name, array in vectors.items()}
            self._writer = pa.ipc.new_file(self.folder / "rest.arrow", self.schema)
        depths = {name: array.shape[1] for name, array in vectors.items()}
        if not names or depths != self.depths or table.column_names != self.schema.names:
            raise TerraFMError(
                f"{self.path} was not written: rows have the columns {', '.join(map(str, frame.columns))} with vectors "
                f"of {depths or 'no dimensions'}, expected {', '.join(self.schema.names)} and vectors of "
                f"{self.depths or 'some'}."
            )
        self._writer.write_batch(table.cast(self.schema).combine_chunks().to_batches()[0])
        for name, array in vectors.items():
            with (self.folder / name).open("ab") as file:
                file.write(array.tobytes())
        self._starts.append(self._starts[-1] + len(frame))
        self._middles.append(shapely.get_coordinates(shapely.point_on_surface(shapes)))
        self._bounds.append(np.array([*bounds[:, :2].min(0), *bounds[:, 2:].max(0)]))
        self.kinds |= set(frame.geometry.geom_type)

    def close(self) -> None:
        """Ends the writing."""
        if self._writer is None:
            raise TerraFMError(f"{self.path} was not written: there is no row; give places that the images cover.")
        self._writer.close()

    @property
    def bounds(self) -> NDArray:
        """West, south, east and north of all rows."""
        all_bounds = np.array(self._bounds)
        return np.array([*all_bounds[:, :2].min(0), *all_bounds[:, 2:].max(0)])

    def geo(self) -> dict[str, Any]:
        """Returns what GeoParquet 1.1 wants to know."""
        from pyproj import CRS

        covering = {"bbox": {edge: ["bbox", edge] for edge in _EDGES}}
        column = {
            "encoding": "WKB", "geometry_types": sorted(self.kinds), "crs": CRS("EPSG:4326").to_json_dict(),
            "bbox": self.bounds.tolist(), "covering": covering,
        }  # fmt: skip
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}

    def order(self) -> NDArray[np.int64]:
        """Returns the numbers of the rows in the order of a Hilbert curve."""
        import geopandas as gpd

        bounds, keys = self.bounds, []
        for middles in self._middles:
            points = gpd.GeoSeries(gpd.points_from_xy(*middles.T))
            keys.append(points.hilbert_distance(total_bounds=bounds).to_numpy())
        return np.argsort(np.concatenate(keys), kind="stable")

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Reads the vectors of a column in portions, in the order in which they came."""
        depth = self.depths[name]
        with (self.folder / name).open("rb") as file:
            while len(numbers := np.fromfile(file, np.float32, _PIECE * depth)):
                yield numbers.reshape(-1, depth)

    def encoded(self, name: str, reduction: Reduction, rows: NDArray) -> NDArray:
        """Returns what is stored of the vectors of some rows, (n, stored)."""
        found = []
        with (self.folder / name).open("rb", buffering=0) as file:
            for start in range(0, len(rows), _PIECE):
                vectors = np.empty((len(rows[start : start + _PIECE]), self.depths[name]), np.float32)
                for vector, row in zip(vectors, rows[start:].tolist(), strict=False):
                    file.seek(row * vector.nbytes)
                    file.readinto(vector)
                found.append(reduction.encode(vectors))
        return np.concatenate(found)

    def take(self, rows: NDArray) -> pa.Table:
        """Reads all but the vectors of some rows."""
        found, at = [], []
        batch_of = np.searchsorted(self._starts, rows, side="right") - 1
        with pa.memory_map(str(self.folder / "rest.arrow")) as mapped, pa.ipc.open_file(mapped) as file:
            for batch in np.unique(batch_of).tolist():
                here = np.flatnonzero(batch_of == batch)
                found.append(file.get_batch(batch).take(pa.array(rows[here] - self._starts[batch])))
                at.append(here)
            back = np.argsort(np.concatenate(at))
            return pa.Table.from_batches(found).combine_chunks().take(pa.array(back))


def _stack(column: Any) -> NDArray[np.float32]:
    """Makes an array (n, D) of a column of vectors, NaN where there is none."""
    depth = max((len(vector) for vector in column if vector is not None), default=1)
    none = np.full(depth, np.nan, np.float32)
    return np.stack([none if vector is None else np.asarray(vector, np.float32) for vector in column])

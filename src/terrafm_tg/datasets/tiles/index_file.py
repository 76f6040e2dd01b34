"""The tile index on disk, ``index.parquet``: a GeoParquet file, written atomically.

Its polygons are for QGIS, geopandas and others, who also find the box of each in the column ``bbox`` (the
covering of GeoParquet 1.1). We read the boxes and leave the polygons where they are.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from geopandas import GeoSeries
from pyproj import CRS

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write, stamp
from terrafm_tg.utils.parquet import CheckedFile, check_declared, read_schema
from terrafm_tg.utils.shared import is_first, is_large, shared_table
from terrafm_tg.utils.trust import check_names

from .columns import check_places, check_schema, check_values, index_settings
from .outlines import BOX, outlines
from .table import TIMES, as_table, categorical

NAME = "index.parquet"
#: Rows of a row group: what of the polygons is in memory at once, written or read.
ROW_GROUP = 1 << 18
_NEEDED = ("cell", "quadrant", "epsg", *TIMES)
_LIGHT = ("x", "y", "bbox")  # with these, nobody needs the polygons
#: Columns of millions of names that nobody groups by: as categoricals they would take most of the loading.
_MANY_NAMES = "product_"


#: Columns of the names of files below the root, by modality.
_FILES = ("part_", "path_", "shard_")
_DICTIONARY = 1 << 26  # bytes: a row group's names are never written out one by one
_MOST = 1 << 24  # bytes that an index may take in memory, and besides
_MOST_PER_BYTE = 256  # for each byte of its file


def write_index(index: pd.DataFrame | Iterable[pd.DataFrame], path: Path, made_for: Mapping[str, Any]) -> None:
    """Writes a tile index atomically.

    Args:
        index: A tile index, or a tile table (:mod:`~terrafm_tg.datasets.tiles.table`); or parts of one, of the same
            columns, made one after the other.
        path: The file.
        made_for: The settings and files it was made for, returned by :func:`read_index`; JSON can hold them.
            ``tile_size`` is the size of tiles of which neither polygons nor sizes are given.
    """
    groups = (
        _to_arrow(table.iloc[start : start + ROW_GROUP], made_for.get("tile_size"))
        for table in map(as_table, [index] if isinstance(index, pd.DataFrame) else index)
        for start in range(0, len(table), ROW_GROUP)
    )
    rows = next(groups)
    schema = rows.schema.with_metadata({"geo": _geo_metadata(), "terrafm": json.dumps(made_for)})
    names = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    options = {"use_dictionary": names, "dictionary_pagesize_limit": _DICTIONARY, "compression": "zstd"}
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        while rows is not None:
            writer.write_table(rows.cast(schema), row_group_size=ROW_GROUP)
            rows = next(groups, None)


def _to_arrow(table: pd.DataFrame, tile_size: int | None) -> pa.Table:
    """Converts some rows to the columns of the file."""
    columns = {name: _array(column) for name, column in table.items() if name not in (*BOX, *TIMES, "geometry")} | {
        name: pa.array(table[name], pa.timestamp("us")) for name in TIMES
    }
    corners = [pa.array(table[name], pa.float64()) for name in BOX]
    columns["bbox"] = pa.StructArray.from_arrays(corners, names=BOX)
    shapes = table["geometry"].array if "geometry" in table else outlines(table, tile_size)
    columns["geometry"] = pa.array(shapely.to_wkb(np.asarray(shapes), flavor="iso"), pa.binary())
    return pa.table(columns)


def _array(column: pd.Series) -> pa.Array:
    """Converts a column; names that repeat become a dictionary of those that occur, in their order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = pa.array(column.cat.codes.to_numpy(np.int32), mask=column.isna().to_numpy())
        names = pa.DictionaryArray.from_arrays(codes, pa.array(column.cat.categories.astype("str"), pa.string()))
    else:
        values = pa.array(column, from_pandas=True)
        names = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return names.dictionary_decode().dictionary_encode() if pa.types.is_dictionary(names.type) else names


def _geo_metadata() -> str:
    """Returns the metadata that GeoParquet 1.1 asks for."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "covering": {"bbox": {name: ["bbox", name] for name in BOX}},
    }
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}})


def read_index(
    path: Path, sources: Iterable[str] = (), needs: Iterable[str] = (), only: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads a file of :func:`write_index` column by column, so that little more than the table is in memory.

    It may be a stranger's: what it declares is compared with what an index can be before memory is taken.

    Args:
        path: The file.
        sources: Addresses that the user named: files may lie there, too, and not only below the root.
        needs: Columns that must be there (:func:`~terrafm_tg.datasets.tiles.columns.check_places`).
        only: Columns to read; all where None.

    Returns:
        The tile table (:mod:`~terrafm_tg.datasets.tiles.table`) and what it was made for. Polygons are read only
        where the file does not hold what they can be computed from.

    Raises:
        TerraFMError: If the file is damaged, is something else, or names files outside of its root.
    """
    try:
        schema = read_schema(path)
        made_for = index_settings((schema.metadata or {}).get(b"terrafm", b"null"))
        if made_for is None or len({*schema.names}) < len(schema) or not {*_NEEDED} <= {*schema.names}:
            raise TerraFMError(f"{path} is no tile index of ours: make it again with `terrafm index`.")
        wanted = [name for name in schema.names if name not in ("bbox", "geometry") and (only is None or name in only)]
        kinds = check_schema({name: schema.field(name).type for name in wanted})
        texts = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
        with CheckedFile(path, read_dictionary=texts) as file:
            check_declared(file.metadata, _MOST + _MOST_PER_BYTE * path.stat().st_size)
            columns = {name: _column(file, name) for name in kinds}
            if only is None:
                columns |= _places(file, schema)
        for name, column in columns.items():
            check_values(name, column)
        table = pd.DataFrame(columns, copy=False)
        check_places(table, needs)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, shapely.GEOSException) as error:
        if isinstance(error, TerraFMError):
            raise
        raise TerraFMError(f"{path} cannot be read ({error}): make it again with `terrafm index`.") from error
    check_files(table, path, sources)
    return table, made_for


def read_shared(
    path: Path, sources: Iterable[str] = (), needs: Iterable[str] = (), check: Callable[[], None] | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Reads a file as :func:`read_index` does; a large one once per machine, to be shared by its processes.

    Args:
        path: The file.
        sources: As for :func:`read_index`.
        needs: Likewise.
        check: Raises an error if the file is not to be read.

    Returns:
        As :func:`read_index`.

    Raises:
        TerraFMError: As of :func:`read_index`.
    """
    sources, needs = tuple(sources), tuple(needs)

    def read() -> tuple[pd.DataFrame, dict[str, Any]]:
        if check is not None:
            check()
        return read_index(path, sources, needs)

    try:
        with CheckedFile(path) as file:
            large = is_large(file.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return read()  # which says what is wrong
    return shared_table(f"{path.resolve()} {stamp(path)} {sources} {needs} {check is None}", read) if large else read()


def _places(file: pq.ParquetFile, schema: pa.Schema) -> dict[str, Any]:
    """Reads the boxes, or the polygons where there is nothing that they can be computed from."""
    if {*_LIGHT} <= {*schema.names} and schema.field("bbox").type == pa.struct([(name, pa.float64()) for name in BOX]):
        return {name: _column(file, f"bbox.{name}") for name in BOX}
    shapes = GeoSeries.from_wkb(_column(file, "geometry"))
    return {"geometry": shapes, **dict(zip(BOX, map(pd.Series, shapely.bounds(shapes.array).T), strict=True))}


def check_files(table: pd.DataFrame, origin: Path | str, sources: Iterable[str] = ()) -> None:
    """Refuses a tile index or tile table with a file that does not lie below its root, or below a source.

    Raises:
        TerraFMError: Naming the file.
    """
    for name in table:
        if name.startswith(_FILES):
            check_names(table[name], str(origin), sources)


def read_made_for(path: Path) -> dict[str, Any]:
    """Reads the settings that an index was made for; none of a file that is absent or no index of ours."""
    try:
        return index_settings((read_schema(path).metadata or {}).get(b"terrafm", b"null")) or {}
    except (pa.ArrowException, OSError, ValueError):
        return {}  # the dataset reads the whole of it and says what is wrong


def _column(file: pq.ParquetFile, name: str) -> pd.Series:
    """Reads a column, and gives back the memory of its decoding before the next."""
    groups = [file.read_row_group(group, [name]).flatten()[name] for group in range(file.num_row_groups)]
    column = pa.chunked_array([chunk for group in groups for chunk in group.chunks])
    if pa.types.is_dictionary(column.type) and not name.startswith(_MANY_NAMES):
        series = pd.Series(categorical(column))
    else:
        series = column.to_pandas(types_mapper=_stays_in_arrow)
    del column, groups
    pa.default_memory_pool().release_unused()
    return series


def _stays_in_arrow(kind: pa.DataType) -> pd.ArrowDtype | None:
    """Keeps lists in Arrow, which take ten times the memory as objects, and names."""
    return pd.ArrowDtype(kind) if pa.types.is_nested(kind) or pa.types.is_dictionary(kind) else None


def open_index(
    index: pd.DataFrame | str | os.PathLike[str] | None,
    root: Path,
    scan: Callable[..., pd.DataFrame],
    state: Callable[[Path], str],
    how: Mapping[str, Any],
    sources: Iterable[str] = (),
    needs: Iterable[str] = (),
    **settings: Any,
) -> tuple[pd.DataFrame, bool]:
    """Returns the tile index given, else ``index.parquet`` below the root, else one made from the files.

    Args:
        index: A tile index or tile table, the path of one, or None.
        root: Of the dataset.
        scan: ``scan(root, **how, **settings)`` makes the index.
        state: ``state(root)`` is a name for the files that lie there now.
        how: Settings that only matter when it is made.
        sources: Addresses that the user named, below which files may lie, too.
        needs: Columns that the dataset reads; see :func:`read_index`.
        **settings: Settings with which one on disk must have been made too.

    Returns:
        The tile index or tile table, and whether it was there already.

    Raises:
        TerraFMError: If the index on disk was made with other settings or, below the root, for other files.
    """
    if isinstance(index, pd.DataFrame):
        check_files(index, "The index", sources)
        return index, True
    path = root / NAME if index is None else Path(index)
    if index is None and not path.is_file():
        return scan(root, **how, **settings), False
    table, made_for = read_shared(path, sources, needs)
    for name, value in settings.items():
        if made_for.get(name) != value:
            raise TerraFMError(
                f"{path} was made for {name}={made_for.get(name)!r}, the dataset has {value!r}: set that, "
                "or make the index again with `terrafm index`."
            )
    # the first process looks at each file, for all of a run
    if index is None and is_first() and made_for.get("state") != state(root):
        raise TerraFMError(
            f"{path} was made for other files than lie there now (some were added, removed, replaced, or copied "
            "without their times): run `terrafm index` again."
        )
    return table, True

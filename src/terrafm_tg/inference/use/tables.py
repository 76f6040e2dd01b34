"""Embeddings in GeoParquet tables."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products import Reduction
from terrafm_tg.utils.parquet import CheckedFile

from .maps import about_of, date_of, no_embeddings
from .vectors import PART, WGS84, EmbeddingLayer, PlacedVectors, between, distances, to_degrees

#: Vectors of a table that has several: the mean of its tokens, or the class token.
Pooling = Literal["mean", "class"]
_IDENTITY = ("unique_id", "id", "name", "image", "grid_cell", "product_id", "timestamp", "place")
#: Meters from a point of a table within which it is meant.
REACH = 1000.0
_COLUMNS = {None: ("embedding", "embedding_mean", "embedding_class"), "mean": ("embedding_mean",)}
_COLUMNS |= {"class": ("embedding_class",)}


class TableLayer(EmbeddingLayer):
    """Embeddings in a GeoParquet table: a column ``embedding`` (or ``embedding_mean``, ``embedding_class``) of lists.

    Args:
        path: The file.
        pooling: Which of its vectors; ``embedding``, else the mean, else the class token where None.

    Raises:
        TerraFMError: If it has no such column, or no geometry.
        pyarrow.ArrowException, OSError, ValueError: If it cannot be read.
    """

    def __init__(self, path: Path, pooling: Pooling | None = None) -> None:
        self.path = path
        with CheckedFile(path) as file:
            schema, self.count, groups = file.schema_arrow, file.metadata.num_rows, file.metadata.num_row_groups
            rows = [file.metadata.row_group(i).num_rows for i in range(groups)]
        self._starts = np.cumsum([0, *rows])
        self.columns = schema.names
        metadata = {key.decode(): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
        geo = geo_of(metadata.get("geo", ""))
        column = next((name for name in _COLUMNS[pooling] if name in schema.names), None)
        if column is None or not _is_list(schema.field(column).type) or geo is None or geo[0] not in schema.names:
            found = [name for name in schema.names if name.startswith("embedding")]
            if pooling is not None and column is None and found:
                raise TerraFMError(f"{path} has no {_COLUMNS[pooling][0]}: its vectors are in {', '.join(found)}.")
            raise no_embeddings(path, f"the columns {', '.join(schema.names[:12])}{', ...' * (len(schema) > 12)}")
        self.column, (self.geometry_column, self.crs) = column, geo
        self.about = about_of({k: v for k, v in metadata.items() if k not in ("geo", "pandas", "ARROW:schema")})
        reduction = (self.about.pop("reductions", None) or {}).get(column)
        self._scale = None
        if reduction is not None:
            self.about["reduction"] = reduction
            self._scale = Reduction.from_json(json.dumps(reduction)).scale
        self.date = date_of(self.about)
        self.dims = self._width()

    def _width(self) -> int:
        """Returns the length of the first vector that is there."""
        for i in range(len(self._starts) - 1):
            lengths = np.diff(self._lists(i).offsets.to_numpy())
            if (lengths > 0).any():
                return int(lengths[lengths > 0][0])
        raise TerraFMError(f"{self.path} holds no embedding: its column {self.column} is empty.")

    def _lists(self, group: int) -> pa.LargeListArray:
        with CheckedFile(self.path) as file:
            column = file.read_row_group(group, [self.column])[self.column]
        kind = column.type.value_type
        return pa.chunked_array(
            [_as_list(chunk, kind) for chunk in column.chunks], pa.large_list(kind)
        ).combine_chunks()

    def _vectors(self, group: int) -> NDArray[np.float32]:
        """Reads a row group's vectors, (n, D), NaN where missing."""
        lists = self._lists(group)
        offsets = lists.offsets.to_numpy()
        lengths = np.diff(offsets)
        wrong = lengths[(lengths != self.dims) & (lengths > 0)]
        if len(wrong):
            raise TerraFMError(
                f"{self.path} holds embeddings of {self.dims} and of {wrong[0]} values, expected one width."
            )
        flat = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
        found = np.full((len(lengths), self.dims), np.nan, np.float32)
        found[lengths > 0] = flat.reshape(-1, self.dims)
        return found if self._scale is None else found * self._scale

    @cached_property
    def geometries(self) -> NDArray[Any]:
        """Shapes of all rows, in the table's CRS."""
        return shapely.from_wkb(np.asarray(self.values(self.geometry_column), dtype=object))

    def values(self, column: str) -> NDArray[Any]:
        """Reads another column."""
        with CheckedFile(self.path) as file:
            groups = [file.read_row_group(i, [column])[column] for i in range(len(self._starts) - 1)]
        return np.concatenate([group.to_pandas().to_numpy() for group in groups]) if groups else np.empty(0, object)

    def identity(self) -> dict[str, NDArray[Any]]:
        """Reads the columns that say which row is which."""
        return {name: self.values(name) for name in _IDENTITY if name in self.columns}

    @cached_property
    def _dates(self) -> list[str] | None:
        column = next((name for name in ("timestamp", "datetime", "date") if name in self.columns), None)
        return None if column is None else [str(value)[:10] for value in self.values(column)]

    def date_of(self, place: int) -> str:
        """See :class:`~.vectors.EmbeddingLayer`."""
        return self.date if self._dates is None else self._dates[place]

    @cached_property
    def _middles(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        middles = shapely.centroid(self.geometries)
        return to_degrees(self.crs, shapely.get_x(middles), shapely.get_y(middles))

    def parts(self, most: int | None = None) -> Iterator[PlacedVectors]:
        """See :class:`~.vectors.EmbeddingLayer`."""
        groups = len(self._starts) - 1
        chosen = np.arange(groups)
        if most is not None and most < self.count:
            few = max(1, -(-groups * most // self.count))
            chosen = np.linspace(0, groups - 1, few).round().astype(int)
        for i in chosen:
            x = self._vectors(int(i))
            for start in range(0, len(x), rows := max(1, PART // self.dims)):
                part = x[start : start + rows]
                there = np.flatnonzero(np.isfinite(part).all(axis=1))
                place = self._starts[i] + start + there
                yield PlacedVectors(part[there], place, *self.lonlat(place))

    def lonlat(self, place: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See :class:`~.vectors.EmbeddingLayer`."""
        return self._middles[0][place], self._middles[1][place]

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)

    def rows_at(self, lon: float, lat: float) -> NDArray[np.int64]:
        """Returns all rows whose geometry a point lies in; of points the nearest ones, if they are in reach."""
        x, y = between(WGS84, self.crs).transform(lon, lat)
        if not (np.isfinite(x) and np.isfinite(y)):
            return np.empty(0, np.int64)
        inside = np.sort(self._tree.query(shapely.Point(x, y), predicate="intersects"))
        if len(inside) or self.count == 0 or (shapely.area(self.geometries) > 0).any():
            return inside.astype(np.int64)
        away = distances(*self._middles, lon, lat)
        return np.flatnonzero(away <= min(np.nanmin(away) + 1.0, REACH))  # those of several dates, too

    def rows_in(self, shape: Any) -> NDArray[np.int64]:
        """Returns the rows whose middles lie in a polygon of the table's CRS."""
        some = np.sort(self._tree.query(shape, predicate="intersects"))
        return some[shapely.contains(shape, shapely.centroid(self.geometries[some]))].astype(np.int64)

    def find(self, lon: float, lat: float) -> int | None:
        """See :class:`~.vectors.EmbeddingLayer`; the newest of several rows."""
        return max(map(int, self.rows_at(lon, lat)), key=self.date_of, default=None)

    def near(self, lon: float, lat: float, meters: float) -> NDArray[np.int64]:
        """See :class:`~.vectors.EmbeddingLayer`."""
        return np.flatnonzero(distances(*self._middles, lon, lat) < meters)

    def bounds(self) -> tuple[float, float, float, float]:
        """See :class:`~.vectors.EmbeddingLayer`."""
        lon, lat = self._middles
        if np.ptp(lon) > 180:  # across 180°
            lon = lon % 360
        return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())

    def take(self, place: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :class:`~.vectors.EmbeddingLayer`."""
        found = np.full((len(place), self.dims), np.nan, np.float32)
        groups = np.searchsorted(self._starts, place, side="right") - 1
        for i in np.unique(groups):
            here = groups == i
            found[here] = self._vectors(int(i))[place[here] - self._starts[i]]
        return found


def geo_of(text: str | bytes) -> tuple[str, CRS] | None:
    """Reads the geometry column and its CRS from GeoParquet's metadata; None where these are none."""
    try:
        content = json.loads(text)
        name = content["primary_column"]
        crs = content["columns"][name].get("crs", "OGC:CRS84")
        return name, WGS84 if crs in (None, "OGC:CRS84") else CRS.from_user_input(crs)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _is_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _as_list(chunk: pa.Array, kind: pa.DataType) -> pa.LargeListArray:
    """Returns a list array of any kind with offsets of 64 bits; missing lists become empty ones."""
    if pa.types.is_fixed_size_list(chunk.type):
        width = chunk.type.list_size
        there = np.asarray(chunk.is_valid())
        offsets = np.concatenate([[0], np.cumsum(np.where(there, width, 0))]).astype(np.int64)
        return pa.LargeListArray.from_arrays(pa.array(offsets), chunk.filter(chunk.is_valid()).flatten())
    return chunk.cast(pa.large_list(kind)).fill_null(pa.scalar([], pa.large_list(kind)))

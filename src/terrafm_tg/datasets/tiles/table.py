"""The tile table: the tile index without its polygons, which are gigabytes of objects at millions of tiles.

It is a plain data frame with a row per tile, counted from 0. Besides the columns of the index it has

* ``datetime_start`` and ``datetime_stop`` instead of the index' intervals;
* ``xmin``, ``ymin``, ``xmax``, ``ymax``: the box around the footprint in EPSG:4326;
* ``x`` and ``y``: the tile's upper left corner in its own CRS, ``epsg``, from which the footprint is computed
  when somebody asks for it; ``xres``, ``yres``, ``height`` and ``width`` too where tiles are not all of one
  size. A table that was made from given polygons keeps them as ``geometry``;
* ``cell`` as a categorical column, as names are best held that repeat; lists (``land_cover_share``) and names of
  products as Arrow holds them.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from geopandas import GeoDataFrame
from pyproj import CRS

from .footprints import BOX, TIMES, outlines


def as_table(index: pd.DataFrame) -> pd.DataFrame:
    """The tile table of a tile index; a table stays as it is.

    Args:
        index: A tile index with polygons on an IntervalIndex, or a tile table.
    """
    if not isinstance(index, GeoDataFrame):
        return index
    west, south, east, north = index.geometry.bounds.to_numpy().T
    table = pd.DataFrame(index.reset_index(drop=True)).rename(columns={index.geometry.name: "geometry"})
    columns: dict[str, Any] = dict(zip(BOX, (west, south, east, north), strict=True))
    columns |= dict(zip(TIMES, (index.index.left, index.index.right), strict=True))
    return table.assign(cell=table["cell"].astype("category"), **columns)


def as_index(table: pd.DataFrame, tile_size: int | None = None, crs: CRS | str = "EPSG:4326") -> GeoDataFrame:
    """The tile index of a tile table: footprints on TorchGeo's IntervalIndex.

    Args:
        table: A tile table.
        tile_size: Edge in 10 m pixels of tiles that the table gives no size of.
        crs: Of its footprints.
    """
    geometry = table["geometry"].array if "geometry" in table else outlines(table, tile_size)
    rest = table.drop(columns=[*BOX, *TIMES, "geometry"], errors="ignore")
    rest = rest.assign(**{name: _plain(c) for name, c in rest.items() if isinstance(c.dtype, pd.ArrowDtype)})
    rest.index = pd.IntervalIndex.from_arrays(
        *(table[name] for name in TIMES), closed="both", name="datetime"
    )
    return GeoDataFrame(rest, geometry=geometry, crs=crs)


def categorical(column: pa.ChunkedArray) -> pd.Categorical:
    """Names that repeat; pyarrow's own way makes a Python object of each."""
    chunks = column.unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in chunks])
    names = pd.StringDtype(na_value=np.nan).__from_arrow__(chunks[0].dictionary)
    # Whether names differ is checked on objects, which stay with the original for good: a copy is without them.
    kind = deepcopy(pd.CategoricalDtype(pd.Index(names)))
    return pd.Categorical.from_codes(codes, dtype=kind, validate=False)


def _plain(column: pd.Series) -> pd.Series:
    """A column that Arrow holds, as geopandas can write it and read it again."""
    if pa.types.is_dictionary(column.dtype.pyarrow_dtype):
        return pd.Series(categorical(pa.table({"names": column})["names"]), column.index)
    return column.astype(object)


def times(start: pd.Series, stop: pd.Series) -> dict[str, np.ndarray]:
    """The columns ``datetime_start`` and ``datetime_stop``: a tile without any date is valid for all time."""
    limits = pd.Timestamp.min.ceil("us").as_unit("us"), pd.Timestamp.max.floor("us").as_unit("us")
    return {
        name: column.astype("datetime64[us]").fillna(limit).to_numpy()
        for name, column, limit in zip(TIMES, (start, stop), limits, strict=True)
    }


def intervals(start: pd.Series, stop: pd.Series) -> pd.IntervalIndex:
    """TorchGeo's time index, of the same."""
    return pd.IntervalIndex.from_arrays(*times(start, stop).values(), closed="both", name="datetime")

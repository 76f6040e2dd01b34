"""The tile table of a packed store: the source's, where each tile's pixels lie, and what was packed before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.tiles.footprints import TIMES
from terrafm_tg.datasets.tiles.table import categorical
from terrafm_tg.modalities import MODALITIES


def join_tables(
    source: pd.DataFrame, records: Mapping[str, pd.DataFrame], before: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The source's tile table with where its pixels lie in the store, and what else the store holds.

    What the source has no more stays, whole tiles and single modalities of tiles: so the parts of an archive that
    is larger than the disk are packed one after the other.

    Args:
        source: The source's tile table.
        records: For each modality, by row of ``source``: the columns of the store's table that say where its pixels
            lie.
        before: What the store holds besides; None where nothing.

    Returns:
        One row per tile that the store holds something of, in the order of the source, or in the order of the grid
        where tiles were added to it. ``has_<modality>`` is true where there is a record.
    """
    tables = [source] if before is None else [source, before]
    names = [_tile_names(table) for table in tables]
    every = [f"_{name}" for name in MODALITIES]
    tiles = _first(
        [
            table.drop(columns=[column for column in table if column.endswith(tuple(every))]).set_index(keys)
            for table, keys in zip(tables, names, strict=True)
        ]
    )
    for name in MODALITIES:
        held = []
        if name in records:
            rows, found = records[name].index, records[name].set_index(names[0][records[name].index])
            held.append(_of(source, name).iloc[rows].set_index(found.index).join(found))
        if before is not None and f"has_{name}" in before:
            held.append(_of(before, name).set_index(names[1])[before[f"has_{name}"].to_numpy(bool)])
        if held:
            joint = _first(held)
            columns = {c: joint[c].reindex(tiles.index, fill_value=_absent(joint[c].dtype)) for c in joint}
            tiles = tiles.assign(**columns)
    if before is not None:  # a tile is valid for the time of all its images
        has = before.filter(regex="^has_").any(axis=1).to_numpy()
        also = before.loc[has, list(TIMES)].set_index(names[1][has]).reindex(tiles.index)
        for column, limit in zip(TIMES, (np.fmin, np.fmax), strict=True):
            tiles[column] = limit(tiles[column].to_numpy(), also[column].to_numpy())
    tiles = tiles[tiles.filter(regex="^has_").any(axis=1)].reset_index(drop=True)
    if before is None or np.isin(names[1], names[0]).all():
        return tiles
    cell_rows, cell_columns = grid.parse(tiles["cell"])
    order = np.lexsort((tiles["quadrant"].to_numpy(), cell_columns, cell_rows))
    return tiles.iloc[order].reset_index(drop=True)


def with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """The table with names that Arrow holds as categories, of which a few rows take little memory."""
    in_arrow = {
        name: pd.Series(categorical(pa.table({name: column})[name]), table.index)
        for name, column in table.items()
        if isinstance(column.dtype, pd.ArrowDtype) and pa.types.is_dictionary(column.dtype.pyarrow_dtype)
    }
    return table.assign(**in_arrow)


def _tile_names(table: pd.DataFrame) -> np.ndarray:
    """A number that stands for a tile wherever it is listed: of its cell and quadrant, or of its first image."""
    whole = np.zeros(len(table), bool)  # cells; of a place there may be several images
    for name in (name for name in MODALITIES if f"part_{name}" in table):
        whole |= table[f"part_{name}"].notna().to_numpy()
    places = {"cell": table["cell"].array, "quadrant": np.where(whole, table["quadrant"], -1)}
    for column in ("x", "y"):
        places[column] = np.where(whole, 0.0, table.get(column, 0.0))
    for column in (f"{kind}_{name}" for kind in ("path", "product") for name in MODALITIES):
        held = table[column].astype(object) if column in table else pd.Series(None, table.index, object)
        places[column] = held.mask(whole).astype("category").array
    return pd.util.hash_pandas_object(pd.DataFrame(places), index=False).to_numpy()


def _of(table: pd.DataFrame, modality: str) -> pd.DataFrame:
    """The columns of one modality."""
    return table[[column for column in table if column.endswith(f"_{modality}")]]


def _first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables, the first of those with one name; what a table lacks is absent there."""
    like = {column: table[column].iloc[:0] for table in tables for column in table}
    joint = pd.concat([table.assign(**{
        column: empty.reindex(table.index, fill_value=_absent(empty.dtype))
        for column, empty in like.items() if column not in table
    })[list(like)] for table in tables])  # fmt: skip
    joint = joint[~joint.index.duplicated()]
    names = {c for c in like if isinstance(like[c].dtype, pd.CategoricalDtype)}
    return joint.assign(**{column: _sorted(joint[column]) for column in names})


def _sorted(names: pd.Series) -> pd.Series:
    """As categories: those that occur, in order, wherever they come from."""
    names = names.astype("category").cat.remove_unused_categories()
    return names.cat.reorder_categories(sorted(names.cat.categories))


def _absent(dtype: Any) -> Any:
    """What stands for no value in a column."""
    if pd.api.types.is_bool_dtype(dtype):
        return False
    return {"i": -1, "u": 0}.get(getattr(dtype, "kind", ""))

"""The tile table of a packed store: the source's, with the places of records, joined with the tiles packed before."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.tiles.table import TIMES, with_sizes
from terrafm_tg.modalities import MODALITIES


def entry_table(
    source: pd.DataFrame, records: Mapping[str, pd.DataFrame], sources: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Makes the table of one run: the source's, in the modalities that were packed, with the places of its records.

    Args:
        source: The source's tile table.
        records: For each modality, by row of ``source``: the columns :data:`PLACES`.
        sources: For each modality, where each tile comes from, uint64 (n,); 0 where the source lacks it.

    Returns:
        A row per tile of the source. ``has_<modality>`` is true where there is a record.
    """
    others = tuple(f"_{name}" for name in MODALITIES if name not in records)
    table = source.drop(columns=[column for column in source if column.endswith(others)]) if others else source
    for name, found in records.items():
        places = {c: found[c].reindex(range(len(table)), fill_value=_absent(found[c].dtype)) for c in found}
        has = np.isin(np.arange(len(table)), found.index)
        table = table.assign(**{f"has_{name}": has}, **places).assign(**{f"source_{name}": sources[name]})
    return table.reset_index(drop=True)


def join_tables(tables: Sequence[pd.DataFrame], tile_size: int) -> pd.DataFrame:
    """Joins the tables of a store's runs, at once.

    What a source has no more stays, whole tiles and single modalities of tiles: so the parts of an archive that
    is larger than the disk are packed one after the other. Of one source file, the latest run counts.

    Args:
        tables: Of :func:`entry_table`, the latest first; the last one may be joined already.
        tile_size: Of tiles of which a table gives no size.

    Returns:
        One row per tile that the store holds something of, in the order of the latest table, or in the order of the
        grid where others add tiles to it. ``has_<modality>`` is true where there is a record.
    """
    if len({"xres" in table for table in tables}) > 1:  # archives of two kinds
        tables = [with_sizes(table, tile_size) for table in tables]
    names = [_tile_names(table) for table in tables]
    ends = tuple(f"_{name}" for name in MODALITIES)
    tiles = _first(
        [
            table.drop(columns=[column for column in table if column.endswith(ends)]).set_index(keys)
            for table, keys in zip(tables, names, strict=True)
        ]
    )
    count = np.cumsum([0, *map(len, tables)])
    parts = [slice(*limits) for limits in itertools.pairwise(count)]
    number, any_has = np.repeat(np.arange(len(tables)), np.diff(count)), np.zeros(count[-1], bool)
    for name in MODALITIES:
        if not any(f"has_{name}" in table for table in tables):
            continue
        has, sources = (
            np.concatenate([t.get(f"{column}_{name}", pd.Series(0, t.index)).to_numpy(kind) for t in tables])
            for column, kind in (("has", np.bool_), ("source", np.uint64))
        )
        has &= (sources == 0) | (pd.Series(number).groupby(sources).transform("min") == number).to_numpy()
        any_has |= has
        joint = _first([
            _of(table, name).set_index(keys)[has[part]]
            for table, keys, part in zip(tables, names, parts, strict=True) if f"has_{name}" in table
        ])  # fmt: skip
        tiles = tiles.assign(**{c: joint[c].reindex(tiles.index, fill_value=_absent(joint[c].dtype)) for c in joint})
    if len(tables) > 1:  # a tile is valid for the time of all its images
        also = pd.concat([
            table.loc[any_has[part], list(TIMES)].set_index(keys[any_has[part]])
            for table, keys, part in zip(tables[1:], names[1:], parts[1:], strict=True)
        ]).groupby(level=0)  # fmt: skip
        for column, limits, limit in zip(TIMES, (also.min(), also.max()), (np.fmin, np.fmax), strict=True):
            tiles[column] = limit(tiles[column].to_numpy(), limits[column].reindex(tiles.index).to_numpy())
    tiles = tiles[tiles.filter(regex="^has_").any(axis=1)].reset_index(drop=True)
    if np.isin(np.concatenate(names), names[0]).all():
        return tiles
    cell_rows, cell_columns = grid.parse(tiles["cell"])
    order = np.lexsort((tiles["quadrant"].to_numpy(), cell_columns, cell_rows))
    return tiles.iloc[order].reset_index(drop=True)


def _tile_names(table: pd.DataFrame) -> np.ndarray:
    """Numbers each tile alike wherever it is listed: by its cell and quadrant, or by its first image."""
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
    """Selects the columns of one modality."""
    return table[[column for column in table if column.endswith(f"_{modality}")]]


def _first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Joins the rows of all tables, the first of those with one name; columns that a table lacks are absent there."""
    like = {column: table[column].iloc[:0] for table in tables for column in table}
    joint = pd.concat([table.assign(**{
        column: empty.reindex(table.index, fill_value=_absent(empty.dtype))
        for column, empty in like.items() if column not in table
    })[list(like)] for table in tables])  # fmt: skip
    joint = joint[~joint.index.duplicated()]
    names = {c for c in like if isinstance(like[c].dtype, pd.CategoricalDtype)}
    return joint.assign(**{column: _sorted(joint[column]) for column in names})


def _sorted(names: pd.Series) -> pd.Series:
    """Converts names to categories: those that occur, in order, wherever they come from."""
    names = names.astype("category").cat.remove_unused_categories()
    return names.cat.reorder_categories(sorted(names.cat.categories))


def _absent(dtype: Any) -> Any:
    """Returns the value that stands for none in a column."""
    if pd.api.types.is_bool_dtype(dtype):
        return False
    return {"i": -1, "u": 0}.get(getattr(dtype, "kind", ""))


#: Columns of a store's index that say where a tile lies, with ``_<modality>`` behind, and their types. ``source`` is a
#: number for where it came from.
PLACES = {
    "shard": "category",
    "start": np.int64,
    "bytes": np.int32,
    "xxh3": np.uint64,
    "layout": "category",
    "source": np.uint64,
}


def take_over(
    before: pd.DataFrame | None, modality: str, sources: np.ndarray, holds: Callable[[str], bool]
) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Finds the tiles that a store holds already from the same source files.

    Args:
        before: The store's table; None where it has none yet.
        modality: The name of the modality to look for.
        sources: uint64 (n,), where each tile of the source comes from; 0 where it lacks the modality.
        holds: Tells whether the store has a shard.

    Returns:
        ``before``, where ``has_<modality>`` is true only for what is still there; and the columns :data:`PLACES` of
        the tiles found, by row of the source.
    """
    if before is None or f"has_{modality}" not in before:
        return before, pd.DataFrame({f"{c}_{modality}": pd.Series(dtype=kind) for c, kind in PLACES.items()})
    shards = pd.Categorical(before[f"shard_{modality}"])
    there = np.array([holds(shard) for shard in shards.categories] + [False])
    has = before[f"has_{modality}"].to_numpy(bool) & there[shards.codes]
    known = before.loc[has, [f"{column}_{modality}" for column in PLACES]].drop_duplicates(f"source_{modality}")
    rows = np.flatnonzero(np.isin(sources, known[f"source_{modality}"]))
    places = known.set_index(f"source_{modality}", drop=False).loc[sources[rows]].set_axis(rows)
    return before.assign(**{f"has_{modality}": has}), places

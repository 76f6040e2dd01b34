"""The land-cover columns of a tile index: from counts, or taken over from the index that is there already."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover
from terrafm_tg.land_cover import CLASSES, OCEAN, majorities

from .map_counts import GRID, CoverUnits

_CHUNK = 1 << 18  # rows at once


def describe_map(worldcover: ESAWorldCover) -> dict[str, Any]:
    """Describes the map by all that decides the land cover of an index besides its tiles; JSON can hold it."""
    files = sorted(Path(path) for path in worldcover.index.filepath)
    sizes = {file.name: file.stat().st_size for file in files}
    return {"year": worldcover.year, "missing": worldcover.missing, "files": sizes}


def take_over(
    table: pd.DataFrame, path: Path, made_for: dict[str, Any], worldcover: ESAWorldCover, cover: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Fills in the land cover of tiles that an earlier index knows.

    Nothing is taken over where a file of the map has changed or gone since, nor under a file that is new.

    Args:
        table: A tile table.
        path: The index that is there, or may not be.
        made_for: The settings of the new one, with ``worldcover`` as :func:`describe_map` has it.
        worldcover: The map.
        cover: int8 (n,), changed.
        share: float32 (n, 11), changed.

    Returns:
        bool (n,), the rows that are filled in.
    """
    known = np.zeros(len(table), dtype=bool)
    columns = [name for name in GRID if name in table]
    try:
        with pq.ParquetFile(path) as file:
            before, now = (json.loads(file.schema_arrow.metadata[b"terrafm"])["worldcover"], made_for["worldcover"])
            files = before.pop("files")
            if not (files.items() <= now["files"].items() and before.items() <= now.items()):
                return known
            held = file.read([*columns, "land_cover", "land_cover_share"])
    except (pa.ArrowException, OSError, KeyError, TypeError):  # there is none, or one of another kind
        return known
    keys, old_keys = _keys(table[columns]), _keys(held.select(columns).to_pandas())
    order = np.argsort(old_keys)
    at = np.minimum(np.searchsorted(old_keys[order], keys), len(order) - 1)
    old = order[at]
    known = old_keys[old] == keys
    new = np.array([Path(path).name not in files for path in worldcover.index.filepath])
    if new.any():
        units = CoverUnits(table, made_for["tile_size"], worldcover, known)
        known[units.tiles[new[units.files]]] = False
    cover[known] = held["land_cover"].to_numpy()[old[known]]
    shares = held["land_cover_share"].combine_chunks().flatten().to_numpy().reshape(-1, share.shape[1])
    share[known] = shares[old[known]]
    return known


def fill_land_cover(
    counts: np.ndarray, table: pd.DataFrame, rows: np.ndarray, cover: np.ndarray, share: np.ndarray
) -> None:
    """Fills in class and shares of some rows from their counts (n, 12); no data counts to the whole."""
    for chunk in (np.flatnonzero(rows)[start : start + _CHUNK] for start in range(0, rows.sum(), _CHUNK)):
        part = counts[chunk].astype(np.int64)
        latitude = (table["ymin"].to_numpy()[chunk] + table["ymax"].to_numpy()[chunk]) / 2
        cover[chunk] = majorities(part, latitude)
        share[chunk] = part[:, : len(CLASSES)] / np.maximum(part.sum(axis=1, keepdims=True), 1)


def lists(values: np.ndarray) -> pd.Series:
    """Makes a column of lists from (n, k) float32, without an object per row."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([column])))


def in_ocean_cells(cells: pd.Series, cover: np.ndarray) -> np.ndarray:
    """Returns bool (n,): more than half of the tiles of its cell whose land cover is known are ocean.

    These are the tiles that :class:`~terrafm_tg.samplers.LandCoverSampler` thins, cell by cell.
    """
    codes = pd.factorize(cells)[0]
    return (2 * np.bincount(codes, cover == OCEAN) > np.bincount(codes, cover >= 0))[codes]


def _keys(grid: pd.DataFrame) -> np.ndarray:
    """Hashes each row's place, to a centimeter: uint64 (n,)."""
    places = {
        name: np.rint(values.to_numpy() * 100).astype(np.int64) if values.dtype.kind == "f" else values
        for name, values in grid.items()
    }
    return pd.util.hash_pandas_object(pd.DataFrame(places), index=False).to_numpy()

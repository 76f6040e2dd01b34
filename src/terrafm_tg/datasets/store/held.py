"""Where the tiles of one modality lie in a store, while it is packed."""

from pathlib import Path

import numpy as np
import pandas as pd

#: Columns of a store's index that say where a tile lies, with ``_<modality>`` behind, and their types. ``source`` is a
#: number for where it came from.
COLUMNS = {
    "shard": object,
    "start": np.int64,
    "bytes": np.int32,
    "xxh3": np.uint64,
    "layout": object,
    "source": np.uint64,
}


class HeldTiles:
    """Filled as shards are finished, in any order.

    Args:
        modality: Its name.
        sources: uint64 (n,), where each tile of the source comes from; 0 where it lacks the modality.
    """

    def __init__(self, modality: str, sources: np.ndarray) -> None:
        self.modality = modality
        self.sources = sources
        self.columns = {name: np.zeros(len(sources), kind) for name, kind in COLUMNS.items()} | {
            "source": sources
        }

    @property
    def held(self) -> np.ndarray:
        """Whether the store has the tile."""
        return self.columns["bytes"] > 0

    def add(self, rows: np.ndarray, shard: str, table: pd.DataFrame) -> None:
        """Take note of a shard.

        Args:
            rows: Of the source's table, one per record.
            shard: Path below the store.
            table: What the shard holds, as from :func:`~terrafm_tg.datasets.store.shards.shard_table`.
        """
        self.columns["shard"][rows] = shard
        for name in ("start", "bytes", "xxh3", "layout"):
            self.columns[name][rows] = table[name]

    def take_over(self, before: pd.DataFrame, out: Path) -> pd.DataFrame:
        """Take note of what the store holds already from the same source files.

        Args:
            before: The store's table until now.
            out: The store.

        Returns:
            ``before``, where ``has_<modality>`` is true only for what it holds besides, from other files or none.
        """
        name = self.modality
        if f"has_{name}" not in before:
            return before
        shards = pd.Categorical(before[f"shard_{name}"])
        there = np.array([(out / shard).is_file() for shard in shards.categories] + [False])
        has = before[f"has_{name}"].to_numpy(bool) & there[shards.codes]
        known = before.loc[has, [f"{column}_{name}" for column in COLUMNS]].drop_duplicates(f"source_{name}")
        place = pd.Index(known[f"source_{name}"]).get_indexer(self.sources)
        for column in COLUMNS:
            self.columns[column][place >= 0] = known[f"{column}_{name}"].to_numpy()[place[place >= 0]]
        return before.assign(**{f"has_{name}": has & ~np.isin(before[f"source_{name}"], self.sources)})

    def table(self) -> pd.DataFrame:
        """The columns of the store's index, by row of the source's."""
        rows = np.flatnonzero(self.held)
        table = pd.DataFrame(
            {f"{c}_{self.modality}": values[rows] for c, values in self.columns.items()}, index=rows
        )
        names = [column for column in table if column.startswith(("shard_", "layout_"))]
        return table.astype(dict.fromkeys(names, "category"))

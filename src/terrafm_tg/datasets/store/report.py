"""Results of packing: numbers by modality, a table for people, and the list of damaged tiles."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from rich.filesize import decimal
from rich.table import Column, Table

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality

from .folder import write_text
from .plan import file_bytes

#: Numbers of each modality: tiles packed now, in the store before from the same source files, and damaged; bytes of
#: their bands at the source, and of their shards.
COUNTS = ("tiles", "before", "damaged", "bytes_in", "bytes_out")


@dataclass
class PackReport:
    """Numbers of a run of packing."""

    counts: pd.DataFrame  # A row per modality, with the columns :data:`COUNTS`
    tiles: int = 0  # in the store
    cells: int = 0  # of which they are
    removed: int = 0  # shards that nothing refers to any more
    seconds: float = 0.0  # that it took

    def table(self) -> Table:
        """Makes the table for people: a row per modality, and the sums."""
        titles = ("packed", "before", "damaged", "source", "store", "ratio")
        table = Table("tiles", *(Column(title, justify="right") for title in titles), min_width=60)
        counts = self.counts.rename(index={m.name: m.title for m in MODALITIES.values()})
        if len(counts) > 1:
            counts.loc["all"] = counts.sum()
        for title, *numbers, source, store in counts.itertuples():
            sizes = decimal(source), decimal(store), f"{store / source:.0%}" if source else "-"
            table.add_row(title, *(f"{number:,}" for number in numbers), *sizes)
        return table

    def in_words(self, out: Path) -> str:
        """Returns the sentences below the table."""
        time, damaged = timedelta(seconds=round(self.seconds)), self.counts["damaged"].sum()
        text = f"{self.tiles:,} tiles of {self.cells:,} cells in {out}, after {time}."
        if damaged:
            text += f" The {damaged:,} damaged ones are listed in {out / DAMAGED}."
        if self.removed:
            text += f" {self.removed:,} shards that nothing refers to any more were removed."
        return text


_log = logging.getLogger(__name__)

#: The list, below a store.
DAMAGED = "damaged.csv"
#: Damaged tiles from which on their share is judged, so that the first ones do not end a run.
MIN_DAMAGED = 10
_COLUMNS = ("modality", "tile", "file", "row_group", "reason", "source")


class DamageList:
    """The damaged tiles of a store; each modality of a tile counts by itself.

    Args:
        path: The list of earlier runs, if there is one. What it names is not tried again until its source file is
            replaced by one of another size, or the list is deleted.
        max_share: Largest share of damaged tiles among those to pack now, checked once ten are damaged (0: none is
            allowed).

    Raises:
        TerraFMError: If the share is none, or the list is not one.
    """

    def __init__(self, path: Path, max_share: float) -> None:
        if not 0 <= max_share <= 1:
            raise TerraFMError(f"`max_damaged_share` is {max_share}: give a share from 0 to 1.")
        self.path, self.max_share = path, max_share
        self.found: list[tuple[str, ...]] = []
        self.before = pd.DataFrame(columns=_COLUMNS, dtype=str)
        if path.is_file():
            try:
                self.before = pd.read_csv(path, dtype=str, keep_default_na=False)[list(_COLUMNS)]
            except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
                raise TerraFMError(f"{path} is no list of damaged tiles: delete it; they are tried again.") from error

    def known(self, modality: str) -> np.ndarray:
        """Returns the sources of the tiles that could not be packed before: uint64, as in the store's index."""
        sources = self.before.loc[self.before["modality"] == modality, "source"]
        return np.array([int(source, 16) for source in sources], dtype=np.uint64)

    def add(self, tile: str, modality: str, place: tuple[str, str], reason: str, source: int, planned: int) -> None:
        """Notes a damaged tile (its source file and row group, and its number in the store's index) and logs its name.

        Raises:
            TerraFMError: If these are too many.
        """
        self.found.append((modality, tile, *place, reason, f"{source:016x}"))
        _log.warning("%s", DamagedTileError(f"{tile} {modality}", reason))
        count = len(self.found)
        if count > self.max_share * planned and (count >= MIN_DAMAGED or not self.max_share):
            raise TerraFMError(
                f"{count} of {planned:,} tiles to pack are damaged, and `max_damaged_share` is {self.max_share}: "
                "repair or remove those that are named above, or raise it; what was packed so far is kept."
            )

    def write(self, root: Path, sources: Mapping[str, np.ndarray]) -> None:
        """Writes the list atomically; none where nothing is damaged.

        Rows of an earlier run stay as long as their source, by modality, is the same, or gone.
        """
        stays = pd.Series(
            [not file_bytes(root, row.file, get_modality(row.modality)) for row in self.before.itertuples()],
            self.before.index,
            bool,
        )
        for modality, present in sources.items():
            own = self.before["modality"] == modality
            stays[own] |= np.isin(self.known(modality), present)
        table = pd.concat([self.before[stays], pd.DataFrame(self.found, columns=_COLUMNS, dtype=str)])
        table = table.drop_duplicates(["modality", "source"]).sort_values(list(_COLUMNS))
        if table.empty:
            self.path.unlink(missing_ok=True)
            return
        write_text(self.path, table.to_csv(index=False))

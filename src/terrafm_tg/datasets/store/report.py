"""Results of packing: numbers by modality, in words for people, and the list of damaged tiles."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.filesize import decimal

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import write_text

from .plan import file_bytes

#: Numbers of each modality: tiles packed now, in the store before from the same source files, and damaged; bytes of
#: the shards.
COUNTS = ("tiles", "before", "damaged", "bytes")


@dataclass
class PackReport:
    """Numbers of a run of packing."""

    counts: pd.DataFrame  # A row per modality, with the columns :data:`COUNTS`
    tiles: int = 0  # in the store
    cells: int = 0  # of which they are

    def in_words(self, out: Path) -> str:
        """Returns a line per modality, and the sums."""
        lines = [
            f"{get_modality(name).title}: {row.tiles:,} tiles packed ({decimal(row.bytes)}), {row.before:,} before, "
            f"{row.damaged:,} damaged"
            for name, row in self.counts.iterrows()
        ]
        if self.counts["damaged"].any():
            lines.append(f"The damaged ones are listed in {out / DAMAGED}")
        return "\n".join([*lines, f"{self.tiles:,} tiles of {self.cells:,} cells in {out}"])


_log = logging.getLogger(__name__)

#: The list, below a store.
DAMAGED = "damaged.csv"
#: Damaged tiles from which on their share is judged, so that the first ones do not end a run.
MIN_DAMAGED = 10
_COLUMNS = ["modality", "tile", "file", "row_group", "reason", "source"]


class DamageList:
    """The damaged tiles of a store; each modality of a tile counts by itself.

    Args:
        path: The list of earlier runs, if there is one. What it names is not tried again until its source file is
            replaced by one of another size, or the list is moved away.
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
                self.before = pd.read_csv(path, dtype=str, keep_default_na=False)[_COLUMNS]
            except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
                raise TerraFMError(
                    f"{path} is no list of damaged tiles: move it away; they are tried again."
                ) from error

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
                "get the files that are named above again, or raise it; what was packed so far is kept."
            )

    def write(self, root: Path, sources: Mapping[str, np.ndarray]) -> None:
        """Writes the list atomically; none where nothing is damaged.

        Rows of an earlier run stay as long as their source, by modality, is the same, or gone.
        """
        present = {
            (name, f"{source:016x}")
            for name, own in sources.items()
            for source in np.intersect1d(own, self.known(name))
        }
        stays = [
            (row.modality, row.source) in present or not file_bytes(root, row.file, get_modality(row.modality))
            for row in self.before.itertuples()
        ]
        table = pd.concat([self.before[np.array(stays, bool)], pd.DataFrame(self.found, columns=_COLUMNS, dtype=str)])
        table = table.drop_duplicates(["modality", "source"]).sort_values(_COLUMNS)
        if len(table):
            write_text(self.path, table.to_csv(index=False))
        else:
            self.path.unlink(missing_ok=True)

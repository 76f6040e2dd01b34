"""What packing came to, in numbers and as a table for people."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from terrafm_tg.modalities import get_modality

from .damage import NAME as DAMAGED


@dataclass
class Tally:
    """What one modality came to.

    Args:
        tiles: Packed now.
        before: In the store before, from the same source files.
        damaged: That could not be packed now.
        bytes_in: Size of their bands at the source.
        bytes_out: Size of their shards.
    """

    tiles: int = 0
    before: int = 0
    damaged: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass
class PackReport:
    """What a store holds now, and what was done for it.

    Args:
        tiles: In the store.
        cells: Of which they are.
        modalities: By name.
        removed: Shards that nothing refers to any more.
        seconds: That it took.
    """

    tiles: int = 0
    cells: int = 0
    modalities: dict[str, Tally] = field(default_factory=dict)
    removed: int = 0
    seconds: float = 0.0

    def table(self) -> Table:
        """For people: a row per modality, and the sums."""
        table = Table(min_width=60, show_footer=len(self.modalities) > 1)
        rows = [(get_modality(name).title, tally) for name, tally in self.modalities.items()]
        total = Tally(*(sum(values) for values in zip(*(vars(t).values() for _, t in rows), strict=True)))
        columns = [_cells(tally) for _, tally in rows]
        table.add_column("tiles", footer="all", no_wrap=True)
        for title, footer in zip(_TITLES, _cells(total), strict=True):
            table.add_column(title, footer=footer, justify="right")
        for (title, _), cells in zip(rows, columns, strict=True):
            table.add_row(title, *cells)
        return table

    def in_words(self, out: Path) -> str:
        """What the table does not say."""
        damaged = sum(tally.damaged for tally in self.modalities.values())
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        text = (
            f"{self.tiles:,} tiles of {self.cells:,} cells in {out}, after {hours}:{minutes:02}:{seconds:02}."
        )
        if damaged:
            text += f" The {damaged:,} damaged ones are listed in {out / DAMAGED}."
        if self.removed:
            text += f" {self.removed:,} shards that nothing refers to any more were removed."
        return text


_TITLES = ("packed", "before", "damaged", "source", "store", "ratio")


def _cells(tally: Tally) -> list[str]:
    ratio = f"{tally.bytes_out / tally.bytes_in:.0%}" if tally.bytes_in else "-"
    counts = [f"{count:,}" for count in (tally.tiles, tally.before, tally.damaged)]
    return [*counts, _bytes(tally.bytes_in), _bytes(tally.bytes_out), ratio]


def _bytes(count: float) -> str:
    """Three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

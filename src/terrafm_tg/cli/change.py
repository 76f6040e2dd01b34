"""``terrafm change``: a map of the change between two dates."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from terrafm_tg.inference.use.change import UNIT, Change, change

from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Scores the change, and says how much there is."""
    print_change(change(**read_options(command, words, change)))


def print_change(found: Change) -> None:
    """Prints the scores' distribution, what changed, and the files."""
    console = Console(highlight=False)
    for sentence in found.said:
        console.print(escape(sentence), soft_wrap=True)
    low, middle, high = found.quantiles
    console.print(f"Median {UNIT} {middle:.4f}; 5 % are below {low:.4f}, 5 % above {high:.4f}", soft_wrap=True)
    if found.missing:
        console.print(f"Missing in one or both: {found.missing:.1%}")
    if found.threshold is not None:
        areas = f"{found.areas:,} area{'s' * (found.areas != 1)}"
        console.print(f"Changed, above {found.threshold:.4f}: {found.changed:.1%} in {areas}", soft_wrap=True)
    console.print("Written: " + escape(", ".join(map(str, found.files))), soft_wrap=True)

"""``terrafm classify``: a map of classes from a few labels."""

from argparse import ArgumentError
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from terrafm_tg.inference.use.classify import Classified, classify

from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Makes the map, and says how good it is."""
    options = read_options(command, words, classify, skip={"labels"}, labels=_LABELS)
    if options["labels"] is None:
        raise ArgumentError(None, "`--labels` is needed: a file of points or polygons with a class.")
    print_classified(classify(**options))


_LABELS = (
    str | None,
    None,
    "Points or polygons with a class: GeoJSON, GeoParquet or CSV (columns lon, lat), in any CRS.",
)


def print_classified(found: Classified) -> None:
    """Prints the classes, the score with what could not be tested, and the files."""
    console, score = Console(highlight=False), found.score
    for sentence in found.said:
        console.print(escape(sentence), soft_wrap=True)
    table = Table("class", *(Column(name, justify="right") for name in ("labels", "tested places", "of the map")))
    places = dict(zip(score.tested, score.places, strict=True))
    for name, labels, share in zip(found.classes, found.labels, found.shares, strict=True):
        table.add_row(escape(name), f"{labels:,}", f"{places.get(name, 0):,}", f"{share:.1%}")
    console.print(table)
    if found.missing:
        console.print(f"Missing: {found.missing:.1%}")
    folds = f"{score.folds} folds, labels within {score.buffer:,.0f} m of a tested one left out"
    console.print(f"Cross-validation in space, {folds}:", soft_wrap=True)
    console.print(score.words, soft_wrap=True)
    for sentence in score.said:
        console.print(escape(sentence), soft_wrap=True)
    if score.confusion:
        matrix = Table("true \\ predicted", *(Column(escape(name), justify="right") for name in found.classes))
        for name, row in zip(found.classes, score.confusion, strict=True):
            matrix.add_row(escape(name), *(f"{value:g}" if value == round(value) else f"{value:.1f}" for value in row))
        console.print(matrix)
    console.print("Written: " + escape(", ".join(map(str, found.files))), soft_wrap=True)

"""``terrafm map``: a fine-tuned head over scenes, to a map of classes or numbers, polygons and a picture."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.inference.map import MapResult, make_maps

from .options import READING, pop_search, read_options

_OPTIONS = {name: READING[name] for name in ("folders", "bands", "unit", "scale", "offset", "nodata")}
#: Lines of the table of classes.
_LINES = 40


def run(command: str, words: Sequence[str]) -> None:
    """Makes the maps, and prints what was written and each class's share."""
    options = read_options(command, words, make_maps, StacSearch, skip={"settings", "search"}, **_OPTIONS)
    begin = time.perf_counter()
    found = make_maps(search=pop_search(options), **options)
    console = Console(highlight=False, soft_wrap=True)
    for result in found.maps:
        _print(console, result)
    area, seconds, spent = found.spent.pixels / 1e4, time.perf_counter() - begin, found.spent
    console.print(
        f"{area:,.1f} km² in {seconds:,.1f} s ({area / seconds:,.2f} km²/s); most time went into {spent.bound} "
        f"(model {spent.computing:,.1f} s, waiting for pixels {spent.reading:,.1f} s, for the disk "
        f"{spent.writing:,.1f} s)"
    )


def _print(console: Console, result: MapResult) -> None:
    """Prints one map's classes and files."""
    if result.names:
        console.print(result.name, style="bold", markup=False)
        table = Table("class", "share", "km²", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        whole = sum(result.area.values()) or 1.0
        order = sorted((n for n in result.area if result.area[n]), key=lambda n: -result.area[n])
        for number in order[:_LINES]:
            area = result.area[number]
            table.add_row(escape(result.names[number]), f"{area / whole:.1%}", f"{area:,.2f}")
        if rest := order[_LINES:]:
            area = sum(result.area[number] for number in rest)
            table.add_row(f"{len(rest)} more", f"{area / whole:.1%}", f"{area:,.2f}")
        console.print(table)
        if result.missing:
            console.print(f"{result.missing:,.2f} km² without a value")
    for path in result.files:
        more = f" ({result.polygons:,} polygons)" if path == result.vector else ""
        console.print(f"{path}{more}", markup=False)

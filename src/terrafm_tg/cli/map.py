"""``terrafm map``: a fine-tuned head over scenes, to a map of classes or numbers, polygons and a picture."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from terrafm_tg.datasets.scenes.remote import reading_with
from terrafm_tg.datasets.scenes.stac.catalog import sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.inference.map import MapResult, make_maps
from terrafm_tg.utils.remote import RemoteReader

from .options import READING, pop_search, read_options

_OWN = ("max_days", "join", "small_images")
_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    **{name: option for name, option in READING.items() if name not in _OWN},
    "max_gb": (float, 100.0, "The most that may be fetched of a STAC catalog's images, in GB."),
}
#: Lines of the table of classes.
_LINES = 40


def run(command: str, words: Sequence[str]) -> None:
    """Makes the maps, and prints what was written and each class's share."""
    skip = {"settings", "search", "progress"}
    options = read_options(command, words, make_maps, StacSearch, skip=skip, **_OPTIONS)
    with reading_with(RemoteReader(budget=options.pop("max_gb") * 1e9, sign=sign_blob)):
        results = make_maps(search=pop_search(options), progress=True, **options)
    console = Console()
    for result in results:
        _print(console, result)


def _print(console: Console, result: MapResult) -> None:
    """Prints one map's classes and files."""
    if result.names:
        console.print(result.name, style="bold", highlight=False, soft_wrap=True, markup=False)
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
            console.print(f"{result.missing:,.2f} km² without a value", highlight=False)
    for path in result.files:
        more = f" ({result.polygons:,} polygons)" if path == result.vector else ""
        console.print(f"{path}{more}", highlight=False, soft_wrap=True, markup=False)
    spent = result.spent
    seconds = spent.reading + spent.computing + spent.writing
    speed = spent.pixels * 1e-4 / max(seconds, 1e-9)
    console.print(
        f"{spent.pixels * 1e-4:,.1f} km² in {seconds:,.0f} s, {speed:,.2f} km²/s; bounded by {spent.bound}",
        highlight=False,
    )

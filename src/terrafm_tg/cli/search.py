"""``terrafm search``: the places whose embeddings are nearest to those at some points."""

import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from terrafm_tg.inference.use.search import search

from .options import read_options

_POINT = re.compile(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*,\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
_AT = (
    list[tuple[float, float]] | str | None,
    None,
    "Points as longitude,latitude in degrees, one or several (--at 13.4,52.5 13.6,52.4); or a file of points or "
    "polygons (GeoJSON, GeoParquet, CSV).",
)


def run(command: str, words: Sequence[str]) -> None:
    """Searches, and prints a table of the places."""
    options = read_options(command, list(_points_as_list(words)), search, skip={"at"}, at=_AT)
    if options["at"] is None:
        raise ArgumentError(None, "`--at` is needed: a point as longitude,latitude, such as `--at 13.4,52.5`.")
    found = search(**options)
    console = Console(highlight=False)
    for number, query in enumerate(found.attrs["queries"], 1):
        console.print(f"Query {number}, at {escape(query)}", soft_wrap=True)
    if "recall" in found.attrs:
        made, path = "made" if found.attrs["made"] else "used", escape(found.attrs["index"])
        console.print(
            f"Index {made}: {path}; it finds {found.attrs['recall']:.1%} of the true 10 nearest.", soft_wrap=True
        )
    several = found["query"].nunique() > 1
    right = ("rank", "lon", "lat", "similarity")
    table = Table(*(["query"] if several else []), *(Column(x, justify="right") for x in right), "date", "place")
    for row in found.itertuples():
        place = f"{row.file}, {row.place}"
        cells = [f"{row.rank}", f"{row.lon:.5f}", f"{row.lat:.5f}", f"{row.similarity:.4f}", row.date, escape(place)]
        table.add_row(*([str(row.query)] if several else []), *cells)
    console.print(table)
    if options["out"]:
        console.print(f"{len(found):,} places in {escape(str(options['out']))}", soft_wrap=True)


def _points_as_list(words: Iterable[str]) -> Iterable[str]:
    """Joins the points behind ``--at`` to one list: a negative longitude would be taken for an option."""
    points, behind = list[str](), False
    for word in words:
        option, _, value = word.partition("=")
        found = _POINT.fullmatch(value if option == "--at" else word) if behind or option == "--at" else None
        if found:
            points.append(f"[{found[1]},{found[2]}]")
            behind = True
        elif word == "--at":
            behind = True
        else:
            if behind and not points:  # a file
                yield "--at"
            behind = False
            yield word
    if points:
        yield f"--at=[{','.join(points)}]"

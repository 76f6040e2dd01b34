"""``terrafm index``: the tile index of a dataset, and a picture of what it holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from terrafm_tg.datasets import build_index
from terrafm_tg.datasets.index.build import index_summary, region_names
from terrafm_tg.datasets.tiles.index_file import NAME
from terrafm_tg.evaluation.index_figure import write_index_figure
from terrafm_tg.simulation.dataset import MARKER

from .options import READING, read_options

_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "tile_size": (
        int | None,
        None,
        "Edge of a tile in 10 m pixels, as the datamodule will have it; half a cell, or 534, by default.",
    ),
    "remote": (
        bool | str,
        False,
        "Also index Major-TOM's cells that are not on disk, to be read from their URLs: true for the published source, "
        "or the address of another.",
    ),
    **READING,
    "figure": (bool, True, "Draw a map and the shares of classes, zones and regions beside it (index.png)."),
}


def run(command: str, words: Sequence[str]) -> None:
    """Builds an index."""
    write_index_of(**read_options(command, words, build_index, skip={"settings"}, **_OPTIONS))


def write_index_of(root: str, out: str | None = None, figure: bool = True, **options: Any) -> None:
    """Builds the index of a dataset, prints what it holds, and draws it.

    Args:
        root: Folder of the dataset.
        out: The file to write, instead of index.parquet below the root.
        figure: Draw it, too.
        options: Further arguments of :func:`~terrafm_tg.datasets.build_index`; not every dataset has those of
            ``_OPTIONS``, so that they are passed on where they are given.
    """
    path = Path(root) / NAME if out is None else Path(out)
    given = {name: x for name, x in options.items() if name not in _OPTIONS or not (x is None or x is False)}
    rows = build_index(root, out=path, **given)
    console = Console()
    console.print(index_summary(rows))
    console.print(f"{len(rows):,} tiles in {path}")
    if figure:
        earth = not (Path(root) / MARKER).is_file()  # of a simulated world
        write_index_figure(rows, region_names(path), path.with_suffix(".png"), earth)
        console.print(f"Map and shares in {path.with_suffix('.png')}")

"""``terrafm index``: the tile index of a dataset, and a picture of what it holds."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from terrafm_tg.datasets import build_index
from terrafm_tg.datasets.index.build import index_summary, region_names
from terrafm_tg.datasets.index.layers import SIMULATED
from terrafm_tg.datasets.scenes.remote import reading_with
from terrafm_tg.datasets.scenes.stac.catalog import ITEMS, open_stac, sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.datasets.tiles.index_file import NAME
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.index_figure import write_index_figure
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.remote import RemoteReader

from .inspect import print_table
from .options import READING, pop_search, read_options

_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "tile_size": (
        int | None,
        None,
        "Edge of a tile in 10 m pixels, as the datamodule will have it; half a cell, or 534, by default.",
    ),
    "remote": (
        bool | str | list[str],
        False,
        "Also index what is not on disk, to be read from its URL. Major-TOM's cells: true for the published source, or "
        "the address of another. Items that a search left: the addresses below which their images lie.",
    ),
    **READING,
    "figure": (bool, True, "Draw a map and the shares of classes, zones and regions beside it (index.png)."),
}


_CATALOG: dict[str, tuple[Any, Any, str]] = {
    "stac": (
        str | None,
        None,
        "STAC item, item collection, catalog or API, by path, address or name (planetary-computer, earth-search): what "
        "is found is kept in stac_items.json below the root, and its images are read where they lie.",
    ),
    "max_gb": (float | None, None, "The most that may be fetched for the index, in GB."),
}


def run(command: str, words: Sequence[str]) -> None:
    """Builds an index, of what a STAC search finds where one is given."""
    options = read_options(command, words, build_index, StacSearch, skip={"settings", "watch"}, **_OPTIONS, **_CATALOG)
    stac, max_gb, search = options.pop("stac"), options.pop("max_gb"), pop_search(options)
    if stac is None and search is not None:
        raise TerraFMError("A box, dates and the like choose from a STAC catalog: name it with `stac`.")
    budget = math.inf if max_gb is None else max_gb * 1e9
    with reading_with(RemoteReader(budget=budget, sign=sign_blob)):
        if stac is not None:
            options["remote"] = _keep_items(stac, search, Path(options["root"]))
        write_index_of(**options)
    if stac is not None and options["remote"]:
        sources = ",".join(options["remote"])
        settings = f"--data.root={options['root']} --data.remote=[{sources}]"
        settings += f" --data.tile_size={options['tile_size']}" if options["tile_size"] else ""
        print(f"Next: terrafm fit --config=pretrain --config=data/folder {settings}")


def _keep_items(stac: str, search: StacSearch | None, root: Path) -> list[str]:
    """Keeps what a search finds in the folder to be indexed; returns the addresses below which its images lie."""
    found = open_stac(stac, search)
    found.save_in(root)
    counts = Counter(scene.modality for scene in found.scenes)
    held = ", ".join(f"{count:,} of {MODALITIES[name].title}" for name, count in sorted(counts.items()))
    print(f"{len(found.scenes):,} scenes ({held}); their items are in {root / ITEMS}.")
    for sentence in found.said:
        print(sentence)
    if found.refused:
        print(f"{len(found.refused):,} items are left out, first {': '.join(found.refused[0])}")
    return list(found.sources)


def write_index_of(root: str, out: str | None = None, figure: bool = True, **options: Any) -> None:
    """Builds the index of a dataset, prints what was understood and what it holds, and draws it.

    Args:
        root: Folder of the dataset.
        out: The file to write, instead of index.parquet below the root.
        figure: Draw it, too.
        options: Further arguments of :func:`~terrafm_tg.datasets.build_index`; not every dataset has those of
            ``_OPTIONS``, so that they are passed on where they are given.
    """
    path = Path(root) / NAME if out is None else Path(out)
    given = {name: x for name, x in options.items() if name not in _OPTIONS or not (x is None or x is False)}
    rows = build_index(root, out=path, watch=print_table, **given)
    console = Console()
    console.print(index_summary(rows))
    console.print(f"{len(rows):,} tiles in {path}")
    if figure:
        earth = not (Path(root) / SIMULATED).is_file()
        write_index_figure(rows, region_names(path), path.with_suffix(".png"), earth)
        console.print(f"Map and shares in {path.with_suffix('.png')}")

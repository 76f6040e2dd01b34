"""``terrafm grid``: own scenes into Major-TOM's cells."""

from collections.abc import Sequence

from rich.console import Console

from terrafm_tg.datasets.majortom.gridding import grid_scenes, gridding_summary
from terrafm_tg.datasets.scenes.stac.search import StacSearch

from .options import READING, pop_search, read_options


def run(command: str, words: Sequence[str]) -> None:
    """Cuts the scenes, says what became of each, and names the next command."""
    settings = {name: READING[name] for name in ("folders", "bands", "unit", "scale", "offset", "nodata")}
    options = read_options(command, words, grid_scenes, StacSearch, skip={"search", *settings}, **settings)
    search = pop_search(options)
    Console().print(gridding_summary(grid_scenes(search=search, **options)))
    print(f"Next: terrafm index {options['root']}")

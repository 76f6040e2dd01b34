"""``terrafm embed``: scenes, searches and archives into maps and tables of embeddings."""

from collections.abc import Sequence

from rich.console import Console

from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.inference.embed import embed

from .options import READING, pop_search, read_options

_SETTINGS = {name: READING[name] for name in ("folders", "bands", "unit", "scale", "offset", "nodata")}


def run(command: str, words: Sequence[str]) -> None:
    """Embeds, and says what was written, how fast, and what bounded it."""
    options = read_options(command, words, embed, StacSearch, skip={"search", "settings"}, **_SETTINGS)
    options["pca"] = _number(options["pca"])
    found = embed(search=pop_search(options), **options)
    console = Console(highlight=False, soft_wrap=True)
    for path in found.paths[:10]:
        console.print(path)
    if len(found.paths) > 10:
        console.print(f"and {len(found.paths) - 10:,} more")
    if found.area:
        spent = found.spent
        console.print(
            f"{found.images:,} image{'s' * (found.images != 1)}, {found.area:,.1f} km² in {found.seconds:,.1f} s "
            f"({found.area / found.seconds:,.2f} km²/s); most time went into {spent.bound} "
            f"(model {spent.computing:,.1f} s, waiting for pixels {spent.reading:,.1f} s, for the disk "
            f"{spent.writing:,.1f} s)"
        )
    console.print(f"Next: terrafm view {options['out']}")


def _number(pca: object) -> object:
    return int(pca) if isinstance(pca, str) and pca.isdigit() else pca

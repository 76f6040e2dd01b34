"""``terrafm pack``: tiles into a store that feeds GPUs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from terrafm_tg.datasets.source import open_source
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.tiles.index_file import NAME

from .options import ToolParser

#: Settings of the dataset to pack, for which its class has a default.
_SETTINGS = {
    "remote": (bool | None, "Read Major-TOM's cells that are not on disk from their URLs."),
    "radar_unit": (str | None, "Unit of radar in a folder of GeoTIFFs: dB (the default) or linear."),
    "optical_scale": (
        float | None,
        "Digital numbers per stored unit in a folder of GeoTIFFs: 10000 for reflectance; 1 by default.",
    ),
}


def run(command: str, words: Sequence[str]) -> None:
    """Packs, says what became of the tiles, and names the next command; the same command again resumes or appends."""
    parser = ToolParser(command)
    parser.add_function(open_source, skip={"modalities", "settings"})
    parser.add_function(pack, skip={"tiles"})
    parser.add_option("modalities", list[str] | str | None, None, "Any of s1rtc, s2l1c, s2l2a; all by default.")
    for name, (kind, text) in _SETTINGS.items():
        parser.add_option(name, kind, None, text)
    options = parser.parse(words)
    root, modalities = Path(options.pop("root")), options.pop("modalities")
    settings = {name: options.pop(name) or None for name in _SETTINGS}
    tiles = open_source(
        root, [modalities] if isinstance(modalities, str) else modalities, options.pop("tile_size"), **settings
    )
    report = pack(tiles, **options)
    console = Console()
    console.print(report.in_words(Path(options["out"])), soft_wrap=True)
    if not (root / NAME).is_file():
        console.print(f"{root} has no {NAME}, so land cover is unknown: run `terrafm index {root}`, then this again.")
    console.print(
        f"Next: terrafm fit --config pretrain --config data/packed --data.root {options['out']}", soft_wrap=True
    )

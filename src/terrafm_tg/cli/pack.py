"""``terrafm pack``: tiles into a store that feeds GPUs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from terrafm_tg.datasets.source import open_source
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.tiles.index_file import NAME

from .options import MASK_CLOUDS, READING, read_options

#: Settings of the dataset to pack, for which its class has a default.
DATASET_SETTINGS: dict[str, tuple[Any, object, str]] = {
    "remote": (
        bool | str | list[str] | None,
        None,
        "Read what is not on disk: Major-TOM's cells (true for the published source, or the address of another), or "
        "the images of a STAC search (the addresses that `terrafm index --stac` says).",
    ),
    **READING,
    "mask_clouds": MASK_CLOUDS,
}
#: The option of modalities.
MODALITY_NAMES = (list[str] | str | None, None, "Any of s1rtc, s2l1c, s2l2a; all by default.")


def run(command: str, words: Sequence[str]) -> None:
    """Packs, says what became of the tiles, and names the next command; the same command again resumes or appends."""
    skipped = {"modalities", "settings", "tiles"}
    more = DATASET_SETTINGS | {"modalities": MODALITY_NAMES}
    options = read_options(command, words, open_source, pack, skip=skipped, **more)
    root, modalities = Path(options.pop("root")), options.pop("modalities")
    settings = {name: None if (x := options.pop(name)) is False else x for name in DATASET_SETTINGS}
    tiles = open_source(
        root, [modalities] if isinstance(modalities, str) else modalities, options.pop("tile_size"), **settings
    )
    report = pack(tiles, **options)
    console = Console()
    console.print(report.in_words(options["out"]), soft_wrap=True)
    if not (root / NAME).is_file():
        console.print(f"{root} has no {NAME}, so land cover is unknown: run `terrafm index {root}`, then this again.")
    if report.merged:
        console.print(
            f"Next: terrafm fit --config pretrain --config data/packed --data.root {options['out']}", soft_wrap=True
        )

"""``terrafm stats``: mean and standard deviation of each band of an archive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from terrafm_tg.datasets.index.statistics import STATISTICS, build_statistics
from terrafm_tg.modalities import MODALITIES

from .options import AMBIGUOUS_OFFSET, read_options
from .pack import DATASET_SETTINGS, MODALITY_NAMES


def run(command: str, words: Sequence[str]) -> None:
    """Computes statistics, and shows them beside the published ones."""
    more = DATASET_SETTINGS | {"modalities": MODALITY_NAMES, "ambiguous_offset": AMBIGUOUS_OFFSET}
    options = read_options(command, words, build_statistics, skip={"settings"}, **more)
    settings = {name: value for name in more if (value := options.pop(name)) is not None}
    if isinstance(settings.get("modalities"), str):
        settings["modalities"] = [settings["modalities"]]
    found = build_statistics(**options, **settings)
    out = options["out"] or Path(options["root"]) / STATISTICS
    console = Console()
    console.print(statistics_table(found))
    damaged = f", {found['damaged']:,} images could not be read" if found["damaged"] else ""
    console.print(f"Of {found['tiles']:,} tiles{damaged}; in {out}", soft_wrap=True)
    console.print(f"Next: terrafm fit --config pretrain --model.statistics {out}", soft_wrap=True)


def statistics_table(found: dict[str, Any]) -> Table:
    """Draws what :func:`build_statistics` found: a line per band, with the published numbers behind."""
    numbers = ("mean", "std", "published mean", "published std", "pixels")
    table = Table(Column("", no_wrap=True), "band", *(Column(name, justify="right") for name in numbers))
    for m in (m for name, m in MODALITIES.items() if name in found):
        own = found[m.name]
        for i, band in enumerate(m.bands):
            known = (f"{own['mean'][i]:,.2f}", f"{own['std'][i]:,.2f}") if own["low"][i] is not None else ("", "")
            published = f"{m.mean[i]:,.2f}", f"{m.std[i]:,.2f}"
            title = f"{m.title}, {m.unit}" if i == 0 else ""
            table.add_row(title, band, *known, *published, f"{own['pixels'][i]:,}")
    return table

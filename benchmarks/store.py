"""``python -m benchmarks.store``: packed tiles beside their Major-TOM source, in one run.

The same tiles are read in turn from both, round after round, and ratios are taken within a round. What both give is
compared first: a store holds the pixels of its source.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from terrafm_tg.datasets import MajorTOM, PackedTiles
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError
from terrafm_tg.simulation.dataset import simulate
from terrafm_tg.utils.progress import with_bar

from . import command


class StoreSpeed(NamedTuple):
    """Time and bytes of reading from the source and from the store.

    Args:
        tiles: Read per round.
        source: Milliseconds of processor time per tile from Major-TOM's files.
        store: The same from the packed store.
        ratio: Median over rounds of source / store.
        size_ratio: Bytes of the source's files in units of the store's.
    """

    tiles: int
    source: float
    store: float
    ratio: float
    size_ratio: float


def store_speed(root: Path, out: Path, tiles: int = 48, rounds: int = 3) -> StoreSpeed:
    """Packs a Major-TOM root and reads the same tiles from it and from the store.

    Args:
        root: The Major-TOM root.
        out: Folder of the store, absent or empty.
        tiles: Tiles per round, from the first on; all where there are fewer.
        rounds: Rounds; one more, which does not count, warms up.

    Raises:
        TerraFMError: If a number is not positive, or the store's pixels are not the source's.
    """
    if min(tiles, rounds) < 1:
        raise TerraFMError(f"{tiles} tiles and {rounds} rounds measure nothing: give 1 or more of each.")
    size = MajorTOM.find_tile_size(root)
    source = MajorTOM(root, native=True, harmonize=False, tile_size=size)
    report = pack(source, out, workers=0, progress=False)
    store = PackedTiles(out, native=True, harmonize=False)
    count = min(tiles, len(source), len(store))
    for row in range(count):
        ours, theirs = store[store.tile_slice(row)], source[source.tile_slice(row)]
        if any(not np.array_equal(ours[key], theirs[key], equal_nan=True) for key in theirs if "image" in key):
            raise TerraFMError(f"Tile {row} of the store is not that of the source: not a comparison.")
    times: dict[str, list[float]] = {"source": [], "store": []}
    for number in with_bar(range(rounds + 1), "Reading tiles"):
        for name, data in (("source", source), ("store", store)):
            start = time.process_time()
            for row in range(count):
                data[data.tile_slice(row)]
            if number:
                times[name].append(1000 * (time.process_time() - start) / count)
    size = sum(part.stat().st_size for part in root.glob("Core-*/images/*"))
    ratio = statistics.median(a / b for a, b in zip(times["source"], times["store"], strict=True))
    return StoreSpeed(
        count,
        statistics.median(times["source"]),
        statistics.median(times["store"]),
        ratio,
        size / report.counts["bytes"].sum(),
    )


def measure(root: Path | None = None, tiles: int = 48, rounds: int = 3) -> None:
    """Measures packed tiles beside their source.

    Args:
        root: A Major-TOM root; a simulated world of 12 cells in full size where None.
        tiles: Tiles per round.
        rounds: Rounds of which the median counts.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="terrafm-store-") as folder:
        if root is None:
            root = simulate(Path(folder) / "world", cells=12, workers=0)
        found = store_speed(Path(root), Path(folder) / "store", tiles, rounds)
    table = Table(title=f"{found.tiles} tiles, read in turn")
    for column in ("", "ms CPU/tile", "source / this"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("Major-TOM's files", f"{found.source:.2f}", "1.00")
    table.add_row("packed store", f"{found.store:.2f}", f"{found.ratio:.2f}")
    table.caption = f"The source's files have {found.size_ratio:.2f} times the bytes of the store's"
    Console().print(table)


if __name__ == "__main__":
    command(measure)

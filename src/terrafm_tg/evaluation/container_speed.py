"""``terrafm profile store``: how fast tiles come out of containers and codecs, beside the source itself.

Process CPU time counts, which other programs disturb less than wall time; all are read in turn, several rounds long.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from terrafm_tg.datasets.base import TileDataset
from terrafm_tg.datasets.major_tom import MajorTOM
from terrafm_tg.datasets.simulated import simulate
from terrafm_tg.modalities import MODALITIES, S1RTC, Modality
from terrafm_tg.radar import quantise

from .containers.codecs import codec_table
from .containers.kinds import KINDS, Container, Groups, Shards
from .containers.server import Served, serve

Tiles = dict[str, list[Groups]]


@dataclass
class Result:
    """One row of the table.

    Args:
        title: Of the container.
        size: Megabytes per tile, all modalities.
        random: Tiles per second of CPU time in random order.
        sequential: The same in the order of the file.
        http: The same in random order over HTTP; NaN where it cannot.
        requests: HTTP requests per tile.
        sent: Megabytes per tile over HTTP.
    """

    title: str
    size: float
    random: float
    sequential: float
    http: float = float("nan")
    requests: float = float("nan")
    sent: float = float("nan")


def container_speed(tiles: TileDataset, count: int = 32, rounds: int = 5) -> tuple[list[Result], Tiles]:
    """Read the same tiles from each container that is installed.

    Args:
        tiles: What they come from, read too in random order: the first result.
        count: Tiles to take.
        rounds: Passes over them in each order; the median counts.

    Returns:
        A result per container, and the tiles' native groups by modality.
    """
    rows = _rows(tiles, count)
    held: Tiles = {m.name: [dict(tiles._read(int(row), m) or {}) for row in rows] for m in tiles.modalities}
    half = held | {"s1rtc": [{10: quantise(groups[10])} for groups in held.get("s1rtc", [])]}
    source = Result("Major-TOM Parquet, rasterio", _source_size(tiles, rows), *[float("nan")] * 2)
    with tempfile.TemporaryDirectory(prefix="terrafm-store-") as folder, serve(Path(folder)) as served:
        plans: list[tuple[Container, Tiles, str]] = []
        for kind in (kind for kind in KINDS if find_spec(kind.needs)):
            plans.append((kind(Path(folder) / kind.__name__), held, ""))
        if "s1rtc" in held:
            plans.append((Shards(Path(folder) / "half"), half, ", int16 radar"))
        results = [
            _Timing(container, chosen, title).run(rounds, served) for container, chosen, title in plans
        ]
    source.random = _rate(
        lambda row: [tiles._read(int(rows[row]), m) for m in tiles.modalities], len(rows), 1
    )
    return [source, *results], half | {"s1rtc float32": held.get("s1rtc", [])}


class _Timing:
    """One container, written and read."""

    def __init__(self, container: Container, tiles: Tiles, suffix: str) -> None:
        self.container, self.tiles, self.suffix = container, tiles, suffix
        self.modalities = [MODALITIES[name] for name, held in tiles.items() if held]
        self.count = len(next(iter(tiles.values())))

    def run(self, rounds: int, served: Served) -> Result:
        folder = self.container.folder
        folder.mkdir()
        for modality in self.modalities:
            self.container.write(modality, self.tiles[modality.name])
        size = sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".places"
        )
        self.container.open(str(folder))
        self._check()
        random = _rate(self._read, self.count, rounds, shuffled=True)
        result = Result(
            self.container.title + self.suffix, size / self.count / 1e6, random,
            _rate(self._read, self.count, rounds),
        )  # fmt: skip
        if self.container.ranges:
            before = served.requests.value, served.bytes.value
            self.container.open(f"{served.url}/{folder.name}")
            result.http = _rate(self._read, self.count, 1, shuffled=True)
            result.requests = (served.requests.value - before[0]) / self.count
            result.sent = (served.bytes.value - before[1]) / self.count / 1e6
        shutil.rmtree(folder)
        return result

    def _read(self, number: int) -> list[Groups]:
        return [self.container.read(modality, number) for modality in self.modalities]

    def _check(self) -> None:
        """What comes out is what went in."""
        last = self.count - 1
        for modality, groups in zip(self.modalities, self._read(last), strict=True):
            for resolution, pixels in self.tiles[modality.name][last].items():
                np.testing.assert_array_equal(groups[resolution], pixels)


def _rate(read: Callable[[int], object], count: int, rounds: int, shuffled: bool = False) -> float:
    """Tiles per second of this process's CPU time, the median of some passes."""
    rates = []
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(count) if shuffled else np.arange(count)
        start = time.process_time()
        for tile in order.tolist():
            read(tile)
        rates.append(count / (time.process_time() - start))
    return statistics.median(rates)


def _rows(tiles: TileDataset, count: int) -> np.ndarray:
    """Tiles that have all modalities."""
    has = tiles.table[[f"has_{m.name}" for m in tiles.modalities]].to_numpy(bool).all(axis=1)
    return np.flatnonzero(has)[:count]


def _source_size(tiles: TileDataset, rows: np.ndarray) -> float:
    """Megabytes per tile of the bands' columns in the source's Parquet files; NaN for another source."""
    import pyarrow.parquet as pq

    total, table = 0, tiles.table.iloc[rows]
    for modality in tiles.modalities:
        if f"part_{modality.name}" not in table:
            return float("nan")
        bands = {band.lower() for band in modality.bands}
        places = zip(table[f"part_{modality.name}"], table[f"group_{modality.name}"], strict=True)
        for part, group in places:
            held = pq.read_metadata(Path(tiles.root) / part)
            columns = [i for i, column in enumerate(held.schema.names) if column.lower() in bands]
            total += sum(held.row_group(group).column(i).total_compressed_size for i in columns) / 4
    return total / len(rows) / 1e6


def profile_store(root: Path | None = None, tiles: int = 16, rounds: int = 3) -> None:
    """Measure packed tiles against their source, and against other containers and codecs, on one core.

    Containers whose package is not installed (zarr, litdata, blosc2) are left out, and named.

    Args:
        root: A Major-TOM root with tiles of all its modalities; a simulated world of full size where not given.
        tiles: How many to read.
        rounds: Passes over them, of which the median counts.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory(prefix="terrafm-world-") as folder:
        if root is None:
            root = Path(folder) / "world"
            simulate(root, cells=-(-tiles // 4) + 2, workers=0)
        size = MajorTOM.find_tile_size(root)
        dataset = MajorTOM(root, native=True, tile_size=size, harmonise=False)
        results, held = container_speed(dataset, tiles, rounds)
    console = Console()
    if not console.is_terminal:  # a file has no width to fit into
        console = Console(width=150)
    console.print(_table(results, held))
    console.print(codec_table(_by_modality(held)))


def _by_modality(held: Tiles) -> list[tuple[str, Modality, Sequence[Groups]]]:
    return [(name, MODALITIES.get(name, S1RTC), groups) for name, groups in held.items() if groups]


def _table(results: list[Result], held: Tiles) -> Table:
    count = len(next(iter(held.values())))
    table = Table(
        title=f"{count} tiles, one core, warm cache, tiles per second of CPU time", caption_justify="left"
    )
    table.add_column("container")
    for name in ("MB/tile", "random", "x source", "in order", "HTTP", "requests", "MB sent"):
        table.add_column(name, justify="right")
    for row in results:
        numbers = (row.random, row.random / results[0].random, row.sequential, row.http)
        text = ["" if np.isnan(number) else f"{number:.{1 if number < 30 else 0}f}" for number in numbers]
        more = ["" if np.isnan(number) else f"{number:.2f}" for number in (row.requests, row.sent)]
        table.add_row(row.title, f"{row.size:.2f}", *text, *more)
    missing = [kind.title for kind in KINDS if not find_spec(kind.needs)]
    names = [name for name in ("pyarrow", "numcodecs", "zarr", "litdata") if find_spec(name)]
    table.caption = ", ".join(f"{name} {version(name)}" for name in names)
    if missing:
        table.caption += f". Not measured, because its package is not installed: {', '.join(missing)}"
    return table

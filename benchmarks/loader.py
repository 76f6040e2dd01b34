"""``python -m benchmarks.loader``: tiles per second from one core's decoding to what the training process gets.

All ways run in turn, round after round, over the same draws, and ratios are taken within a round. Beside the wall time
stands the processor time of all processes together: where other programs use the machine, it tells more.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from terrafm_tg.datamodules import DamageLog, FaultTolerant, TileDataLoader, TileDataModule
from terrafm_tg.datamodules.loading.loader import largest_sample
from terrafm_tg.datamodules.loading.ring import AVAILABLE, Ring, SlotWriter
from terrafm_tg.datasets import PackedTiles
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.progress import with_bar

from . import command

#: Ways whose batches come through worker processes: title, workers, ring.
LOADERS = (
    ("DataLoader, no worker", 0, False),
    ("DataLoader, 1 worker", 1, False),
    ("DataLoader, 2 workers", 2, False),
    ("ring, 1 worker", 1, True),
    ("ring, 2 workers", 2, True),
)
#: What the others are compared with: a worker's task, without a way to travel.
ONE_CORE = "decoding alone, one core"


class Rate(NamedTuple):
    """How one way does, in the median of the rounds.

    Args:
        title: Of the way.
        wall: Tiles per second.
        processor: Milliseconds of processor time per tile, of all processes together.
        wall_ratio: ``wall`` in units of that of the first way, one core's decoding.
        processor_share: Processor time of the first way in units of ``processor``: the share of the cores that
            decodes while all are busy.
    """

    title: str
    wall: float
    processor: float
    wall_ratio: float
    processor_share: float


def loader_speed(tiles: TileDataset, batch_size: int = 16, batches: int = 16, rounds: int = 3) -> list[Rate]:
    """Measures all ways.

    Args:
        tiles: With ``native=True``.
        batch_size: Tiles per batch.
        batches: Batches per round and way.
        rounds: Rounds; one more, which does not count, warms up caches and workers.

    Returns:
        A rate per way, the first that of one core's decoding.

    Raises:
        TerraFMError: If the numbers are not positive, or the tiles cannot be batched.
    """
    if min(batch_size, batches, rounds) < 1:
        raise TerraFMError(
            f"A batch of {batch_size}, {batches} batches and {rounds} rounds measure nothing: give 1 or more of each."
        )
    count = batch_size * batches
    sampler = LandCoverSampler(tiles, length=count, power=0, ocean_keep=1, rank=0, world_size=1)
    ways: dict[str, Callable[[], object]] = {ONE_CORE: _decoding(tiles, sampler, batch_size)}
    for title, workers, ring in LOADERS if AVAILABLE else LOADERS[:3]:
        loader = TileDataLoader(
            FaultTolerant(tiles, sampler),
            sampler=sampler,
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            ring=ring,
        )
        ways[title] = partial(deque, loader, maxlen=0)
    return _in_turn(ways, sampler, rounds, count)


def remote_speed(
    local: Path, url: str, folder: Path, workers: int = 8, batch_size: int = 16, batches: int = 16, rounds: int = 3
) -> list[Rate]:
    """Measures the same draws from a store on disk and from its copy on a server, its disk cache empty and full.

    Args:
        local: The store on disk.
        url: Its copy.
        folder: For the cache, absent or empty.
        workers: Processes that read, of each way.
        batch_size: Tiles per batch.
        batches: Batches per round and way.
        rounds: Rounds; one more, which does not count, starts the workers.

    Returns:
        The rates, the first that of the disk.
    """
    ways: dict[str, Callable[[], object]] = {}
    tiles = PackedTiles(local, native=True)
    sampler = LandCoverSampler(tiles, length=batch_size * batches, power=0, ocean_keep=1, rank=0, world_size=1)
    for title, store in {"disk": tiles, "server": PackedTiles(url, native=True, disk_cache=folder)}.items():
        options = {"batch_size": batch_size, "num_workers": workers, "persistent_workers": True}
        loader = TileDataLoader(FaultTolerant(store, sampler), DamageLog(0), sampler=sampler, **options)
        ways[title] = partial(deque, loader, maxlen=0)
    warm = ways.pop("server")
    return _in_turn(
        {**ways, "server, cache empty": lambda: (_empty(folder), warm()), "server, cache full": warm},
        sampler, rounds, batch_size * batches,
    )  # fmt: skip


def _empty(folder: Path) -> None:
    """Empties the files of a disk cache, which workers keep open."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def _in_turn(ways: dict[str, Callable[[], object]], sampler: LandCoverSampler, rounds: int, count: int) -> list[Rate]:
    """Measures ways of reading ``count`` tiles an epoch, round after round, each in units of the first."""
    measured = defaultdict(list)
    for number in with_bar(range(rounds + 1), "Reading tiles"):
        sampler.set_epoch(number)
        for title, way in ways.items():
            wall, processor = time.perf_counter(), _processor_seconds()
            way()
            wall, processor = time.perf_counter() - wall, _processor_seconds() - processor
            if number:
                measured[title].append((wall, processor))
    return [_rate(title, count, measured[title], measured[next(iter(ways))]) for title in ways]


def _rate(title: str, count: int, own: list[tuple[float, float]], one: list[tuple[float, float]]) -> Rate:
    pairs = list(zip(own, one, strict=True))
    return Rate(
        title,
        count / statistics.median(wall for wall, _ in own),
        1000 * statistics.median(processor for _, processor in own) / count,
        statistics.median(base[0] / wall for (wall, _), base in pairs),
        statistics.median(base[1] / processor for (_, processor), base in pairs),
    )


def _decoding(tiles: TileDataset, sampler: LandCoverSampler, batch_size: int) -> Callable[[], None]:
    """Does what a worker of the ring does, in this process, into memory that it uses again."""
    samples = FaultTolerant(tiles, sampler)
    if AVAILABLE:
        samples.slots = SlotWriter(Ring(1, 1, batch_size * largest_sample(tiles)), 0, batch_size)

    def decode() -> None:
        draws = list(sampler)
        for start in range(0, len(draws), batch_size):
            samples.__getitems__(draws[start : start + batch_size])

    return decode


def _processor_seconds() -> float:
    """Processor time so far of this process and of the workers that live, in user and kernel mode."""
    seconds = time.process_time()
    for process in multiprocessing.active_children():
        stat = Path(f"/proc/{process.pid}/stat")
        if stat.is_file():  # Linux
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure(
    data: TileDataModule | None = None,
    batch_size: int = 16,
    batches: int = 16,
    rounds: int = 3,
    local: Path | None = None,
    url: str | None = None,
    workers: int = 8,
) -> None:
    """Measures how fast tiles reach the training process: decoding alone, torch's DataLoader, and the ring.

    Ratios are taken within a round. With two workers on two cores, "of the cores" is what the loader leaves of
    twice one core's decoding; it is taken from processor time, which other programs disturb less than wall time.

    Args:
        data: The data as for `terrafm fit`, such as --config conf/data/major_tom.yaml or --data PackedDataModule
            --data.root STORE; a packed store of simulated tiles (534 px, radar as 16-bit dB) by default.
        batch_size: Tiles per batch.
        batches: Batches per round.
        rounds: Rounds of which the median counts.
        local: Instead: a store on disk, to be compared with its copy at `url`.
        url: The copy, in an object store or on a web server.
        workers: Processes that read from either.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="terrafm-loader-") as folder:
        if local is not None and url is not None:
            rates = remote_speed(local, url, Path(folder) / "cache", workers, batch_size, batches, rounds)
            heads = ("x the disk", "in CPU time")
            Console().print(loader_table(rates, f"{workers} workers, batches of {batch_size}", heads))
            return
        tiles = _simulated_store(Path(folder)) if data is None else _tiles(data)
        rates = loader_speed(tiles, batch_size, batches, rounds)
    Console().print(loader_table(rates, f"{type(tiles).__name__}, batches of {batch_size}"))


def loader_table(rates: list[Rate], what: str, heads: Sequence[str] = ("x one core", "of the cores")) -> Table:
    """The rates as a table.

    Args:
        rates: From :func:`loader_speed` or :func:`remote_speed`.
        what: Was measured.
        heads: Of the two columns of ratios.
    """
    table = Table(title=f"Tiles per second: {what}")
    for column in ("", "tiles/s", "ms CPU/tile", *heads):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for rate in rates:
        numbers = f"{rate.wall:.0f}", f"{rate.processor:.2f}", f"{rate.wall_ratio:.2f}"
        table.add_row(rate.title, *numbers, f"{rate.processor_share:.0%}")
    return table


def _tiles(data: TileDataModule) -> TileDataset:
    data.prepare_data()
    return data.tiles


def _simulated_store(folder: Path, cells: int = 8) -> TileDataset:
    from terrafm_tg.datasets import MajorTOM
    from terrafm_tg.datasets.store.pack import pack
    from terrafm_tg.simulation.dataset import simulate

    simulate(folder / "world", cells=cells, workers=0)
    source = MajorTOM(folder / "world", native=True, harmonize=False)
    pack(source, folder / "store", quantize_radar=True, workers=0, progress=False)
    return PackedTiles(folder / "store", native=True)


if __name__ == "__main__":
    command(measure)

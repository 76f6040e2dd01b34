"""``python -m benchmarks.index``: seconds and memory that a tile index costs before the first batch, measured alone.

With ``--ranks 8 --workers 8`` also those of the processes of a large machine, which are simulated: each rank opens the
index and draws, each of its workers is sent what a loader's worker is sent, and asks for tiles.
"""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from terrafm_tg.datamodules import FaultTolerant, TileDataModule
from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.tiles.index_file import read_shared
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.profiling.machine import peak_bytes

from . import command
from .synthetic_index import write_synthetic_index

#: Draws of which the time is taken.
DRAWS = 100_000
#: What tiles are weighed by.
BY = ("land_cover", "climate", "region")
_TILES = 300  # that each simulated worker asks for, and for each ten others, as none can be read


class IndexOnly(TileDataset):
    """Tiles of an index, of whichever dataset, whose pixels are not at hand."""

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        raise DamagedTileError(self.name(row), "only the index was opened")


class IndexOnlyDataModule(TileDataModule):
    """Uses such an index as a training run does.

    Args:
        path: The index.
        **kwargs: Settings of :class:`~terrafm_tg.datamodules.TileDataModule`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> IndexOnly:
        """The tiles of the index."""
        table, made_for = read_shared(Path(self.hparams["path"]))
        return IndexOnly(table, native=True, tile_size=made_for["tile_size"])


def measure_index(path: Path) -> list[dict[str, Any]]:
    """Does what a training run does before its first batch, and note what each stage takes.

    Args:
        path: A tile index; the files that it is of are not needed.

    Returns:
        Per stage ``stage``, ``seconds``, ``processor_seconds`` and ``peak_gb`` of this process until its end,
        resident; the first stage is the imports.

    Raises:
        TerraFMError: If it is no tile index.
    """
    stages = [
        {"stage": "imports", "seconds": None, "processor_seconds": time.process_time(), "peak_gb": peak_bytes() / 1e9}
    ]

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        took = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        stages.append({"stage": name} | took | {"peak_gb": peak_bytes() / 1e9})

    data = IndexOnlyDataModule(str(path), by=BY, num_workers=0)
    with stage("load the index"):
        tiles = data.tiles
    with stage("split"):
        _ = data.split
    with stage("sampler"):
        sampler = data.sampler
    sampler.set_epoch(1)
    with stage("first draw of an epoch"):
        next(iter(sampler))
    sampler.start = len(sampler) // 2
    with stage("first draw after a resume in mid-epoch"):
        draws = iter(sampler)
        next(draws)
    with stage(f"{DRAWS:,} draws"):
        for _ in islice(draws, DRAWS):
            pass
    with stage("bank and queries"):
        data.val_dataloader()
    with stage("any place to its tile, the first time"):
        tiles.resolve(tuple(tiles.tile_slice(len(tiles) // 3)))
    with stage("any place to its tile, 100 times"):
        for row in np.linspace(0, len(tiles) - 1, 100).astype(int):
            tiles.resolve(tuple(tiles.tile_slice(row)))
    return stages


def measure_processes(path: Path, ranks: int, workers: int, method: str) -> dict[str, float]:
    """Simulates the processes of a machine that trains, and sums the memory that an index takes in them.

    Args:
        path: A tile index.
        ranks: Training processes.
        workers: Of each.
        method: Way to start a process: ``fork``, ``forkserver`` or ``spawn``.

    Returns:
        ``start``, seconds until the slowest rank has its first draw, all starting at once, after the imports;
        ``ask``, seconds until the slowest worker has asked for its tiles; ``total_mb``, growth of the proportional set
        size of all processes; ``worker_mb`` and ``worker_private_mb``, that of the largest worker, in all and of its
        own; ``sent_mb``, what is sent to a worker.
    """
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["benchmarks.index"])  # imported once: each process takes 0.6 GB for imports
    pairs = [context.Pipe() for _ in range(ranks * (1 + workers))]
    processes = [context.Process(target=_simulate, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    ends = [ours for ours, _ in pairs]
    first, others = ends[:ranks], ends[ranks:]
    for end in ends:
        end.recv()  # all have their imports
    before = [_memory(process.pid) for process in processes]
    for rank, end in enumerate(first):
        end.send((str(path), rank, ranks))
    started = [end.recv() for end in first]
    for number, end in enumerate(others):
        _, sent, rows = started[number % ranks]
        end.send((sent, rows[number // ranks :: workers][:_TILES]))
    asked = [end.recv() for end in others]
    grown = [
        {name: after[name] - was[name] for name in was}
        for was, after in zip(before, (_memory(process.pid) for process in processes), strict=True)
    ]
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()
    return {
        "start": max(seconds for seconds, _, _ in started),
        "ask": max(asked),
        "total_mb": sum(process["Pss"] for process in grown),
        "worker_mb": max(process["Pss"] for process in grown[ranks:]),
        "worker_private_mb": max(process["Pss_Anon"] for process in grown[ranks:]),
        "sent_mb": max(len(sent) for _, sent, _ in started) / 1e6,
    }


def _simulate(end: Any) -> None:
    """Is one process: a rank, which is given a path, or a worker, which is given what a rank sends and its rows."""
    end.send(None)
    work, *rest = end.recv()
    begin = time.perf_counter()
    if isinstance(work, str):
        data = IndexOnlyDataModule(work, by=BY, num_workers=0)
        sampler = data.sampler
        sampler._rank, sampler._world_size = rest
        next(iter(sampler))
        seconds = time.perf_counter() - begin
        end.send((seconds, pickle.dumps(FaultTolerant(data.tiles, sampler)), sampler.own_rows()[: 64 * _TILES]))
    else:
        samples = pickle.loads(work)
        for row in rest[0]:
            samples[samples.dataset.tile_slice(int(row))]
        end.send(time.perf_counter() - begin)
    end.recv()


def _memory(process: int | None) -> dict[str, float]:
    """Proportional set size of a process, in all and of memory of no file, in megabytes; Linux says it."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 / 1e6 for name, _, rest in (line.partition(":") for line in lines)}
    return {name: sizes[name] for name in ("Pss", "Pss_Anon")}


def measure(
    path: Path | None = None,
    tiles: int = 6_000_000,
    ranks: int = 0,
    workers: int = 8,
    method: Literal["fork", "forkserver", "spawn"] = "forkserver",
) -> list[dict[str, Any]]:
    """Measures what a tile index costs before the first batch, in a process that does nothing else.

    Loads it, splits it, builds the sampler, draws, resumes, and picks the tiles to validate on.

    Args:
        path: A tile index; without one, an index of synthetic tiles is written for the measurement.
        tiles: How many of those; the paper's set has six million.
        ranks: Training processes of a machine to simulate, too; 0 for none.
        workers: Of each of these.
        method: Way in which all of them are started.

    Returns:
        As :func:`measure_index`, and one of the simulated machine.

    Raises:
        TerraFMError: If ``path`` is no tile index, or there are no so many tiles.
    """
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TERRAFM_CACHE=f"{folder}/shared"):
        if path is None:
            path = Path(folder) / "index.parquet"
            with Console(stderr=True).status(f"Writing an index of {tiles:,} tiles", refresh_per_second=1):
                write_synthetic_index(path, tiles)
        alone = [sys.executable, "-c", f"from benchmarks.index import print_stages; print_stages({str(path)!r})"]
        with Console(stderr=True).status(f"Measuring {path.name} in a new process", refresh_per_second=1):
            done = subprocess.run(alone, stdout=subprocess.PIPE, text=True, check=True)
        stages = json.loads(done.stdout.splitlines()[-1])
        if isinstance(stages, str):
            raise TerraFMError(stages)
        size = path.stat().st_size / 1e9
        machine = measure_processes(path, ranks, workers, method) if ranks else {}
    table = Table(title=f"{path.name}, {size:.3g} GB on disk")
    for title in ("stage", "seconds", "processor seconds", "peak GB"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in stages:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.2f}"
        table.add_row(stage["stage"], seconds, f"{stage['processor_seconds']:.2f}", f"{stage['peak_gb']:.2f}")
    Console().print(table)
    for name, value in machine.items():
        Console().print(f"{ranks} ranks x {workers} workers, {method}: {name.replace('_', ' ')} {value:,.2f}")
    return [*stages, *([{"stage": method} | machine] if machine else [])]


def print_stages(path: str) -> None:
    """Measures in this process, and prints the stages as JSON, or what is wrong with the index.

    Args:
        path: A tile index.
    """
    try:
        print(json.dumps(measure_index(Path(path))))
    except TerraFMError as error:
        print(json.dumps(str(error)))


if __name__ == "__main__":
    command(measure)

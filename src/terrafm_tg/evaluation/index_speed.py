"""What the tile index costs before the first batch: seconds and memory of a process that does nothing else."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from terrafm_tg.datamodules import MajorTOMDataModule

from .synthetic_index import write_synthetic_index

#: Draws of which the time is taken.
DRAWS = 100_000
#: What a rank of many has to do as well.
RANKS = 512


def measure_index(path: Path) -> list[dict[str, Any]]:
    """Do what a training run does before its first batch, and note what each stage takes.

    Args:
        path: An index of a Major-TOM root, of whose files none is needed.

    Returns:
        Per stage ``stage``, ``seconds``, ``processor_seconds`` and ``peak_gb`` of this process until its end,
        resident; the first stage is the imports.
    """
    stages = [
        {"stage": "imports", "seconds": None, "processor_seconds": time.process_time(), "peak_gb": _peak()}
    ]

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        took = {
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
        }
        stages.append({"stage": name} | took | {"peak_gb": _peak()})

    by = ("land_cover", "climate", "region")
    data = MajorTOMDataModule(path.parent, index=path, by=by, num_workers=0)
    with stage("load the index"):
        tiles = data.tiles
    with stage("split"):
        data.split  # noqa: B018
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


def print_index_speed(path: Path | None = None, tiles: int = 6_000_000) -> list[dict[str, Any]]:
    """Measure in a fresh process, and print a table.

    Args:
        path: An index; one of ``tiles`` synthetic tiles is made, and removed afterwards, where None.
        tiles: Rows of that.

    Returns:
        As :func:`measure_index`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "index.parquet"
            write_synthetic_index(path, tiles)
        command = [sys.executable, "-m", __name__, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        size = path.stat().st_size / 1e9
    stages = json.loads(done.stdout.splitlines()[-1])
    table = Table(title=f"{path.name}, {size:.3g} GB on disk")
    for title in ("stage", "seconds", "processor seconds", "peak GB"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in stages:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.2f}"
        table.add_row(stage["stage"], seconds, f"{stage['processor_seconds']:.2f}", f"{stage['peak_gb']:.2f}")
    Console().print(table)
    return stages


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    print(json.dumps(measure_index(Path(sys.argv[1]))))

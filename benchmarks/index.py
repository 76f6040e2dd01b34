"""``python -m benchmarks.index``: seconds and memory that a tile index costs before the first batch, measured alone."""

import json
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

from terrafm_tg.datamodules import TileDataModule
from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.profiling.machine import peak_bytes

from . import command
from .synthetic_index import write_synthetic_index

#: Draws of which the time is taken.
DRAWS = 100_000


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
        table, made_for = read_index(Path(self.hparams["path"]))
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

    by = ("land_cover", "climate", "region")
    data = IndexOnlyDataModule(str(path), by=by, num_workers=0)
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


def measure(path: Path | None = None, tiles: int = 6_000_000) -> list[dict[str, Any]]:
    """Measures what a tile index costs before the first batch, in a process that does nothing else.

    Loads it, splits it, builds the sampler, draws, resumes, and picks the tiles to validate on.

    Args:
        path: A tile index; without one, an index of synthetic tiles is written for the measurement.
        tiles: How many of those; the paper's set has six million.

    Returns:
        As :func:`measure_index`.

    Raises:
        TerraFMError: If ``path`` is no tile index, or there are no so many tiles.
    """
    with tempfile.TemporaryDirectory() as folder:
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
    table = Table(title=f"{path.name}, {size:.3g} GB on disk")
    for title in ("stage", "seconds", "processor seconds", "peak GB"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in stages:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.2f}"
        table.add_row(stage["stage"], seconds, f"{stage['processor_seconds']:.2f}", f"{stage['peak_gb']:.2f}")
    Console().print(table)
    return stages


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

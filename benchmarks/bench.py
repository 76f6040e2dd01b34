"""``python -m benchmarks.bench``: a k-NN on a benchmark dataset against the time of its forward passes alone."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from terrafm_tg.datasets.bench import BenchDataset, BenchSubset, open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.evaluation.encoders.backbone import Backbone
from terrafm_tg.evaluation.protocols import Context, Score, Splits, make_protocol

from . import command


@dataclass
class Clock:
    """Wall time and this process's processor time, in seconds."""

    wall: float = 0.0
    processor: float = 0.0
    _start: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def start(self) -> None:
        """Go on."""
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop, and add the time since the start."""
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]


@dataclass(frozen=True)
class BenchSpeed:
    """Times of a k-NN.

    Args:
        samples: Images embedded.
        total: Of the first run: loading the model, reading, decoding, resizing, forward passes, neighbors, scores.
        forward: Of the forward passes in the first run.
        again: Of the second run, whose embeddings are in the cache.
        scores: Of both runs.
    """

    samples: int
    total: Clock
    forward: Clock
    again: Clock
    scores: list[Score]

    @property
    def ratio(self) -> float:
        """Processor time of the first run in units of its forward passes'."""
        return self.total.processor / self.forward.processor

    @property
    def wall_ratio(self) -> float:
        """The same of wall time, which other programs on the machine disturb."""
        return self.total.wall / self.forward.wall


def bench_speed(
    spec: ModelSpec, root: Path, dataset: str = "m-eurosat", samples: int = 2000, batch_size: int = 64
) -> BenchSpeed:
    """Runs the k-NN twice in this process, on the CPU and without workers, half of the samples being the bank.

    Args:
        spec: The model.
        root: Folder of the benchmarks' files.
        dataset: A dataset of classes or several labels.
        samples: Images to embed, from train and test split; all where there are fewer.
        batch_size: Images per forward.

    Raises:
        TerraFMError: If the dataset or the model cannot be read, or ``samples`` is too small.
    """
    if samples < 2:
        raise TerraFMError(f"`samples` is {samples}: give at least 2, one for the bank and one to be scored.")
    splits = Splits(*(_part(open_bench(dataset, root, name), samples) for name in ("train", "val", "test")))
    total, forward, again = Clock(), Clock(), Clock()
    with tempfile.TemporaryDirectory(prefix="terrafm-bench-") as folder:
        context = Context(cache=Path(folder), batch_size=batch_size)
        with _timed_forwards(forward):
            total.start()
            scores = make_protocol("knn").run(spec, splits, context)
            total.stop()
        again.start()
        repeated = make_protocol("knn").run(spec, splits, context)
        again.stop()
    if [s[:3] for s in repeated] != [s[:3] for s in scores]:
        raise TerraFMError(f"The kept embeddings of {spec.label} give other scores than the computed ones.")
    return BenchSpeed(len(splits.train) + len(splits.test), total, forward, again, scores)


def measure(
    root: Path,
    dataset: str = "m-eurosat",
    model: str = "terrafm_base",
    weights: str | None = None,
    samples: int = 2000,
    size: int | None = None,
    batch_size: int = 64,
) -> None:
    """Measures what a k-NN costs beside its forward passes, on the CPU in one process, and with kept embeddings.

    Args:
        root: Folder of the benchmarks' files.
        dataset: A dataset of classes or several labels, such as m-eurosat.
        model: Such as terrafm_base, with random weights unless given.
        weights: File or name of its weights.
        samples: Images to embed, half of them the bank.
        size: Pixels to resize to; the dataset's usual ones by default.
        batch_size: Images per forward.
    """
    found = bench_speed(ModelSpec(model, weights, size=size), root, dataset, samples, batch_size)
    table = Table(title=f"k-NN of {found.samples} images of {dataset}, {model}, CPU, one process")
    for column in ("", "processor s", "wall s", "ms/image"):
        table.add_column(column, justify="right" if column else "left")
    rows = (("forward passes", found.forward), ("whole run", found.total), ("again, cached", found.again))
    for title, clock in rows:
        per_image = 1000 * clock.processor / found.samples
        table.add_row(title, f"{clock.processor:.2f}", f"{clock.wall:.2f}", f"{per_image:.1f}")
    table.caption = (
        f"Whole run / forward passes: {found.ratio:.3f} of processor time, {found.wall_ratio:.3f} of wall time; "
        f"{torch.get_num_threads()} threads"
    )
    Console().print(table)


def _part(data: BenchDataset, samples: int) -> BenchDataset:
    """Half of the samples, evenly from all of the split."""
    count = min(samples // 2, len(data))
    return BenchSubset(data, [number * len(data) // count for number in range(count)])


@contextmanager
def _timed_forwards(clock: Clock) -> Iterator[None]:
    """Adds the time of every backbone's forward to the clock."""

    def start(module: nn.Module, args: Any) -> None:
        if isinstance(module, Backbone):
            clock.start()

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, Backbone):
            clock.stop()

    hooks = register_module_forward_pre_hook(start), register_module_forward_hook(stop)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    command(measure)

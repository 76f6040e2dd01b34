"""The fast training step against the plain one, in turn, in one process: `python tests/tasks/step_speed.py --help`.

Each round makes a step of every variant; ratios are taken within a round, and their median counts. With one thread on a
CPU (OMP_NUM_THREADS=1) the time is the processor's, which other programs disturb less than wall time.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from plain_step import PlainTerraFM
from rich.console import Console
from rich.table import Table
from tiny_terrafm import grouped
from torch.utils.data import DataLoader

from terrafm_tg.datasets.tiles.dataset import collate_tiles
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.tasks import TerraFM

CLASSES = {"plain": PlainTerraFM, "fast": TerraFM}
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def tiles(count: int, side: int = 534) -> dict[str, Any]:
    """A batch of native tiles of noise."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(count):
        sample = {
            name: torch.tensor(value)
            for name, value in {"land_cover": i % 11, "row": i, "position": i, "epoch": 0}.items()
        }
        for m in MODALITIES.values():
            for resolution, bands in m.native.items():
                shape = len(bands), side * 10 // resolution, side * 10 // resolution
                noise = torch.randint(1, 10_000, shape, generator=generator)
                sample[m.native_key(resolution)] = noise / 1e5 if m.unit == "dB" else noise.to(torch.uint16)
        samples.append(sample)
    complete = torch.ones(count, len(MODALITIES), dtype=torch.bool)  # as the dataset would tell
    return collate_tiles(samples) | {"complete": complete}


class Clock(Callback):
    """Seconds of each step, from the batch on the device to the moved centres."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.since = self.now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(self.now() - self.since)


def measure(
    settings: dict[str, Any], batch: dict[str, Any], rounds: int, steps: int, device: str, names: list[str]
) -> dict[str, list[float]]:
    """Seconds per step of each variant, round by round; the first step of a round is not counted."""
    tasks = {}
    for name in names:
        torch.manual_seed(0)
        tasks[name] = CLASSES[name.split(", ")[0]](**settings)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, task in tasks.items():
            clock = Clock()
            quiet = {
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            }
            trainer = Trainer(
                accelerator=device,
                devices=1,
                precision=PRECISIONS[name.split(", ")[1]],
                max_steps=steps + 1,
                log_every_n_steps=10**6,
                callbacks=[clock],
                **quiet,
            )
            trainer.fit(task, DataLoader([batch] * (steps + 1), batch_size=None))
            task.cpu() if device != "cpu" else None
            seconds[name].append(statistics.median(clock.seconds[1:]))
    return seconds


def table(seconds: dict[str, list[float]], batch: int, title: str) -> Table:
    """Milliseconds, samples per second and the median of the ratios to the first variant."""
    rows = Table(title=title)
    for column in ("step", "ms", "samples/s", "x plain fp32", "x plain, same precision"):
        rows.add_column(column, justify="left" if column == "step" else "right")
    for name, own in seconds.items():
        middle = statistics.median(own)
        ratios = [ratio(seconds, base, name) for base in ("plain, fp32", f"plain, {name.split(', ')[1]}")]
        rows.add_row(name, f"{1000 * middle:.0f}", f"{batch / middle:.2f}", *(f"{r:.2f}" if r else "" for r in ratios))
    return rows


def ratio(seconds: dict[str, list[float]], base: str, name: str) -> float | None:
    """Median over rounds of the base's time divided by this one's."""
    if base not in seconds:
        return None
    return statistics.median(b / o for b, o in zip(seconds[base], seconds[name], strict=True))


def variants(precisions: list[str]) -> Iterator[str]:
    """Plain and fast at each precision."""
    return (f"{name}, {precision}" for precision in precisions for name in CLASSES)


def main() -> None:
    parser = argparse.ArgumentParser(description="The fast training step against the plain one.")
    parser.add_argument("--model", default="terrafm_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps in each round")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=list(PRECISIONS))
    parser.add_argument("--set", nargs="*", default=[], help="settings of the task, such as depth=2 compile=true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    settings = {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in options.set)}
    settings = grouped({"model": options.model, "lr_batch": None, "frequent_classes": ["Tree cover"]} | settings)
    seconds = measure(
        settings, tiles(options.batch), options.rounds, options.steps, options.device, list(variants(options.precision))
    )
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    Console().print(table(seconds, options.batch, f"{options.model}, batch {options.batch}, {where}"))
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()

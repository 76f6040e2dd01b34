"""``terrafm profile gains``: what each speed-up of the training step is worth, by leaving it out.

All variants run in turn, round after round, in one process, each right behind a run with everything, to which its time
is compared. A gain is what is lost where one speed-up alone is missing; gains do not multiply to that of all, since
they overlap.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.speedups import SPEEDUPS
from terrafm_tg.utils.files import atomic_write

from .stages import finished_profiler

#: Names of the variants with every speed-up and with none.
FULL, PLAIN = "with everything", "without all of these"


@dataclass(frozen=True)
class Gain:
    """One variant.

    Args:
        left_out: The speed-up; or `FULL`, or `PLAIN`.
        meaning: What it is.
        seconds: Median time of a batch.
        ratio: Median over rounds of its time divided by that with everything right before it.
    """

    left_out: str
    meaning: str
    seconds: float
    ratio: float


def measure_gains(
    settings: Mapping[str, Any],
    datamodule: LightningDataModule,
    make_trainer: Callable[[], Trainer],
    rounds: int = 3,
    progress: bool = True,
) -> list[Gain]:
    """Measures all variants.

    Args:
        settings: Of :class:`~terrafm_tg.tasks.TerraFM`; ``compile`` counts as a speed-up where it is on.
        datamodule: What feeds them.
        make_trainer: A Trainer of its own for each short run, with a :class:`~.stages.StageProfiler`.
        rounds: Rounds over all variants.
        progress: Show a progress bar.

    Returns:
        The variant with everything first, the one without all last.

    Raises:
        TerraFMError: If there is no round, or a run ends before it is warm.
    """
    if rounds < 1:
        raise TerraFMError(f"{rounds} rounds measure nothing: take at least one.")
    variants = _variants(settings)

    def run(changes: Mapping[str, Any]) -> float:
        gc.collect()  # a task and its Trainer refer to each other: those of earlier runs would pile up in memory
        if settings.get("compile"):
            torch.compiler.reset()  # torch gives up compiling a function that it met in too many variants
        return _run(TerraFM(**{**settings, **changes}), datamodule, make_trainer())

    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    shown = Progress(console=Console(stderr=True), transient=True, refresh_per_second=2, disable=not progress)
    with shown as bar:
        task = bar.add_task("First run", total=rounds * len(variants))
        run({})  # a process's first run is slower than all others
        for number in range(rounds):
            for name, changes in variants.items():
                bar.update(task, description=f"Round {number + 1}: {name}")
                full = run({})
                pairs[name].append((run(changes), full))
                bar.advance(task)
    everything = statistics.median(full for of_one in pairs.values() for _, full in of_one)
    meanings = SPEEDUPS | {"compile": "residual branches compiled"}
    return [Gain(FULL, "", everything, 1.0)] + [
        Gain(
            name,
            meanings.get(name, ""),
            statistics.median(own for own, _ in of_one),
            statistics.median(own / full for own, full in of_one),
        )
        for name, of_one in pairs.items()
    ]


def gains_table(gains: list[Gain], title: str) -> Table:
    """The gains as a table.

    Args:
        gains: From :func:`measure_gains`.
        title: What was measured.
    """
    table = Table(title=title)
    for column in ("left out", "ms/batch", "gain", "what it is"):
        table.add_column(column, justify="right" if column in ("ms/batch", "gain") else "left")
    for gain in gains:
        numbers = f"{1000 * gain.seconds:,.1f}", "" if gain.left_out == FULL else f"{gain.ratio:.3f}"
        table.add_row(gain.left_out, *numbers, gain.meaning)
    table.caption = (
        "Gain: time without it, in units of the time with everything; median of the rounds' ratios."
    )
    return table


def write_gains_figure(gains: list[Gain], title: str, path: Path) -> None:
    """Draws the time without each speed-up beside that with everything.

    Args:
        gains: From :func:`measure_gains`.
        title: What was measured.
        path: PNG, PDF or SVG to write.
    """
    from matplotlib.figure import Figure

    rows = gains[:0:-1]  # from below, without that of everything
    figure = Figure(figsize=(7, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    lost = [gain.ratio - 1 for gain in rows]
    colors = ["#1f4e79" if x > 0 else "#9cc3e4" for x in lost]
    axes.barh([gain.left_out for gain in rows], lost, left=1, color=colors)
    for place, (gain, x) in enumerate(zip(rows, lost, strict=True)):
        axes.text(1 + max(x, 0), place, f"  {gain.ratio:.3f}", va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(min(1, *(gain.ratio for gain in rows)) - 0.02, max(gain.ratio for gain in rows) + 0.06)
    axes.set_xlabel(f"time of a step without it, 1 = {1000 * gains[0].seconds:,.0f} ms with everything")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_write(path) as beside:
        figure.savefig(beside, dpi=150, format=path.suffix.removeprefix(".") or "png")


def _variants(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> what it changes in the settings. What is left out already stays so, and is no variant."""
    already = list(settings.get("without") or [])
    left = [name for name in SPEEDUPS if name not in already]
    variants: dict[str, dict[str, Any]] = {name: {"without": [*already, name]} for name in left}
    plain: dict[str, Any] = {"without": list(SPEEDUPS)}
    if settings.get("compile"):
        variants["compile"] = {"compile": False}
        plain["compile"] = False
    return variants | {PLAIN: plain}


def _run(task: TerraFM, datamodule: LightningDataModule, trainer: Trainer) -> float:
    """Seconds of a batch, the median of a short run."""
    trainer.fit(task, datamodule=datamodule)
    seconds = statistics.median(finished_profiler(trainer).step_seconds)
    datamodule.trainer = None  # by which the task would stay in memory
    return seconds

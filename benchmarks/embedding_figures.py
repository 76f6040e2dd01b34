"""Tables and figures of ``benchmarks.embedding_quality``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from terrafm_tg.utils.files import atomic_write

from .embedding_maps import Seams

_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73")  # that the color blind tell apart, too


class Estimate(NamedTuple):
    """A mean, and the 95 % interval of it over clusters of places."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})".replace("-", "−")


def print_tables(found: Mapping[str, Any]) -> None:
    """Prints the numbers as tables that Markdown reads; shares in percent."""
    _print(
        ("map", "k-NN", "change (95 %)", "places", "time", "MB/km²"),
        ((row["way"], f"{100 * row['accuracy'].mean:.1f}", str(row["change"]), str(row["places"]),
          f"{row['time']:.2f}", f"{row['megabytes']:.3f}") for row in found["ways"]),
    )  # fmt: skip
    _print(
        ("tile", "sensors", "pooling", "k-NN", "change (95 %)", "tiles"),
        ((f"{row['size']} px", row["sensors"], row["pooling"], f"{100 * row['accuracy'].mean:.1f}",
          str(row["change"]), str(row["n"])) for row in found["pooled"]),
    )  # fmt: skip
    _print(
        ("stored", "MB/km²", "as COG", "k-NN, map: change (95 %)", "k-NN, tiles: change (95 %)", "same neighbors",
         "same place, other sensor", "variance kept"),
        ((row["stored"], f"{row['megabytes']:.4f}", f"{row['cog']:.4f}", str(row["change"]), str(row["tiles_change"]),
          f"{100 * row['recall']:.1f}", f"{100 * row['same_place']:.1f}", f"{100 * row['explained']:.1f}")
         for row in found["stored"]),
    )  # fmt: skip
    _print(
        ("positions", "overlap", "imprint", "largest step, constant", "step at the edge", "elsewhere", "moved windows"),
        ((("yes" if row["positions"] else "no"), f"{row['overlap']}", f"{100 * row['imprint']:.1f}",
          f"{100 * max(row['constant']):.1f}", f"{100 * max(row['edge']):.0f}", f"{100 * beside(row['edge']):.0f}",
          f"{100 * row['moved']:.1f}") for row in found["seams"]),
    )  # fmt: skip
    if "real" in found:
        _print(
            ("real chips", "score", "change (95 %)", "n"),
            ((name, f"{100 * row['score']:.1f}", str(row.get("change", "")), str(row["n"]))
             for name, row in found["real"].items()),
        )  # fmt: skip


def beside(line: Sequence[float]) -> float:
    """Returns the largest step but those at, and beside, the largest of all."""
    place = int(np.argmax(line))
    return max(step for column, step in enumerate(line) if abs(column - place) > 1)


def _print(columns: Sequence[str], rows: Any) -> None:
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    Console(width=240).print(table)


def draw_seams(seams: Sequence[Seams], path: Path) -> None:
    """Draws the steps between neighbors along a constant scene and one with an edge, with and without positions."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(11, 5.4), layout="constrained")
    axes = chart.subplots(2, 2, sharex=True, sharey="row")
    overlaps = sorted({one.overlap for one in seams})
    for one in seams:
        for row, line in enumerate((one.constant, one.edge)):
            color = _COLORS[overlaps.index(one.overlap) % len(_COLORS)]
            axes[row, int(not one.positions)].plot(
                np.arange(1, len(line) + 1), 100 * np.array(line), color=color, lw=1.2, label=f"overlap {one.overlap}"
            )
    for ax, title in zip(axes.flat, (
        "constant scene", "constant scene, positions set to 0", "planted edge", "planted edge, positions set to 0",
    ), strict=True):  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set_ylim(bottom=0)
        ax.grid(axis="y", color="#dddddd", zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1]:
        ax.set_xlabel("column of the map")
    for ax in axes[:, 0]:
        ax.set_ylabel("step, % of the spread")
    axes[0, 0].legend(frameon=False, fontsize=8)
    _save(chart, path)


def draw_quality(found: Mapping[str, Any], path: Path) -> None:
    """Draws the change of k-NN accuracy by each choice, with the time of a map or the size of what is stored."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = chart.subplots(1, 2)
    _changes(left, [(f"{row['way']} ({row['time']:.2g}×)", row["change"]) for row in found["ways"][1:]], _COLORS[2])
    left.set_title("maps, against the default (time)", fontsize=10)
    names = [f"{row['stored']} ({1000 * row['megabytes']:.2g} kB/km²)" for row in found["stored"][1:]]
    _changes(right, list(zip(names, [row["change"] for row in found["stored"][1:]], strict=True)), _COLORS[1])
    right.axvline(-2, color="black", lw=0.8, ls=":")
    right.set_title("stored numbers, against float32 (size)", fontsize=10)
    _save(chart, path)


def _changes(ax: Any, rows: Sequence[tuple[str, Estimate]], color: str) -> None:
    """Draws changes with their intervals, a row for each."""
    for place, (_, change) in enumerate(rows):
        ax.plot([100 * change.low, 100 * change.high], [place, place], color=color, lw=1.5, zorder=2)
        ax.plot([100 * change.mean], [place], "o", color=color, ms=5, zorder=3)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.invert_yaxis()
    ax.set_xlabel("change of k-NN accuracy in points, 95 %")
    ax.grid(axis="x", color="#dddddd", zorder=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _save(chart: Any, path: Path) -> None:
    with atomic_write(path) as part:
        chart.savefig(part, format="png", dpi=110)

"""The held-out scores as a table that lines up, a CSV, and a figure."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models.embedding import FUSED
from terrafm_tg.utils.arguments import checked

from .held_out import BASELINE
from .scores import CROSS_SENSOR, KNN, RETRIEVAL, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What HeldOutReport calls its two encoders; the table's column "change" is their difference.
UNTRAINED, TRAINED = "untrained", "trained"

_TITLES = {KNN: "Land-cover k-NN", CROSS_SENSOR: "Cross-sensor k-NN", RETRIEVAL: "Same place"}
#: Sensors in the tables and figures of a run.
SHORT_TITLES = {"s1rtc": "S1", "s2l1c": "L1C", "s2l2a": "L2A", FUSED: "fused"}
_COLORS = {BASELINE: "#7a7a7a", UNTRAINED: "#d55e00", TRAINED: "#0072b2"}
_ORDER = {name: i for i, name in enumerate([*MODALITIES, FUSED])}


def sections(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Splits a tidy table of scores by task and metric, balanced accuracy last.

    Yields:
        A title, and a table with a row per sensor (``S1``) or ordered pair (``S1 → L2A``: k-NN's bank or retrieval's
        query first). Its columns are ``mean``, ``deviation``, ``low`` and ``high`` (95 % interval: Student's over
        several seeds, Wilson's of the queries where there is one), each of every encoder and of ``chance``; NaN where
        none applies.
    """
    wanted = [(task, metric) for task in _TITLES for metric in frame.metric[frame.task == task].unique()]
    for task, metric in sorted(wanted, key=lambda pair: pair[1].startswith("balanced")):
        part = frame[(frame.task == task) & (frame.metric == metric)]
        pair = ["query", "bank"] if task == RETRIEVAL else ["bank", "query"]
        both = pd.concat([part.assign(encoder="chance", score=part.chance), part])
        tidy = both.groupby([*pair, "encoder"])[["metric", "score", "n_query"]].apply(_estimate)
        wide = tidy.unstack("encoder").sort_index(key=lambda x: x.map(_ORDER))
        pairs = [(SHORT_TITLES.get(a, a), SHORT_TITLES.get(b, b)) for a, b in wide.index]
        wide.index = [a if a == b else f"{a} → {b}" for a, b in pairs]
        yield f"{_TITLES[task]}: {metric.split()[0]}", wide


def _estimate(group: pd.DataFrame) -> pd.Series:
    """Mean, standard deviation and 95 % interval of the scores of one encoder."""
    names, scores = ["mean", "deviation", "low", "high"], group.score.dropna()
    if scores.empty:
        return pd.Series(np.nan, names)
    proportion = not group.metric.iloc[0].startswith("balanced")
    found = estimate(100 * scores.to_numpy(), int(group.n_query.max()) if proportion else None)
    ends = np.clip([found.low, found.high], 0, 100) / 100
    return pd.Series([scores.mean(), scores.std(), *ends], names)


def columns(frame: pd.DataFrame) -> list[str]:
    """Chance, the baseline, then the encoders in their order."""
    return ["chance", *sorted(frame.encoder.unique(), key=lambda name: name != BASELINE)]


@checked()
def table(frame: pd.DataFrame, title: str = "Held-out cells") -> Table:
    """A rich table with a row per score, 80 columns wide; ``–`` where a score does not apply.

    Args:
        frame: From :func:`~terrafm_tg.evaluation.held_out.evaluate_held_out`, or several of them
            concatenated, whose scores then stand as mean ± standard deviation.
        title: Above the table.
    """
    names = columns(frame)
    changes = {UNTRAINED, TRAINED} <= set(names)
    result = Table(title=title, caption=_caption(frame), box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    result.title_justify = result.caption_justify = "left"
    result.add_column("", no_wrap=True)
    for name in [*names, "change"] if changes else names:
        result.add_column(name, justify="right", max_width=10)
    for heading, scores in sections(frame):
        result.add_section()
        result.add_row(f"[bold]{heading}[/]")
        for label, row in scores.iterrows():
            mean, deviation = row["mean"], row["deviation"]
            cells = [_cell(mean.get(name), deviation.get(name) if name != "chance" else None) for name in names]
            if changes:
                change = mean.get(TRAINED, float("nan")) - mean.get(UNTRAINED, float("nan"))
                cells.append("–" if pd.isna(change) else f"[{'green' if change > 0 else 'red'}]{change:+.2f}[/]")
            result.add_row(f"  {label}", *cells)
    return result


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None or pd.isna(mean):
        return "–"
    return f"{mean:.2f}" + ("" if deviation is None or pd.isna(deviation) else f"±{deviation:.2f}")


def _caption(frame: pd.DataFrame) -> str:
    """The meaning of A → B, the number of tiles, and the differences that they can tell."""
    knn, queries = frame[frame.task != RETRIEVAL], int(frame.n_query.max())
    bank = f"{int(knn.n_bank.max())} tiles of training cells as the bank, " if len(knn) else ""
    return (
        "k-NN A → B: bank from A, queries from B. Same place A → B: A's tile found among B's. balanced: mean "
        f"accuracy of the classes. Chance: always the commonest class, or any tile. {bank}{queries} held-out "
        f"tiles as queries: two standard errors are up to {queries**-0.5:.2f}."
    )


@checked()
def figure(frame: pd.DataFrame, title: str = "Held-out cells") -> "Figure":
    """Draws a mark per score and encoder with its 95 % interval, and chance as a gray line."""
    from matplotlib.figure import Figure

    names = columns(frame)
    parts = {heading: scores for heading, scores in sections(frame) if "balanced" not in heading}
    heights = [len(scores) + 0.6 for scores in parts.values()]
    fig = Figure(figsize=(7.2, 0.36 * sum(heights) + 1.8), layout="constrained")
    axes = fig.subplots(len(parts), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
    for ax, (heading, scores) in zip(axes, parts.items(), strict=True):
        mean, y = scores["mean"], np.arange(len(scores))
        ax.vlines(mean["chance"], y - 0.38, y + 0.38, color="#8a8f94", label="chance")
        for name, step in zip(names[1:], np.linspace(-0.45, 0.45, len(names) + 1)[1:-1], strict=True):
            if name in mean:
                ends = [mean[name] - scores["low"][name], scores["high"][name] - mean[name]]
                ends = np.nan_to_num(ends).clip(0)
                ax.errorbar(mean[name], y + step, xerr=ends, fmt="o", color=_COLORS.get(name), label=name)
        ax.set_yticks(y, scores.index)
        ax.invert_yaxis()
        ax.set_title(heading, loc="left")
        ax.grid(axis="x")
    axes[-1].set(xlim=(-0.02, 1.02), xlabel="score; bars are 95 % intervals")
    fig.suptitle(title)
    marks = {label: mark for ax in axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend([marks[name] for name in names], names, loc="outside lower center", ncols=len(names), frameon=False)
    return fig


@checked()
def write_report(frame: pd.DataFrame, folder: Path | str, title: str = "Held-out cells") -> tuple[Path, Path]:
    """Writes ``held_out.csv`` and ``held_out.png`` into ``folder``.

    Returns:
        The paths of both.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    csv, png = folder / "held_out.csv", folder / "held_out.png"
    frame.to_csv(csv, index=False, float_format="%.6g")
    figure(frame, title).savefig(png, dpi=150)
    return csv, png

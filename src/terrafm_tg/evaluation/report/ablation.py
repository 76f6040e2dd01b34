"""The rows of an ablation compared seed by seed: tables, CSV, JSON and figures."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Column, Table
from scipy import optimize, stats

from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL, estimate
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.utils.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Configurations in ``conf/ablation``, and what tables and figures call them.
ROWS = {
    "1_one_modality": "L2A alone",
    "2_modality_augmentation": "+ augmentation",
    "3_fusion": "+ fusion",
    "4_dual_centering": "+ dual center",
}
#: Scores that are compared: beginnings of their names, whose mean it is.
SCORES = {
    "k-NN of L2A": f"{KNN}/accuracy/s2l2a/",
    "k-NN of L2A, balanced": f"{KNN}/balanced accuracy/s2l2a/",
    "k-NN of L1C": f"{KNN}/accuracy/s2l1c/",
    "k-NN of S1": f"{KNN}/accuracy/s1rtc/",
    "k-NN fused": f"{KNN}/accuracy/fused/",
    "k-NN fused, balanced": f"{KNN}/balanced accuracy/fused/",
    "k-NN across sensors": f"{CROSS_SENSOR}/accuracy/",
    "same place": f"{RETRIEVAL}/",
}
_STATISTICS = {"entropy": "Entropy of the teacher's output (nats)", "spread": "Spread of the ten best prototypes"}
_STEPS = [*zip(ROWS, [*ROWS][1:], strict=False), (min(ROWS), max(ROWS))]
_INK, _FAINT, _FREQUENT, _RARE = "#1b1f24", "#9aa4ae", "#2f6fb3", "#d1642b"
_POWER = 0.8
_POWER_SAID = "detectable: what a paired test at 5 % finds in four of five such ablations."


def by_row(runs: pd.DataFrame, start: str) -> pd.DataFrame:
    """Returns the mean of the scores whose names begin so: a line per seed, a column per row that has them."""
    found = runs[runs.name.str.startswith(start)].pivot_table("value", "seed", "row")
    return found.reindex(columns=[row for row in ROWS if row in found])


def difference(values: pd.DataFrame, first: str, second: str) -> dict[str, float]:
    """Estimates how much higher the second row is than the first, seed by seed.

    Args:
        values: From :func:`by_row`.
        first: A column.
        second: A column.

    Returns:
        ``mean``, ``low`` and ``high`` (95 % interval by Student's t over the paired differences), ``seeds``, and
        ``detectable``: the difference that a two-sided paired test at 5 % finds in four of five such ablations, by
        the noncentral t distribution. NaN where there are too few seeds.
    """
    pairs = (values[second] - values[first]).dropna().to_numpy()
    found = estimate(100 * pairs)
    ends = {"mean": found.mean / 100, "low": found.low / 100, "high": found.high / 100}
    return ends | {"seeds": len(pairs), "detectable": _detectable(pairs)}


def _detectable(pairs: np.ndarray) -> float:
    n = len(pairs)
    if n < 2 or not np.ptp(pairs):
        return math.nan
    error, edge = stats.sem(pairs), stats.t.ppf(0.975, n - 1)
    # In standard errors; that the test finds a difference of the other sign is less likely than 1 in 10,000.
    return float(error * optimize.brentq(lambda effect: stats.nct.sf(edge, n - 1, effect) - _POWER, 0, 30))


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """Compares each row with the one before, and the last with the first, in each score that both have.

    Args:
        runs: ``row``, ``seed``, ``name`` and ``value`` of every score.

    Returns:
        ``score``, ``from``, ``to``, and what :func:`difference` returns.
    """
    found: list[dict[str, Any]] = []
    for score, start in SCORES.items():
        values = by_row(runs, start)
        pairs = [(a, b) for a, b in _STEPS if a in values and b in values]
        found += [{"score": score, "from": a, "to": b} | difference(values, a, b) for a, b in pairs]
    return pd.DataFrame(found)


def class_differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Compares entropy and spread of prototypes with and without dual centering, class by class.

    The paper's evidence for dual centering: rare classes gain both.

    Args:
        runs: As for :func:`compare`.

    Returns:
        ``statistic``, ``class``, ``frequent``, ``without``, ``with`` and what :func:`difference` returns, also of the
        mean over rare and over frequent classes (``class`` "rare" and "frequent").
    """
    found: list[dict[str, Any]] = []
    without, dual = [*ROWS][2:]
    for statistic in _STATISTICS:
        kinds: dict[bool, list[pd.DataFrame]] = {}
        for title in CLASS_NAMES:
            values = by_row(runs, f"val/{statistic}/{title.lower().replace(' ', '_')}")
            if {without, dual} <= set(values):
                often = bool(by_row(runs, f"frequent/{title}")[dual].iloc[0])
                kinds.setdefault(often, []).append(values)
                found.append({"statistic": statistic, "class": title, "frequent": often, "values": values})
        for often, parts in sorted(kinds.items()):
            mean = pd.concat(parts).groupby(level=0).mean()
            name = "frequent" if often else "rare"
            found.append({"statistic": statistic, "class": name, "frequent": often, "values": mean})
    for line in found:
        values = line.pop("values")
        line |= {"without": values[without].mean(), "with": values[dual].mean()} | difference(values, without, dual)
    return pd.DataFrame(found)


def tables(runs: pd.DataFrame, steps: pd.DataFrame, classes: pd.DataFrame) -> list[Table]:
    """Draws the scores of the rows, their paired differences, and what dual centering does to classes."""
    style: dict[str, Any] = {"box": box.HORIZONTALS, "pad_edge": False, "title_justify": "left"}
    right = [Column(title, justify="right") for title in ROWS.values()]
    scores = Table(Column("mean, 95 % interval", no_wrap=True), *right, title="Ablation", **style)
    for score, start in SCORES.items():
        values = by_row(runs, start)
        if len(values):
            scores.add_row(score, *(_cell(values[row]) if row in values else "–" for row in ROWS))
    paired = Table("", "", title="Differences, paired by seed", caption=_POWER_SAID, caption_justify="left", **style)
    for heading in ("difference", "95 % interval", "detectable"):
        paired.add_column(heading, justify="right", no_wrap=True)
    for line in steps.to_dict("records"):
        whole = (line["from"], line["to"]) == _STEPS[-1]
        paired.add_row(
            line["score"],
            "all together" if whole else ROWS[line["to"]],
            f"{line['mean']:+.3f}",
            _interval(line),
            f"{line['detectable']:.3f}",
        )
    use = Table("", "", *list(ROWS.values())[2:], "difference", "95 % interval", title="Use of prototypes", **style)
    for line in classes.to_dict("records"):
        kind = "" if line["class"] in ("rare", "frequent") else ", frequent" if line["frequent"] else ", rare"
        numbers = f"{line['without']:.3f}", f"{line['with']:.3f}", f"{line['mean']:+.3f}", _interval(line)
        use.add_row(line["statistic"], f"{line['class']}{kind}", *numbers)
    return [scores, paired, use] if len(classes) else [scores, paired]


def _cell(values: pd.Series) -> str:
    found = estimate(100 * values.dropna().to_numpy())
    return f"{found.mean / 100:.3f}" + (f"±{(found.high - found.mean) / 100:.3f}" if found.kind else "")


def _interval(line: dict[str, Any]) -> str:
    return "–" if math.isnan(line["low"]) else f"{line['low']:+.3f} to {line['high']:+.3f}"


def draw_scores(runs: pd.DataFrame) -> "Figure":
    """Draws each score over the rows: a thin line per seed, and the mean with its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(2, -(-len(SCORES) // 2), sharex=True).flatten()
    place = {row: x for x, row in enumerate(ROWS)}
    for ax, (score, start) in zip(axes, SCORES.items(), strict=True):
        values = by_row(runs, start)
        ax.set_visible(len(values) > 0)
        x = [place[row] for row in values]
        for _, seed in values.iterrows():
            ax.plot(x, seed, color=_FAINT, lw=0.8, alpha=0.7)
        for at, row in zip(x, values, strict=True):
            found = estimate(100 * values[row].dropna().to_numpy())
            ends = np.nan_to_num([[found.mean - found.low], [found.high - found.mean]])
            ax.errorbar(at, found.mean / 100, yerr=ends / 100, fmt="o", color=_FREQUENT, capsize=3)
        ax.set_title(score, fontsize=10, loc="left")
        ax.set(xticks=range(len(ROWS)), xlim=(-0.4, len(ROWS) - 0.6))
        ax.set_xticklabels(ROWS.values(), fontsize=8, rotation=30, ha="right")
        _clean(ax)
    seeds = runs.seed.nunique()
    figure.suptitle(
        f"The paper's ablation on held-out cells: {seeds} seeds (gray), mean and 95 % interval", fontsize=11
    )
    return figure


def draw_classes(classes: pd.DataFrame, seeds: int) -> "Figure":
    """Draws entropy and spread of each class without and with dual centering; bars: intervals of the differences."""
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(classes["class"]) if name not in ("rare", "frequent")]
    often = dict(zip(classes["class"], classes.frequent, strict=True))
    names.sort(key=lambda name: often[name])
    figure = Figure(figsize=(10, 0.36 * len(names) + 1.9), layout="constrained")
    for ax, (statistic, title) in zip(figure.subplots(1, 2, sharey=True), _STATISTICS.items(), strict=True):
        lines = classes[classes.statistic == statistic].set_index("class")
        for y, name in enumerate(names):
            if name not in lines.index:
                continue
            line, color = lines.loc[name], _FREQUENT if often[name] else _RARE
            ends = np.nan_to_num([[line["mean"] - line["low"]], [line["high"] - line["mean"]]])
            ax.plot([line["without"], line["with"]], [y, y], color=color, lw=1.5, alpha=0.5)
            ax.plot(line["without"], y, "o", mfc="white", mec=color, ms=6)
            ax.errorbar(line["with"], y, xerr=ends, fmt="o", color=color, ms=6, capsize=3, lw=1)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_yticks(range(len(names)), names)
        _clean(ax)
    ax.invert_yaxis()
    kinds = (("rare class", _RARE, _RARE), ("frequent class", _FREQUENT, _FREQUENT),
             ("+ fusion", _INK, "white"), ("+ dual center", _INK, _INK))  # fmt: skip
    handles = [ax.plot([], [], "o", color=color, mfc=face, label=label)[0] for label, color, face in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"Mean of {seeds} seeds; bars: 95 % interval of the difference, paired by seed", fontsize=10)
    return figure


def _clean(ax: Any) -> None:
    ax.tick_params(labelsize=8)
    ax.grid(color="#e5e8eb", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def write_ablation(runs: pd.DataFrame, out: Path) -> None:
    """Prints the tables; writes ``ablation.csv``, ``ablation.json``, ``ablation.png`` and ``rare_classes.png``.

    Args:
        runs: As for :func:`compare`.
        out: Folder to write to.
    """
    steps = compare(runs)
    classes = class_differences(runs)
    console = Console()
    console.print(*tables(runs, steps, classes), sep="\n")
    runs.to_csv(out / "ablation.csv", index=False, float_format="%.6g")
    seeds = runs.seed.nunique()
    parts = {"differences": steps, "classes": classes}
    found = {name: part.astype(object).where(part.notna(), None).to_dict("records") for name, part in parts.items()}
    write_json(out / "ablation.json", {"rows": ROWS, "seeds": seeds} | found)
    draw_scores(runs).savefig(out / "ablation.png", dpi=130)
    names = ["ablation.csv", "ablation.json", "ablation.png"]
    if len(classes):
        draw_classes(classes, seeds).savefig(out / "rare_classes.png", dpi=130)
        names.append("rare_classes.png")
    console.print("Written:", *(str(out / name) for name in names), soft_wrap=True)

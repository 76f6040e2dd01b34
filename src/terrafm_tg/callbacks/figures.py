"""Pictures of a run: its curves, and what dual centering does for each land-cover class."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from terrafm_tg.evaluation.held_out_report import SHORT_TITLES
from terrafm_tg.land_cover import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _FREQUENT, _RARE = "#1b1f24", "#9aa4ae", "#2f6fb3", "#d1642b"
#: Colour by the sensor of the queries, and line by the sensor of the bank where that is another.
_QUERY = {"fused": _INK, "s1rtc": _RARE, "s2l1c": "#3f9b6c", "s2l2a": _FREQUENT}
_BANK = {"s1rtc": "--", "s2l1c": "-.", "s2l2a": ":"}
_PANELS = {
    "train/loss": "Training loss (nats)",
    "train/teacher_entropy": "Entropy of the teacher's output (nats)",
    "train/kl": "KL divergence, teacher to student (nats)",
    "train/embedding_std": "Standard deviation of the embeddings",
    "train/effective_rank": "Effective rank of the embeddings",
}


def draw_curves(metrics: pd.DataFrame, prototypes: int) -> "Figure | None":
    """Draws loss, entropy, KL divergence, spread, rank and k-NN over the steps; None where nothing was logged.

    Args:
        metrics: The table that ``CSVLogger`` wrote.
        prototypes: Number of prototypes K, whose ln K is drawn beside loss and entropy.
    """
    from matplotlib.figure import Figure

    panels = {name: title for name, title in _PANELS.items() if name in metrics}
    if not panels:
        return None
    figure = Figure(figsize=(12.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for ax, (name, title) in zip(axes, panels.items(), strict=False):
        values = metrics[["step", name]].dropna()
        ax.plot(values["step"], values[name], color=_FREQUENT, alpha=0.3, lw=1)
        smooth = values[name].rolling(max(1, len(values) // 20), min_periods=1, center=True).mean()
        ax.plot(values["step"], smooth, color=_FREQUENT, lw=1.8)
        if name in ("train/loss", "train/teacher_entropy"):
            ax.axhline(math.log(prototypes), color=_FAINT, ls="--", lw=1)
            ax.annotate(
                f"ln K = {math.log(prototypes):.2f}: uniform", (1, math.log(prototypes)), (0, 2),
                xycoords=ax.get_yaxis_transform(), textcoords="offset points", ha="right", fontsize=8,
                color=_FAINT,
            )  # fmt: skip
            ax.margins(y=0.12)  # room for the words
        _style(ax, title)
    for ax in axes[len(panels) : -1]:
        ax.set_visible(False)
    _draw_knn(axes[-1], metrics)
    return figure


def _draw_knn(ax: "Axes", metrics: pd.DataFrame) -> None:
    names = [name for name in metrics if name.startswith("val/knn_")]
    ax.set_visible(bool(names))
    for name in sorted(names, key=lambda name: ("_to_" in name, name)):
        values = metrics[["step", name]].dropna()
        bank, _, query = name.removeprefix("val/knn_").rpartition("_to_")
        names_of = [SHORT_TITLES.get(part, part) for part in (bank, query) if part]
        style: dict[str, Any] = {"ls": _BANK.get(bank, "-"), "color": _QUERY.get(query, _FAINT)}
        ax.plot(
            values["step"], values[name], marker="o", ms=3, lw=1.1 if bank else 2, label=" → ".join(names_of),
            **style,
        )  # fmt: skip
    if names:  # beside the panel, where no line runs
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1.02), title_fontsize=7,
                  title="bank → queries" if any("_to_" in name for name in names) else None)  # fmt: skip
    _style(ax, "k-NN accuracy on held-out cells")


def draw_land_cover(metrics: pd.DataFrame, prototypes: int, frequent: Sequence[bool]) -> "Figure | None":
    """Draws teacher entropy and spread of prototypes per class, at the first and the last validation.

    The paper's own evidence for dual centering: rare classes gain both.

    Args:
        metrics: The table that ``CSVLogger`` wrote.
        prototypes: Number of prototypes K.
        frequent: Whether each class (0-11) counts as frequent.
    """
    from matplotlib.figure import Figure

    titles = {title.lower().replace(" ", "_"): title for title in CLASS_NAMES}
    present = [slug for slug in titles if f"val/entropy/{slug}" in metrics]
    if not present:
        return None
    figure = Figure(figsize=(10, 0.36 * len(present) + 1.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("entropy", f"Entropy of the teacher's output (nats; uniform: {math.log(prototypes):.1f})"),
        ("spread", "Spread of the ten best prototypes (1: none shared)"),
    )
    for ax, (name, title) in zip(axes, panels, strict=True):
        for y, slug in enumerate(present):
            values = metrics.get(f"val/{name}/{slug}", pd.Series(dtype=float)).dropna()
            if values.empty:
                continue
            first, last = values.iloc[0], values.iloc[-1]
            color = _FREQUENT if frequent[list(titles).index(slug)] else _RARE
            ax.plot([first, last], [y, y], color=color, lw=1.5, alpha=0.5)
            ax.plot(first, y, "o", mfc="white", mec=color, ms=6)
            ax.plot(last, y, "o", color=color, ms=7)
        _style(ax, title, xlabel="")
    axes[0].set_yticks(range(len(present)), [titles[slug] for slug in present])
    axes[0].invert_yaxis()
    handles = [
        axes[1].plot([], [], "o", color=color, mfc=face, label=label)[0]
        for label, color, face in (
            ("frequent class", _FREQUENT, _FREQUENT),
            ("rare class", _RARE, _RARE),
            ("first validation", _INK, "white"),
            ("last validation", _INK, _INK),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _style(ax: "Axes", title: str, xlabel: str = "optimizer step") -> None:
    ax.set_title(title, fontsize=10, loc="left", color=_INK)
    ax.set_xlabel(xlabel, fontsize=8, color=_INK)
    ax.tick_params(labelsize=8)
    ax.grid(color="#e5e8eb", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)

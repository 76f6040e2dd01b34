"""At the end of a run: where the checkpoint is, what to do next, and pictures of how it went."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from terrafm_tg.evaluation.held_out_report import SHORT_TITLES
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.losses import DualCenter
from terrafm_tg.tasks import TerraFM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _FREQUENT, _RARE = "#1b1f24", "#9aa4ae", "#2f6fb3", "#d1642b"
#: Color by the sensor of the queries, and line by the sensor of the bank where that is another.
_QUERY = {"fused": _INK, "s1rtc": _RARE, "s2l1c": "#3f9b6c", "s2l2a": _FREQUENT}
_BANK = {"s1rtc": "--", "s2l1c": "-.", "s2l2a": ":"}
_PANELS = {
    "train/loss": "Training loss (nats)",
    "train/teacher_entropy": "Entropy of the teacher's output (nats)",
    "train/kl": "KL divergence, teacher to student (nats)",
    "train/embedding_std": "Standard deviation of the embeddings",
    "train/effective_rank": "Effective rank of the embeddings",
}


class RunSummary(Callback):
    """Prints the checkpoint, the score and the next step of any task, and draws a pretraining's curves.

    The pictures need a ``CSVLogger`` among the Trainer's loggers: ``curves.png`` (loss, teacher entropy, KL,
    spread of the embeddings, k-NN) and ``land_cover.png`` (teacher entropy and spread of prototypes per
    class).
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._trained = time.monotonic(), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called only where there is something to train."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and draws, on the first rank."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        lines = [f"{trainer.global_step} steps, {trainer.current_epoch} epochs in {minutes} min {seconds} s"]
        if not self._trained:
            lines.append("nothing was left to do: raise `trainer.max_epochs`, or `trainer.max_steps`, to go on")
        pretrained = isinstance(pl_module, TerraFM)
        if pretrained:
            figures = [f"figure        {path}" for path in _draw(trainer, pl_module)]
            lines += [*_next_steps(trainer, pl_module), *figures]
        else:
            lines += [*_scores(trainer), *_uses(trainer)]
        console = Console(soft_wrap=True, highlight=False)
        console.print("Pretrained" if pretrained else "Trained", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)


def _draw(trainer: Trainer, pl_module: LightningModule) -> list[Path]:
    logger = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
    if logger is None:
        return []
    logger.save()
    folder = Path(logger.log_dir)
    if not (folder / "metrics.csv").exists():
        return []
    metrics, prototypes = pd.read_csv(folder / "metrics.csv"), pl_module.hparams["head"]["prototypes"]
    frequent = cast(DualCenter, pl_module.center).frequent.tolist()
    figures = {
        folder / "curves.png": draw_curves(metrics, prototypes),
        folder / "land_cover.png": draw_land_cover(metrics, prototypes, frequent),
    }
    for path, figure in figures.items():
        if figure is not None:
            figure.savefig(path, dpi=130)
    return [path for path, figure in figures.items() if figure is not None]


def checkpoint_path(trainer: Trainer) -> Path | None:
    """The run's last checkpoint, or else the one that it goes on from; None where there is neither."""
    for name in ("last_model_path", "best_model_path"):
        for callback in trainer.checkpoint_callbacks:
            path, folder = getattr(callback, name, ""), getattr(callback, "dirpath", None) or ""
            if path and Path(path).is_relative_to(folder):  # Lightning restores the best of the run before
                return Path(path)
    return None if trainer.ckpt_path is None else Path(trainer.ckpt_path)


def _next_steps(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    path = checkpoint_path(trainer)
    if path is None:
        return ["no checkpoint was written: add a ModelCheckpoint to the Trainer's callbacks"]
    out = path.with_name("encoder")
    depth = pl_module.hparams["depth"]
    shape = "" if depth is None else f", depth={depth}"
    return [
        f"checkpoint    {path}",
        f"export it     terrafm export {path} {out}",
        f'and use it    get_model("{pl_module.hparams["model"]}"{shape}, weights="{out}.safetensors")',
    ]


def _scores(trainer: Trainer) -> list[str]:
    """The monitored score of the best checkpoint; without one, the last losses."""
    for callback in trainer.checkpoint_callbacks:
        monitor, value = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
        if monitor and value is not None:
            return [f"best score    {monitor} = {float(value):.4g}"]
    losses = {name: value for name, value in trainer.callback_metrics.items() if name.endswith("_loss")}
    return [f"last {name:<9}{float(value):.4g}" for name, value in losses.items()]


def _uses(trainer: Trainer) -> list[str]:
    """The best checkpoint, and the commands that use it."""
    best = (getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks)
    path = next((Path(file) for file in best if file), checkpoint_path(trainer))
    if path is None:
        return ["no checkpoint was written: add a ModelCheckpoint to the Trainer's callbacks"]
    configs = [Path(folder, "config.yaml") for folder in (trainer.log_dir, trainer.default_root_dir) if folder]
    config = next((file for file in configs if file.exists()), Path("CONFIG"))
    return [
        f"checkpoint    {path}",
        f"test it       terrafm test --config {config} --ckpt_path {path}",
        f"and use it    terrafm predict --config {config} --ckpt_path {path}",
    ]


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
        values = metrics.set_index("step")[name].dropna()
        ax.plot(values, color=_FREQUENT, alpha=0.3, lw=1)
        ax.plot(values.rolling(max(1, len(values) // 20), 1, center=True).mean(), color=_FREQUENT, lw=1.8)
        if name in ("train/loss", "train/teacher_entropy"):
            ax.axhline(math.log(prototypes), color=_FAINT, ls="--", lw=1)
            ax.text(1, math.log(prototypes), f"ln K = {math.log(prototypes):.2f}: uniform", ha="right", va="bottom",
                    transform=ax.get_yaxis_transform(), fontsize=8, color=_FAINT)  # fmt: skip
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
        bank, _, query = name.removeprefix("val/knn_").rpartition("_to_")
        label = " → ".join(SHORT_TITLES.get(part, part) for part in (bank, query) if part)
        ax.plot(metrics.set_index("step")[name].dropna(), marker="o", ms=3, lw=1.1 if bank else 2, label=label,
                ls=_BANK.get(bank, "-"), color=_QUERY.get(query, _FAINT))  # fmt: skip
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

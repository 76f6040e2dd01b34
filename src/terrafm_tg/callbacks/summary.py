"""At the end of a run: where the checkpoint is, what to do next, and pictures of how it went."""

import inspect
import time
from pathlib import Path
from typing import cast

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from terrafm_tg.losses import DualCenter
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.settings import flatten, plain_settings


class RunSummary(Callback):
    """Prints the checkpoint, the score and the next step of any task, and draws a pretraining's curves.

    The pictures need a ``CSVLogger`` among the Trainer's loggers: ``curves.png`` (loss, teacher entropy, KL,
    spread of the embeddings, k-NN) and ``land_cover.png`` (teacher entropy and spread of prototypes per
    class).

    Args:
        figures: Whether to draw.
    """

    def __init__(self, figures: bool = True) -> None:
        self.figures = figures
        self._start = time.monotonic()
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called only where there is something to train."""
        self._trained = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and names the settings that are not the paper's base recipe."""
        self._start, self._trained = time.monotonic(), False
        changed = _other_settings(pl_module) if isinstance(pl_module, TerraFM) else []
        if trainer.is_global_zero and changed:
            _print("Not the paper's base recipe (its value in brackets)", changed, [])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and draws, on the first rank."""
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
            pretrained = isinstance(pl_module, TerraFM)
            paths = self._draw(trainer, pl_module) if self.figures and pretrained else []
            lines = [
                f"{trainer.global_step} steps, {trainer.current_epoch} epochs in {minutes} min {seconds} s"
            ]
            if not self._trained:
                lines.append(
                    "nothing was left to do: raise `trainer.max_epochs`, or `trainer.max_steps`, to go on"
                )
            if pretrained:
                _print("Pretrained", lines + _next_steps(trainer, pl_module), paths)
            else:
                _print("Trained", lines + _scores(trainer) + _uses(trainer), [])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on after an interruption; not of a run that did not begin, such as from a wrong checkpoint."""
        path = checkpoint_path(trainer)
        if trainer.is_global_zero and path is not None and self._trained:
            _print("Interrupted", [f"step {trainer.global_step}", f"resume with --ckpt_path {path}"], [])

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> list[Path]:
        from .figures import draw_curves, draw_land_cover

        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if not loggers:
            return []
        loggers[0].save()
        folder = Path(loggers[0].log_dir)
        if not (folder / "metrics.csv").exists():
            return []
        metrics = pd.read_csv(folder / "metrics.csv")
        frequent = cast(DualCenter, pl_module.center).frequent.tolist()
        figures = {
            "curves.png": draw_curves(metrics, pl_module.hparams["head"]["prototypes"]),
            "land_cover.png": draw_land_cover(metrics, pl_module.hparams["head"]["prototypes"], frequent),
        }
        drawn = {folder / name: figure for name, figure in figures.items() if figure is not None}
        for path, figure in drawn.items():
            figure.savefig(path, dpi=130)
        return list(drawn)


def checkpoint_path(trainer: Trainer) -> Path | None:
    """The run's last checkpoint, or else the one that it goes on from; None where there is neither."""
    for name in ("last_model_path", "best_model_path"):
        for callback in trainer.checkpoint_callbacks:
            path, folder = getattr(callback, name, ""), getattr(callback, "dirpath", None) or ""
            if path and Path(path).is_relative_to(folder):  # Lightning restores the best of the run before
                return Path(path)
    return None if trainer.ckpt_path is None else Path(trainer.ckpt_path)


def _other_settings(pl_module: LightningModule) -> list[str]:
    """The task's settings that differ from their defaults, which are the paper's; not those of place and chance."""
    parameters = inspect.signature(type(pl_module).__init__).parameters
    given = {name: x.default for name, x in parameters.items() if x.default is not inspect.Parameter.empty}
    defaults = flatten(plain_settings(given))
    return [
        f"{name:<35}{value} ({defaults[name]})"
        for name, value in flatten(plain_settings(pl_module.hparams)).items()
        if name in defaults and name != "seed" and value != defaults[name]
    ]


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
    configs = [
        Path(folder, "config.yaml") for folder in (trainer.log_dir, trainer.default_root_dir) if folder
    ]
    config = next((file for file in configs if file.exists()), Path("CONFIG"))
    return [
        f"checkpoint    {path}",
        f"test it       terrafm test --config {config} --ckpt_path {path}",
        f"and use it    terrafm predict --config {config} --ckpt_path {path}",
    ]


def _print(title: str, lines: list[str], paths: list[Path]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{title}[/bold]")
    for line in [*lines, *(f"figure        {path}" for path in paths)]:
        console.print(f"  {line}", markup=False)

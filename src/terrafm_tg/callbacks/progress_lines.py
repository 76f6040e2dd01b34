"""Progress as lines of text, for output that goes to a file: a bar draws nothing there until it ends."""

import math
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from terrafm_tg.utils.arguments import NOT_NEGATIVE, checked


@checked(every=NOT_NEGATIVE)
class ProgressLines(ProgressBar):
    """Prints a line now and then: where the run is, its metrics of the progress bar, its speed and the time left.

    The command takes it in a bar's place where its output is no terminal, such as the log of a SLURM job. A line reads
    the metrics, for which the device is waited for, and no step between two lines does.

    Args:
        every: Seconds between two lines.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self.every = every
        self._shown = True
        self._first = True
        self._reset()

    def disable(self) -> None:
        """Prints nothing any more: Lightning's wish for all processes but the first."""
        self._shown = False

    def enable(self) -> None:
        """Prints again."""
        self._shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock at the first step of this process."""
        self._first = True
        self._reset(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line where it is time for one, after the run's first batch and after an epoch's last."""
        if not self._due(self._first or batch_idx + 1 == self.total_train_batches):
            return
        self._first = False
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        seconds = time.monotonic() - self._time
        rate = (step - self._step) / seconds if seconds else 0.0
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version
        parts = [f"epoch {_of(trainer.current_epoch + 1, trainer.max_epochs or 0)}", f"step {_of(step, total)}"]
        parts += [f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in metrics.items()]
        if rate:
            parts.append(f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step")
            if total < math.inf:
                parts.append(f"{timedelta(seconds=round((total - step) / rate))} left")
        self._reset(step)
        print(", ".join(parts), flush=True)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A line where it is time for one."""
        self._batch("validation", "total_val_batches_current_dataloader", *args)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A line where it is time for one."""
        self._batch("test", "total_test_batches_current_dataloader", *args)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A line where it is time for one."""
        self._batch("prediction", "total_predict_batches_current_dataloader", *args)

    def _batch(self, name: str, total: str, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._due(False):
            self.has_dataloader_changed(dataloader_idx)  # the totals are those of the loader named last
            print(f"{name}, batch {_of(batch_idx + 1, getattr(self, total))}", flush=True)
            self._told = time.monotonic()

    def _due(self, ends: bool) -> bool:
        return self._shown and (ends or time.monotonic() - self._told >= self.every)

    def _reset(self, step: int = 0) -> None:
        self._time = self._told = time.monotonic()
        self._step = step


def _of(number: int, total: float) -> str:
    """A number and how many there are, where that is known."""
    return f"{number:,} of {total:,}" if 0 < total < math.inf else f"{number:,}"

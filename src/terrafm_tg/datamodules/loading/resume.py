"""What a run that goes on from a checkpoint has to say and to count anew."""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

_log = logging.getLogger(__name__)

#: Tiles of an optimiser step, over all processes, as part of a datamodule's state.
STEP_TILES = "step_tiles"


def fits(trainer: Trainer | None) -> bool:
    """Whether a trainer is there and trains."""
    return trainer is not None and trainer.state.fn == TrainerFn.FITTING


def warn_of_changes(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Warns of each setting that decides which tiles come when and is not what it was.

    Args:
        saved: The checkpoint's state.
        present: This run's.
    """
    for name, value in present.items():
        before = saved.get(name, value)
        if name == STEP_TILES and before != value:
            _log.warning(
                "The checkpoint was written with %d tiles a step and this run has %d: choose `batch_size` (per "
                "process) and `accumulate_grad_batches` so that their product with the number of processes is "
                "%d, or the steps differ from those of an uninterrupted run.",
                before,
                value,
                before,
            )
        elif _words(before) != _words(value):
            _log.warning(
                "`%s` was %s when the checkpoint was written and is %s now: other tiles follow than in "
                "an uninterrupted run.",
                name,
                before,
                value,
            )


def recount(trainer: Trainer, batches: int, left: int) -> None:
    """Tells a trainer, which counts an epoch's batches, how many of this run's own are left of it.

    Its checkpoint counts those of the run before, which had others if it had another number of processes.

    Args:
        trainer: Trains.
        batches: Of a whole epoch, in this process.
        left: Of them, what is still to come.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.is_last_batch |= left == 0
    current = progress.current
    moved = batches - (0 if progress.is_last_batch else left) - current.ready
    for name in ("ready", "started", "processed", "completed"):  # they differ by the hook that saved
        setattr(current, name, getattr(current, name) + moved)


def _words(value: Any) -> list[str]:
    """A setting as words, so that ``("land_cover",)`` from Python equals ``["land_cover"]`` from YAML."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]

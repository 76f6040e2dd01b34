"""A DataLoader that a checkpoint can resume at the very batch at which it stopped."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, get_worker_info

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.arguments import checked

from .faults import DamageLog, FaultTolerant, collate
from .ring import AVAILABLE, Ring, SlotBatch, SlotWriter

_log = logging.getLogger(__name__)


@checked()
class TileDataLoader(DataLoader[Any]):
    """DataLoader of tile batches with a state: the epoch, and how far its list has been handed out.

    Lightning saves the state of such a loader in its checkpoints. Batches count when the trainer takes them,
    not when a worker has prefetched them, and only those of whole optimizer steps: the gradients of a step
    that was under way are not in the checkpoint. As the state is a position in the epoch's one list, a run on
    another number of processes, or with other batches, goes on at the very same tile.

    Nothing starts before the first batch is asked for, because Lightning creates the iterator first and tells
    the sampler its epoch afterwards: workers that prefetch at once would begin with the wrong epoch after a
    resume. A checkpoint of an epoch's last batch resumes with the first one of the next epoch.

    The loader draws no number from torch's global generator, so that a resumed run, which creates other
    iterators, keeps the random numbers of one that was never interrupted.

    Args:
        dataset: A :class:`~terrafm_tg.datamodules.loading.faults.FaultTolerant` dataset.
        damage: Counts and limits replaced samples; a log of its own where None.
        ring: Whether batches come from worker processes through shared memory that is made once
            (:mod:`terrafm_tg.datamodules.loading.ring`); otherwise, and where the system has no such memory, each
            batch comes in shared memory of its own, which is slower. The batches are the same.
        trainer: Trains with the batches, and counts them; a checkpoint that it resumes from may have counted others.
        **kwargs: Those of ``torch.utils.data.DataLoader``; with a ``LandCoverSampler`` as ``sampler`` it can
            be resumed.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        damage: DamageLog | None = None,
        ring: bool = True,
        trainer: Trainer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, **{"collate_fn": collate, "generator": torch.Generator(), **kwargs})
        self.damage = damage or DamageLog()
        self.ring = ring
        self.trainer = trainer
        self._epoch = self._batches = self._start = 0
        self._resumed = False

    def __iter__(self) -> Any:
        """Yield the batches of the sampler's epoch; after `load_state_dict`, those not handed out yet."""
        resumed, self._resumed = self._resumed, False
        if isinstance(self.sampler, LandCoverSampler):
            self._start = self._start if resumed and self.sampler.epoch == self._epoch else 0
            self._epoch = self.sampler.epoch
            self.sampler.start = self._start
        self._batches = 0
        for batch in super().__iter__():
            batch = self.damage.check(batch.copy() if isinstance(batch, SlotBatch) else batch)
            self._batches += 1
            yield batch

    def _get_iterator(self) -> Any:
        """Starts the workers, with a ring of their own; torch calls this once for each set of workers."""
        ring = self._make_ring()
        if ring is None:
            return super()._get_iterator()
        given = self.worker_init_fn
        self.worker_init_fn = partial(_take_slots, ring, self.batch_size or 1, given)
        try:
            batches: Any = super()._get_iterator()
        finally:
            self.worker_init_fn = given
        batches.ring = ring  # lives as long as the workers do
        return batches

    def _make_ring(self) -> Ring | None:
        if not (self.ring and AVAILABLE and self.num_workers and isinstance(self.dataset, FaultTolerant)):
            return None
        # A worker has `prefetch_factor` batches to do at any time, while one of its batches is being copied.
        slots = (self.prefetch_factor or 0) + 1
        try:
            return Ring(self.num_workers, slots, (self.batch_size or 1) * largest_sample(self.dataset.dataset))
        except OSError as error:
            _log.warning("No shared memory for a ring (%s): batches come more slowly, one by one.", error)
            return None

    def state_dict(self) -> dict[str, int]:
        """Returns the ``epoch``, the ``position`` in its list behind whole optimizer steps, and what this rests on.

        That is ``step``, the tiles of an optimizer step over all processes, and ``length``, those of an epoch.
        """
        batch, step, length = self._frame()
        done = self._batches * batch
        position = self._start + done - done % step
        return {"epoch": self._epoch, "position": position, "step": step, "length": length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where the epoch's list had not been handed out when ``state`` was taken."""
        batch, step, length = self._frame()
        self._epoch, self._start, self._batches, self._resumed = state["epoch"], state["position"], 0, True
        left = max(0, length - self._start) // step * (step // batch)
        if left == 0 or state["length"] - self._start < state["step"]:
            left, self._epoch, self._start = 0, self._epoch + 1, 0
        if isinstance(self.sampler, LandCoverSampler):
            self.sampler.set_epoch(self._epoch)
        if self.trainer is not None:
            self._count(self.trainer, left)

    def _count(self, trainer: Trainer, left: int) -> None:
        """Tells the trainer how many of its own batches are left: its checkpoint counts those of the run before."""
        progress, epochs = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop.epoch_progress
        current: Any = progress.current
        counted: Any = epochs.current
        progress.is_last_batch |= left == 0
        if left == 0 and current.completed < current.processed and counted.processed < counted.ready:
            # Saved behind the epoch's last batch: Lightning would run the next epoch without counting it as begun, and
            # take a checkpoint of its middle for one of its end.
            epochs.increment_processed()
            epochs.increment_completed()
            progress.is_last_batch = False
        moved = len(self) - (0 if progress.is_last_batch else left) - current.ready
        for name in ("ready", "started", "processed", "completed"):  # they differ by the hook that saved
            setattr(current, name, getattr(current, name) + moved)

    def _frame(self) -> tuple[int, int, int]:
        """Tiles of a batch and of an optimizer step, over all processes, and of an epoch."""
        batch, length = self.batch_size or 1, len(self)
        if isinstance(self.sampler, LandCoverSampler):
            batch, length = batch * self.sampler.world_size, self.sampler.global_length
            return batch, max(self.sampler.step, batch), length
        return batch, batch, length * batch


def largest_sample(tiles: TileDataset) -> int:
    """Bytes that the images of a sample take at most: all bands as 4 byte numbers at 10 m, and some to align."""
    return 4 * tiles.tile_size**2 * sum(len(m.bands) for m in tiles.modalities) + 4096


def _take_slots(ring: Ring, batch_size: int, then: Callable[[int], None] | None, worker: int) -> None:
    """Lets a worker read into its slots, before the user's own function runs in it."""
    # What is sent to all processes is for the trainer, which takes more batches to end its step, and then ends workers.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_trainer, daemon=True).start()
    info: Any = get_worker_info()
    info.dataset.slots = SlotWriter(ring, worker, batch_size)
    if then is not None:
        then(worker)


def _obey_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

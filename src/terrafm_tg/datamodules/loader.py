"""A DataLoader that a checkpoint can resume at the very batch at which it stopped."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from terrafm_tg.datasets.base import TileDataset
from terrafm_tg.samplers import LandCoverSampler

from .faults import DamageLog, FaultTolerant, collate
from .ring import AVAILABLE, Ring, SlotBatch
from .slots import SlotWriter

_log = logging.getLogger(__name__)


class TileDataLoader(DataLoader[Any]):
    """DataLoader of tile batches with a state: the epoch, and the batches handed out in it.

    Lightning saves the state of such a loader in its checkpoints. Batches count when the trainer takes them,
    not when a worker has prefetched them. Nothing starts before the first batch is asked for, because
    Lightning creates the iterator first and tells the sampler its epoch afterwards: workers that prefetch at
    once would begin with the wrong epoch after a resume. A checkpoint of an epoch's last batch resumes with
    the first one of the next epoch.

    The loader draws no number from torch's global generator, so that a resumed run, which creates other
    iterators, keeps the random numbers of one that was never interrupted.

    Args:
        dataset: A :class:`~terrafm_tg.datamodules.faults.FaultTolerant` dataset.
        damage: Counts and limits replaced samples; a log of its own where None.
        ring: Whether batches come from worker processes through shared memory that is made once
            (:mod:`terrafm_tg.datamodules.ring`); otherwise, and where the system has no such memory, each
            batch comes in shared memory of its own, which is slower. The batches are the same.
        **kwargs: Those of ``torch.utils.data.DataLoader``; with a ``LandCoverSampler`` as ``sampler`` it can
            be resumed.
    """

    def __init__(
        self, dataset: Dataset[Any], damage: DamageLog | None = None, ring: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(dataset, **{"collate_fn": collate, "generator": torch.Generator(), **kwargs})
        self.damage = damage or DamageLog()
        self.ring = ring
        self._epoch = self._batches = self._skip = 0

    def __iter__(self) -> Any:
        """Yield the batches of the sampler's epoch; after `load_state_dict`, those not handed out yet."""
        skip, self._skip = self._skip, 0
        if isinstance(self.sampler, LandCoverSampler):
            skip = skip if self.sampler.epoch == self._epoch else 0
            self._epoch = self.sampler.epoch
            self.sampler.start = skip * (self.batch_size or 1)
        self._batches = skip
        for batch in super().__iter__():
            batch = self.damage.check(batch.copy() if isinstance(batch, SlotBatch) else batch)
            self._batches += 1
            yield batch

    def _get_iterator(self) -> Any:
        """Start the workers, with a ring of their own; torch calls this once for each set of workers."""
        ring = self._make_ring()
        if ring is None:
            return super()._get_iterator()
        given = self.worker_init_fn
        self.worker_init_fn = partial(take_slots, ring, self.batch_size or 1, given)
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
            return Ring(
                self.num_workers, slots, (self.batch_size or 1) * largest_sample(self.dataset.dataset)
            )
        except OSError as error:
            _log.warning("No shared memory for a ring (%s): batches come more slowly, one by one.", error)
            return None

    def state_dict(self) -> dict[str, int]:
        """``epoch``, ``batches`` handed out in it, and what these rest on: ``batch_size`` and ``length``."""
        return {"epoch": self._epoch, "batches": self._batches, **self._frame()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batches that were handed out when ``state`` was taken.

        Where the batch or the epoch's length differ from the checkpoint's, that is said, and the epoch goes
        on at the last whole batch before the one at which it stopped.
        """
        frame = self._frame()
        meanings = {"batch_size": "tiles a batch over all processes", "length": "draws an epoch"}
        for name, meaning in meanings.items():
            if state[name] != frame[name]:
                _log.warning(
                    "The checkpoint was written with %d %s and this run has %d: its batches differ from "
                    "those of an uninterrupted run.",
                    state[name],
                    meaning,
                    frame[name],
                )
        self._epoch = state["epoch"]
        self._skip = state["batches"] * state["batch_size"] // frame["batch_size"]
        if self._skip >= len(self):
            self._epoch, self._skip = self._epoch + 1, 0
        self._batches = self._skip
        if isinstance(self.sampler, LandCoverSampler):
            self.sampler.set_epoch(self._epoch)

    def _frame(self) -> dict[str, int]:
        ranks, length = 1, len(self)
        if isinstance(self.sampler, LandCoverSampler):
            ranks, length = self.sampler.world_size, self.sampler.global_length
        return {"batch_size": (self.batch_size or 1) * ranks, "length": length}


def largest_sample(tiles: TileDataset) -> int:
    """Bytes that the images of a sample take at most: all bands as 4 byte numbers at 10 m, and some to align."""
    return 4 * tiles.tile_size**2 * sum(len(m.bands) for m in tiles.modalities) + 4096


def take_slots(ring: Ring, batch_size: int, then: Callable[[int], None] | None, worker: int) -> None:
    """Lets a worker read into its slots: what runs first in it.

    Args:
        ring: The memory.
        batch_size: Most tiles of a batch.
        then: The user's own function to run.
        worker: Number of the worker.
    """
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, FaultTolerant):
        info.dataset.slots = SlotWriter(ring, worker, batch_size)
    if then is not None:
        then(worker)

"""A DataLoader that a checkpoint can resume at the very batch at which it stopped."""

import logging
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from terrafm_tg.samplers import LandCoverSampler

from .faults import DamageLog, collate

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
        **kwargs: Those of ``torch.utils.data.DataLoader``; with a ``LandCoverSampler`` as ``sampler`` it can
            be resumed.
    """

    def __init__(self, dataset: Dataset[Any], damage: DamageLog | None = None, **kwargs: Any) -> None:
        super().__init__(dataset, **{"collate_fn": collate, "generator": torch.Generator(), **kwargs})
        self.damage = damage or DamageLog()
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
            batch = self.damage.check(batch)
            self._batches += 1
            yield batch

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

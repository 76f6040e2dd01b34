"""Damaged tiles cost one sample each: replaced in the workers; counted and named in the main process."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from terrafm_tg.datasets.tiles.dataset import TileDataset, TileSlice, collate_tiles
from terrafm_tg.errors import DamagedTileError, TerraFMError, UnfitTileError
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.arguments import SHARE, checked
from terrafm_tg.utils.remote import OF_THE_FILE, RemoteError

from .ring import SlotBatch, SlotWriter

_log = logging.getLogger(__name__)

#: Damaged samples from which on their share is judged, so that the first one does not end a run.
MIN_DAMAGED = 10
#: Replacements tried for one sample.
ATTEMPTS = 10
# Seconds before the first replacement of a tile of a server that does not answer, and before each at most: together
# eight minutes, in which it may come back.
_FIRST, _LONGEST = 1.0, 120.0


@checked()
class FaultTolerant(Dataset[Any]):
    """Hands out another tile where one is damaged.

    The replacement is drawn with the sampler's weights by a function of (seed, epoch, position, attempt), so
    every run and every number of workers replaces alike. It carries the position of the draw, and ``damaged``
    (int64): the index row of the tile that it stands in for, -1 for an undamaged sample.

    Errors are handed out as values: raised in a worker they would reach the user inside a traceback of
    torch's.

    Args:
        dataset: Tiles.
        sampler: Draws the replacements, among its own rows.
    """

    def __init__(self, dataset: TileDataset, sampler: LandCoverSampler) -> None:
        self.dataset, self.sampler = dataset, sampler
        #: In a worker that owns slots of a ring: what reads batches into them.
        self.slots: SlotWriter | None = None

    def __len__(self) -> int:
        """Tiles in the index."""
        return len(self.dataset)

    def __getitem__(self, query: TileSlice | int) -> dict[str, Any] | TerraFMError:
        """The sample, one that stands in for it, or what is wrong."""
        return self._tolerate(query, self.dataset.__getitem__)

    def __getitems__(self, queries: Sequence[TileSlice | int]) -> Sequence[Any] | SlotBatch:
        """The samples of a batch; in a worker that owns slots, the batch, with its images in the next one.

        Where tiles of another size or type meet, the samples have memory of their own.
        """
        self.dataset.expect([query if isinstance(query, int) else query.row for query in queries])
        if (slots := self.slots) is not None:
            slots.begin()
            try:
                for query in queries:
                    sample = self._tolerate(query, lambda tile: self.dataset.read(tile, slots.places()))
                    if isinstance(sample, TerraFMError):
                        return [sample]
                    slots.keep(sample)
                return slots.collate()
            except UnfitTileError:
                slots.forget()
            except TerraFMError as error:
                return [error]
        return [self[query] for query in queries]

    def _tolerate(
        self, query: TileSlice | int, read: Callable[[TileSlice], dict[str, Any]]
    ) -> dict[str, Any] | TerraFMError:
        if isinstance(query, int):  # torch's own samplers, which `Trainer(overfit_batches=…)` puts in
            query = self.dataset.tile_slice(query, position=query)
        tile, fault = query, None
        for attempt in range(ATTEMPTS + 1):
            try:
                sample = read(tile)
            except DamagedTileError as error:
                fault = fault or error
                cause = error.__cause__
                if attempt < ATTEMPTS and isinstance(cause, RemoteError) and not isinstance(cause, OF_THE_FILE):
                    time.sleep(min(_FIRST * 2**attempt, _LONGEST))  # another tile of a server that is away, is, too
                key = [self.sampler.seed, 3, query.epoch, query.position + 1, query.row, attempt]
                row = self.sampler.random_row(np.random.default_rng(key))
                tile = self.dataset.tile_slice(row, query.position, query.epoch)
            except TerraFMError as error:
                return error
            else:
                sample["damaged"] = torch.tensor(-1 if fault is None else query.row)
                return sample if fault is None else sample | {"fault": fault}
        return TerraFMError(f"{fault} Nor can {ATTEMPTS} tiles drawn in its place: check the files.")


def collate(samples: Sequence[Any] | SlotBatch) -> dict[str, Any] | SlotBatch | TerraFMError:
    """Batches what :class:`FaultTolerant` hands out; ``faults`` lists the errors of the replaced tiles."""
    if isinstance(samples, SlotBatch):
        return samples
    for sample in samples:
        if isinstance(sample, TerraFMError):
            return sample
    faults = [sample.pop("fault") for sample in samples if "fault" in sample]
    try:
        return collate_tiles(samples) | {"faults": faults}
    except TerraFMError as error:
        return error


@checked(max_share=SHARE)
class DamageLog:
    """Counts samples and replaced ones, names each damaged tile once, and ends a run that meets too many.

    Args:
        max_share: Largest share of replaced samples among those seen, judged from the tenth on (0: none is
            allowed).
    """

    def __init__(self, max_share: float = 0.05) -> None:
        self.max_share = max_share
        self.seen = self.damaged = 0
        self.names: set[str] = set()

    def check(self, batch: dict[str, Any] | TerraFMError) -> dict[str, Any]:
        """Take note of a batch.

        Args:
            batch: From :func:`collate`, on the CPU.

        Returns:
            The batch, of tensors only.

        Raises:
            TerraFMError: If the batch is an error, or if too many samples were replaced.
        """
        if isinstance(batch, TerraFMError):
            raise batch
        faults: list[DamagedTileError] = batch.pop("faults")
        for fault in faults:
            if fault.name not in self.names:
                self.names.add(fault.name)
                _log.warning("%s Another tile stands in for it.", fault)
        self.seen += len(batch["damaged"])
        self.damaged += len(faults)
        if self.damaged > self.max_share * self.seen and (self.damaged >= MIN_DAMAGED or not self.max_share):
            raise TerraFMError(
                f"{self.damaged} of {self.seen} samples were damaged, and `max_damaged_share` is "
                f"{self.max_share}: repair or remove the {len(self.names)} tiles that the log names, or "
                "raise it."
            )
        return batch

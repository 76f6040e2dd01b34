"""Batches from worker processes to the training process through shared memory that is made once.

torch's DataLoader makes shared memory anew for each batch: its pages are taken, zeroed, mapped and given back, which
costs more than to decode the tiles. Here each worker owns some *slots* of one piece of memory, each as large as a batch
can be. It decodes tiles straight into a slot and sends the slot's place; the training process copies what is filled,
once, while the worker is busy with the next slot. torch's DataLoader still manages processes, order and errors.

The memory is a Linux *memfd*: it takes room only where something was written, does not lie in /dev/shm (which
containers keep small), is handed over as a file descriptor to workers however they start, and is gone with the last
process that has it, even if all are killed.
"""

import itertools
import math
import mmap
import os
import weakref
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.datasets.tiles.collate import collate_others, image_keys
from terrafm_tg.datasets.tiles.pixels import check_fit
from terrafm_tg.errors import DamagedTileError, UnfitTileError
from terrafm_tg.modalities import MODALITIES

#: Whether this system has such memory.
AVAILABLE = hasattr(os, "memfd_create")
_PAGE = 1 << 21  # a huge one: fewer faults where the system gives them
_numbers = itertools.count()
_rings: weakref.WeakValueDictionary[int, "Ring"] = weakref.WeakValueDictionary()


class Ring:
    """Slots of shared memory, the same number for each worker; made by the training process.

    Args:
        workers: Number of worker processes.
        slots: Slots of each.
        slot_bytes: Most bytes of a batch's images.

    Raises:
        OSError: If the system gives no such memory.
    """

    def __init__(self, workers: int, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, round_up(slot_bytes, _PAGE)
        self.number = next(_numbers)
        descriptor = os.memfd_create("terrafm_tiles")
        os.ftruncate(descriptor, workers * slots * self.slot_bytes)
        self._map(descriptor)
        self.pool = Pool()
        _rings[self.number] = self

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, 0)
        with suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A part of the memory, as an array that keeps it."""
        return np.frombuffer(self._memory, dtype, math.prod(shape), offset).reshape(shape)

    def __getstate__(self) -> dict[str, Any]:  # to a worker that is not forked
        kept = {name: getattr(self, name) for name in ("slots", "slot_bytes", "number")}
        return kept | {"descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        descriptor = state.pop("descriptor").detach()
        self.__dict__.update(state)
        self._map(descriptor)


class Stack(NamedTuple):
    """The place of the images of one key in a slot: after one another, without gaps.

    Args:
        offset: Of the first byte: in a writer's layout within the slot, in a `SlotBatch` within the ring.
        shape: In a writer's layout that of one image, in a `SlotBatch` that of all together.
        dtype: Of the pixels.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of that shape."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class SlotBatch:  # no tuple: torch's pinning would take one apart
    """The message of a worker: the places of the batch's images, and the rest of the batch by value."""

    ring: int  # its number in the training process
    images: dict[str, Stack]
    others: dict[str, np.ndarray]
    faults: list[DamagedTileError]

    def copy(self, pinned: bool = False) -> dict[str, Any]:
        """Returns the batch in memory of its own; to be called before the next batch is asked for.

        Args:
            pinned: Whether that memory is page-locked, from torch's cache of such memory.
        """
        ring = _rings[self.ring]
        batch: dict[str, Any] = {"faults": self.faults}
        for key, place in self.images.items():
            stored = torch.from_numpy(ring.array(*place))
            if pinned:
                own = torch.empty_like(stored, pin_memory=True)
            else:
                own = ring.pool.take(key, place.nbytes).view(stored.dtype).view(stored.shape)
            batch[key] = own.copy_(stored)
        others = {key: torch.from_numpy(array) for key, array in self.others.items()}
        return batch | {key: x.pin_memory() if pinned else x for key, x in others.items()}

    def pin_memory(self) -> dict[str, Any]:
        """Returns the copy that torch's pinning thread makes, beside the training."""
        return self.copy(pinned=True)


class Pool:
    """Memory of batches that nobody holds any more, for those to come.

    To take fresh pages for each batch costs several times what the copy does. torch has such a cache for page-locked
    memory, not for ordinary memory. At most two pieces of a kind are kept.
    """

    def __init__(self) -> None:
        self._free: dict[str, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=2))

    def take(self, kind: str, size: int) -> Tensor:
        """Memory that comes back when the last tensor or array that shares it is gone.

        Args:
            kind: What it is for; memory is taken again for the same kind.
            size: In bytes.

        Returns:
            uint8 (size,), with anything in it.
        """
        free = self._free[kind]
        piece = free.pop() if free else np.empty(0, np.uint8)
        if len(piece) < size:
            piece = np.empty(size, np.uint8)
        lent = piece[:size]  # an object of its own, which whatever shares the memory keeps
        weakref.finalize(lent, free.append, piece).atexit = False
        return torch.from_numpy(lent)


def round_up(size: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-size // step) * step


class SlotWriter:
    """A worker's side: its slots, in turn, and how images lie in them.

    Where the images of a key lie, and how large they are, is settled by the first tile that has it.

    Args:
        ring: The memory.
        worker: Number of this worker.
        batch_size: Most tiles of a batch.
    """

    def __init__(self, ring: Ring, worker: int, batch_size: int) -> None:
        self.ring, self.batch_size = ring, batch_size
        slots = range(worker * ring.slots, (worker + 1) * ring.slots)
        self._starts = itertools.cycle([slot * ring.slot_bytes for slot in slots])
        self.forget()

    def begin(self) -> None:
        """Turns to the next slot, to be overwritten by the samples of a batch."""
        self._start = next(self._starts)
        self._samples: list[dict[str, Any]] = []
        self._rows: dict[str, list[int]] = {key: [] for key in image_keys()}

    def forget(self) -> None:
        """Lets the next tile settle everything anew."""
        self._layout: dict[str, Stack] = {}
        self._end = 0

    def places(self) -> dict[str, dict[int, np.ndarray]]:
        """Returns the arrays for the next tile's native pixels by modality and resolution, as far as settled."""
        places = {}
        for m in MODALITIES.values():
            keys = {resolution: m.native_key(resolution) for resolution in m.native}
            if all(key in self._layout for key in keys.values()):
                places[m.name] = {resolution: self._place(key) for resolution, key in keys.items()}
        return places

    def keep(self, sample: dict[str, Any]) -> None:
        """Adds a sample; its images are copied to their places, unless they were decoded there.

        Raises:
            UnfitTileError: If an image's shape or type is not that of those before, or there is no room.
        """
        for key in [key for key in self._rows if key in sample]:
            image = sample.pop(key).numpy()
            if key not in self._layout:
                self._settle(key, image)
            place = self._place(key)
            check_fit(image.shape, image.dtype, place)
            if (image.ctypes.data, image.strides) != (place.ctypes.data, place.strides):
                place[...] = image
            self._rows[key].append(len(self._samples))
        self._samples.append(sample)

    def collate(self) -> "SlotBatch":
        """Returns the batch, ready to be sent.

        Raises:
            TerraFMError: If samples differ in what is not an image.
        """
        faults = [sample.pop("fault") for sample in self._samples if "fault" in sample]
        rows = {key: having for key, having in self._rows.items() if having}
        stacks = {key: self._layout[key] for key in rows}
        images = {
            key: Stack(self._start + offset, (len(rows[key]), *shape), dtype)
            for key, (offset, shape, dtype) in stacks.items()
        }
        others = {key: tensor.numpy() for key, tensor in collate_others(self._samples, rows).items()}
        return SlotBatch(self.ring.number, images, others, faults)

    def _settle(self, key: str, image: np.ndarray) -> None:
        end = self._end + round_up(self.batch_size * image.nbytes, 64)
        if end > self.ring.slot_bytes:
            raise UnfitTileError(f"{self.batch_size} images {image.shape} of {key} do not fit into a slot.")
        self._layout[key], self._end = Stack(self._end, image.shape, image.dtype), end

    def _place(self, key: str) -> np.ndarray:
        image = self._layout[key]
        offset = self._start + image.offset + len(self._rows[key]) * image.nbytes
        return self.ring.array(offset, image.shape, image.dtype)

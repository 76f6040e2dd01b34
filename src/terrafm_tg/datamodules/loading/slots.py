"""A worker's side of the ring: tiles decoded straight into the slot in which their batch travels."""

import itertools

import numpy as np
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.tiles.collate import collate_others, image_keys
from terrafm_tg.datasets.tiles.pixels import check_fit
from terrafm_tg.errors import UnfitTileError
from terrafm_tg.modalities import MODALITIES

from .ring import Ring, SlotBatch, Stack, round_up


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
        first = worker * ring.slots
        self._starts = itertools.cycle(
            range(first * ring.slot_bytes, (first + ring.slots) * ring.slot_bytes, ring.slot_bytes)
        )
        self.layout: dict[str, Stack] = {}
        self._end = 0

    def slot(self) -> "Slot":
        """The next slot, to be overwritten."""
        return Slot(self, next(self._starts))

    def settle(self, key: str, image: np.ndarray) -> None:
        """Give a key's images their place, sized as this one.

        Raises:
            UnfitTileError: If a batch of them does not fit into a slot.
        """
        end = self._end + round_up(self.batch_size * image.nbytes, 64)
        if end > self.ring.slot_bytes:
            raise UnfitTileError(f"{self.batch_size} images {image.shape} of {key} do not fit into a slot.")
        self.layout[key], self._end = Stack(self._end, image.shape, image.dtype), end

    def forget(self) -> None:
        """Let the next tile settle everything anew."""
        self.layout, self._end = {}, 0


class Slot(list[Sample]):
    """The samples of one batch, without their images: those lie in the slot.

    Args:
        writer: Whose slot.
        start: Its first byte in the ring.
    """

    def __init__(self, writer: SlotWriter, start: int) -> None:
        super().__init__()
        self._writer, self._start = writer, start
        self._rows: dict[str, list[int]] = {key: [] for key in image_keys()}

    def places(self) -> dict[str, dict[int, np.ndarray]]:
        """Returns the arrays for the next tile's native pixels by modality and resolution, as far as settled."""
        places = {}
        for m in MODALITIES.values():
            keys = {resolution: m.native_key(resolution) for resolution in m.native}
            if all(key in self._writer.layout for key in keys.values()):
                places[m.name] = {resolution: self._place(key) for resolution, key in keys.items()}
        return places

    def keep(self, sample: Sample) -> None:
        """Append a sample; its images are copied to their places, unless they were decoded there.

        Raises:
            UnfitTileError: If an image's shape or type is not that of those before, or there is no room.
        """
        for key in [key for key in self._rows if key in sample]:
            image = sample.pop(key).numpy()
            if key not in self._writer.layout:
                self._writer.settle(key, image)
            place = self._place(key)
            check_fit(image, place)
            if (image.ctypes.data, image.strides) != (place.ctypes.data, place.strides):
                place[...] = image
            self._rows[key].append(len(self))
        self.append(sample)

    def collate(self) -> "SlotBatch":
        """The batch, ready to be sent.

        Raises:
            TerraFMError: If samples differ in what is not an image.
        """
        rows = {key: having for key, having in self._rows.items() if having}
        stacks = {key: self._writer.layout[key] for key in rows}
        images = {
            key: Stack(self._start + offset, (len(rows[key]), *shape), dtype)
            for key, (offset, shape, dtype) in stacks.items()
        }
        others = {key: tensor.numpy() for key, tensor in collate_others(self, rows).items()}
        return SlotBatch(self._writer.ring.number, images, others)

    def _place(self, key: str) -> np.ndarray:
        image = self._writer.layout[key]
        offset = self._start + image.offset + len(self._rows[key]) * image.nbytes
        return self._writer.ring.array(offset, image.shape, image.dtype)

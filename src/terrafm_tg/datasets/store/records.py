"""Records: one tile of one modality as bytes, compressed and with a checksum.

A record is the tile's native groups (10, 20, 60 m), each a Blosc frame (bytes shuffled by significance, then LZ4)
of its pixels in C order, little-endian, one after the other. What they decode to is said by the *layout*, such as
``uint16 4x534x534 6x267x267 2x89x89``. The checksum of a record is XXH3 (64 bits) over its bytes, seeded with that
of ``"<cell>/<quadrant> <modality> <layout>"``: so it fails for other pixels and for another tile's.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numcodecs import blosc
from xxhash import xxh3_64_intdigest

from terrafm_tg.errors import UnfitTileError
from terrafm_tg.modalities import Modality

# Several threads put a frame's blocks into the order in which they finish: other bytes each time. We use processes.
blosc.use_threads = False

#: LZ4's high-compression search; 1 is the fastest. Any level decodes as fast or faster.
LEVEL = 1
#: Bytes of a Blosc frame's header, of which the last four are the frame's length.
_HEADER = 16


def encode(groups: Mapping[int, np.ndarray], modality: Modality) -> tuple[bytes, str]:
    """Encodes a tile's native groups, (C, h, w) per resolution of ``modality.native``, as one record.

    Returns:
        The record and its layout. The same pixels give the same bytes.
    """
    arrays = [np.ascontiguousarray(groups[resolution]) for resolution in modality.native]
    frames = [blosc.compress(array, b"lz4hc", LEVEL, blosc.SHUFFLE) for array in arrays]
    shapes = ["x".join(map(str, array.shape)) for array in arrays]
    return b"".join(frames), " ".join([arrays[0].dtype.name, *shapes])


def checksum(data: bytes, cell: str, quadrant: int, modality: Modality, layout: str) -> int:
    """Computes the XXH3 of a record, which holds for this tile, modality and layout only."""
    key = f"{cell}/{quadrant} {modality.name} {layout}".encode()
    return xxh3_64_intdigest(data, seed=xxh3_64_intdigest(key))


def decode(
    data: bytes, modality: Modality, layout: str, out: Mapping[int, np.ndarray] | None = None
) -> Mapping[int, np.ndarray]:
    """Decodes a record whose checksum holds to its native groups (C, h, w), straight into C-contiguous arrays.

    Args:
        data: The record.
        modality: Of the record.
        layout: Of the record.
        out: By resolution, the arrays to be overwritten; new ones where None.

    Raises:
        UnfitTileError: If the arrays do not have the layout's shapes and type.
    """
    dtype, shapes = parse_layout(layout)
    sizes = dict(zip(modality.native, shapes, strict=True))
    if out is None:
        out = {resolution: np.empty(shape, dtype) for resolution, shape in sizes.items()}
    for resolution, shape in sizes.items():
        array = out[resolution]
        if array.dtype != dtype or array.shape != shape:
            raise UnfitTileError(
                f"A tile of {dtype} {shape} does not fit into {array.dtype} {array.shape} ({resolution} m)."
            )
    view = memoryview(data)
    for resolution in modality.native:
        length = int.from_bytes(view[_HEADER - 4 : _HEADER], "little")
        blosc.decompress(view[:length], out[resolution])
        view = view[length:]
    return out


@lru_cache(maxsize=1024)
def parse_layout(layout: str) -> tuple[np.dtype, tuple[tuple[int, ...], ...]]:
    """Reads the type and each group's shape (C, h, w) from a layout."""
    dtype, *shapes = layout.split()
    return np.dtype(dtype), tuple(tuple(map(int, shape.split("x"))) for shape in shapes)

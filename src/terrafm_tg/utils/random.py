"""Random numbers that depend only on what they are for.

What a view shows is a function of (seed, epoch, position in the epoch's list, view), never of rank, worker or
micro-batch. A generator with a state cannot give that; a counter-based one can: the key is hashed, and the
hash is the start of a SplitMix64 sequence (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1, _MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))


def keyed_uniform(
    seed: int, epoch: ArrayLike, position: ArrayLike, view: ArrayLike, count: int, stream: str | int = 0
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that are a pure function of their key.

    Args:
        seed: Seed of the run.
        epoch: Epoch, one or an array.
        position: Position in the epoch's global list of draws, shape (N,).
        view: View of the sample, one or an array such as (V, 1); epoch, position and view broadcast together.
        count: Numbers per key.
        stream: What the numbers are for; different streams are independent.

    Returns:
        Array of the broadcast shape followed by ``count``.

    Example:
        >>> keyed_uniform(0, 3, [10, 11], view=0, count=2, stream="crop").shape
        (2, 2)
    """
    name = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
    key = np.zeros(1, np.uint64)  # an array: NumPy warns when a scalar wraps around
    for part in (seed, name, epoch, view, position):
        key = _mix(key + np.asarray(part, np.int64).astype(np.uint64) + _GOLDEN)
    shape = np.broadcast_shapes(np.shape(epoch), np.shape(position), np.shape(view))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(key.reshape(*shape, 1) + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

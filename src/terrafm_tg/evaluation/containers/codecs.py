"""How small and how fast codecs are on native groups of tiles."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
from numcodecs import blosc
from rich.table import Table

from terrafm_tg.modalities import Modality


@dataclass(frozen=True)
class Codec:
    """Pixels to bytes and back.

    Args:
        title: In the table.
        encode: Of a C-contiguous array.
        decode: Of the bytes into an array.
    """

    title: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], object]


def _zstd(data: bytes, out: np.ndarray) -> None:
    decoded = pa.Codec("zstd").decompress(data, out.nbytes)
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(decoded, np.uint8)


def _codecs() -> list[Codec]:
    codecs = [
        Codec("zstd-1", lambda pixels: pa.Codec("zstd", 1).compress(pixels.tobytes(), asbytes=True), _zstd)
    ]
    for name, level, shuffle in (
        ("lz4", 5, blosc.BITSHUFFLE), ("lz4", 5, blosc.SHUFFLE), ("lz4hc", 1, blosc.SHUFFLE),
        ("lz4hc", 5, blosc.SHUFFLE), ("zstd", 1, blosc.SHUFFLE), ("zstd", 3, blosc.BITSHUFFLE),
    ):  # fmt: skip
        title = f"Blosc, {name}-{level}, {'shuffle' if shuffle == blosc.SHUFFLE else 'bitshuffle'}"
        options = (name.encode(), level, shuffle)
        codecs.append(Codec(title, lambda pixels, o=options: blosc.compress(pixels, *o), blosc.decompress))
    if find_spec("blosc2"):
        import blosc2

        for codec, name in ((blosc2.Codec.LZ4HC, "lz4hc-1"), (blosc2.Codec.ZSTD, "zstd-1")):
            codecs.append(
                Codec(
                    f"Blosc2, {name}, shuffle",
                    lambda pixels, c=codec: blosc2.compress2(
                        pixels.reshape(-1), codec=c, clevel=1, filters=[blosc2.Filter.SHUFFLE],
                        filters_meta=[0], typesize=pixels.itemsize, nthreads=1,
                    ),
                    lambda data, out: blosc2.decompress2(data, dst=out.reshape(-1), nthreads=1),
                )
            )  # fmt: skip
    return codecs


def codec_table(tiles: Sequence[tuple[str, Modality, Sequence[Mapping[int, np.ndarray]]]]) -> Table:
    """Measure codecs.

    Args:
        tiles: Name, modality and native groups.

    Returns:
        For each codec and name: megabytes, milliseconds to encode and to decode a tile.
    """
    table = Table(title="MB / ms to encode / ms to decode a tile (CPU time)", caption_justify="left")
    table.add_column("codec")
    for name, _, groups in tiles:
        size = sum(group.nbytes for group in groups[0].values()) / 1e6
        table.add_column(f"{name} ({size:.2f} MB)", justify="right")
    for codec in _codecs():
        table.add_row(codec.title, *(_measure(codec, groups[:8]) for _, _, groups in tiles))
    if not find_spec("blosc2"):
        table.caption = "Blosc2: not measured, because blosc2 is not installed."
    return table


def _measure(codec: Codec, tiles: Sequence[Mapping[int, np.ndarray]]) -> str:
    arrays = [np.ascontiguousarray(group) for groups in tiles for group in groups.values()]
    start = time.process_time()
    stored = [codec.encode(array) for array in arrays]
    encoding = time.process_time() - start
    out, best = [np.empty_like(array) for array in arrays], np.inf
    for _ in range(3):
        start = time.process_time()
        for data, array in zip(stored, out, strict=True):
            codec.decode(data, array)
        best = min(best, time.process_time() - start)
    for array, decoded in zip(arrays, out, strict=True):
        np.testing.assert_array_equal(array, decoded)
    size = sum(map(len, stored)) / len(tiles) / 1e6
    return f"{size:.2f} / {1000 * encoding / len(tiles):.0f} / {1000 * best / len(tiles):.2f}"

"""What a stopped run had finished, kept beside the file that it was making until that is there."""

import shutil
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.utils.files import atomic_write

_EVERY = 2.0  # seconds between files: small units share one


class FinishedUnits:
    """Arrays by name in a folder: each file appears whole or not at all, and damaged ones are as if absent.

    Args:
        folder: Made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[str, np.ndarray] = {}
        self._written = time.monotonic()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names and arrays (1-d int32) of all that was kept, file by file."""
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = pq.read_table(path)
                names, values = table["unit"].to_pylist(), table["values"].combine_chunks()
            except (pa.ArrowException, OSError, KeyError):
                continue  # it is computed again
            for name, value in zip(names, values, strict=True):
                yield name, value.values.to_numpy()

    def add(self, name: str, values: np.ndarray) -> None:
        """Keep an array of int32; at the latest some seconds later it is on the disk."""
        self._waiting[name] = values.ravel()
        if time.monotonic() - self._written >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = list(self._waiting)
            path = self.folder / f"{sha256(' '.join(names).encode()).hexdigest()[:24]}.parquet"
            values = pa.array(list(self._waiting.values()), pa.list_(pa.int32()))
            with atomic_write(path, sole_writer=True) as part:
                pq.write_table(pa.table({"unit": names, "values": values}), part, compression="zstd")
        self._waiting, self._written = {}, time.monotonic()

    def clear(self) -> None:
        """Remove the folder: the file that it served is there."""
        self._waiting = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

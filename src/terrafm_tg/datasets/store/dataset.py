"""Tiles of a packed store: compressed ready for reading, each with a checksum."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.tiles.bands import at_own_resolution
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.index_file import NAME, read_shared
from terrafm_tg.datasets.tiles.table import resolve_offsets
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import remove_offset
from terrafm_tg.utils.arguments import POSITIVE, checked

from .ahead import DiskCache, ahead_of
from .folder import PLACES, read_store_index
from .shards import checksum, decode, most_bytes, read_bytes


@checked(disk_cache_gb=POSITIVE)
class PackedTiles(TileDataset):
    """The tiles of a store that ``terrafm pack`` made: the same samples as from their source, many times faster.

    The index of the store has the source's columns and for each modality (``COLUMN_<modality>``) where a tile's
    record lies: ``shard`` (file below the root), ``start`` and ``bytes`` in it, ``layout`` (type and shapes of its
    native groups) and ``xxh3`` (its checksum, which holds for this cell, quadrant and modality only). A record is
    read in one piece, its checksum compared, and then decoded. See ``docs/store.md`` for the format.

    Of a store that was packed from several archives, bands that some tiles have finer than their own resolution and
    others not are averaged down to it. Tiles with bands of nothing but nodata were left out when the store was packed:
    they are not looked for again.

    Args:
        root: Folder of the store, or its URL (``s3://``, ``gs://``, ``https://``): then a tile takes one range request
            per modality, and those of a batch are asked for together.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that the store has where None.
        native: Return the stored pixels instead of float32 at 10 m.
        index: A tile index of the store with a part of its rows, or the path of one, instead of all.
        harmonize: Take the offset of baseline 04.00 off; False keeps the numbers as they are stored.
        ambiguous_offset: Decides where a product's name does not tell it (``N9999``): ``"error"``, ``"present"``,
            ``"absent"`` or ``"drop"``; see :class:`~terrafm_tg.datasets.MajorTOM`.
        transforms: Applied to each sample.
        disk_cache: Folder on a local disk that keeps what was read of a store elsewhere
            (:class:`~terrafm_tg.datasets.store.ahead.DiskCache`).
        disk_cache_gb: Most that it keeps.

    Raises:
        TerraFMError: If there is no store at the root, its index is damaged, an offset is ambiguous, or a setting is
            wrong.
    """

    filename_glob = NAME
    root: str

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        harmonize: bool = True,
        ambiguous_offset: str = "error",
        transforms: Callable[[Sample], Sample] | None = None,
        disk_cache: str | os.PathLike[str] | None = None,
        disk_cache_gb: float = 100.0,
    ) -> None:
        self.root = self.paths = os.fspath(root).rstrip("/")
        self.harmonize = harmonize
        table, made_for = read_store_index(self.root)
        if index is not None:
            table = index if isinstance(index, pd.DataFrame) else read_shared(Path(index), needs=PLACES)[0]
        if harmonize:
            table = resolve_offsets(table, modalities, ambiguous_offset)
        super().__init__(table, modalities, native, made_for["tile_size"], transforms)
        self._kept = None if disk_cache is None else DiskCache(Path(disk_cache).absolute(), 1e9 * disk_cache_gb)

    def _read(self, row: int, modality: Modality, out: dict[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """Reads and decodes a record, into given arrays or new ones.

        Raises:
            DamagedTileError: If its bytes cannot be read or have changed.
        """
        name, layout = f"{self.name(row)} {modality.name}", self._arrays[f"layout_{modality.name}"][row]
        shard, data = self._arrays[f"shard_{modality.name}"][row], self._record(row, modality)
        try:
            groups = decode(data, modality, layout, out)
        except ValueError as error:
            raise DamagedTileError(name, f"its record in {shard} does not decode ({error})") from error
        offset = int(self._arrays[f"offset_{modality.name}"][row]) if self.harmonize else 0
        for band in (band for group in groups.values() for band in group if offset):
            if band.min() > offset:
                band -= offset
            else:  # some pixels are missing or dark
                band[:] = remove_offset(band, offset)
        return at_own_resolution(groups) if modality.name in self._uneven and out is None else groups

    def expect(self, rows: Sequence[int]) -> None:
        """Begins to fetch the records of tiles that are read next, in this order, where the store is on a server."""
        spans = []
        for row, modality in product(rows, self.modalities) if "://" in self.root else ():
            if self._arrays[f"has_{modality.name}"][row]:
                with suppress(ValueError):  # which reading says
                    shard, start, size = self._span(row, modality)
                    if self._kept is None or not self._kept.has(shard, start, size):
                        spans.append((f"{self.root}/{shard}", start, start + size))
        if spans:
            ahead_of(self.root).expect(spans)

    def _span(self, row: int, modality: Modality) -> tuple[str, int, int]:
        """Returns a record's shard, its first byte and its length.

        Raises:
            ValueError: If no record is so long.
        """
        columns = ("shard", "start", "bytes", "layout")
        shard, start, size, layout = (self._arrays[f"{c}_{modality.name}"][row] for c in columns)
        if not 0 <= size <= most_bytes(modality, layout):
            raise ValueError(f"{size:,} bytes are more than pixels of {layout} take")
        return shard, int(start), int(size)

    def _record(self, row: int, modality: Modality) -> bytes:
        """Returns a record whose checksum holds: from the disk cache, as it was expected, or from the store.

        Raises:
            DamagedTileError: If its bytes cannot be read or have changed.
        """
        name, shard = f"{self.name(row)} {modality.name}", self._arrays[f"shard_{modality.name}"][row]
        layout, digest = (self._arrays[f"{column}_{modality.name}"][row] for column in ("layout", "xxh3"))
        cell, quadrant = self._arrays["cell"][row], int(self._arrays["quadrant"][row])

        def is_right(data: bytes) -> bool:
            return checksum(data, cell, quadrant, modality, layout) == digest

        try:
            _, start, size = self._span(row, modality)
            if self._kept is not None and (data := self._kept.read(shard, start, size)) is not None and is_right(data):
                return data
            path = f"{self.root}/{shard}"
            data = ahead_of(self.root).take((path, start, start + size)) if "://" in self.root else None
            if data is None or not is_right(data):
                data = read_bytes(path, start, size)
        except (OSError, ValueError) as error:
            raise DamagedTileError(name, f"its record in {shard} cannot be read ({error})") from error
        if not is_right(data):
            where = f"bytes {start:,} to {start + size:,} of {shard}"
            raise DamagedTileError(name, f"{where} are not those that were packed: their checksum is another")
        if self._kept is not None:
            self._kept.keep(shard, start, data)
        return data

    @cached_property
    def _uneven(self) -> set[str]:
        """Modalities of which records differ in shape: of archives that store bands of 20 and 60 m at 10 m or not."""
        found = set()
        for m in self.modalities:
            layouts = pd.Categorical(self.table[f"layout_{m.name}"])
            used = np.bincount(layouts.codes[self.table[f"has_{m.name}"].to_numpy(bool)] + 1)
            if len({str(layouts.categories[code - 1]).partition(" ")[2] for code in np.flatnonzero(used) if code}) > 1:
                found.add(m.name)
        return found

    def _read_into(self, row: int, modality: Modality, out: dict[int, np.ndarray]) -> bool:
        if modality.name in self._uneven:
            return super()._read_into(row, modality, out)
        if not self._arrays[f"has_{modality.name}"][row]:
            return False
        self._read(row, modality, out)
        return True

    def _check_valid(self, row: int, modality: Modality, groups: dict[int, np.ndarray]) -> None:
        """Checks nothing: that was done when the store was packed."""

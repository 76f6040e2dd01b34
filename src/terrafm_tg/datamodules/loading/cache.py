"""Decoded tiles in memory that all worker processes of a run share, so that each tile is decoded once."""

import mmap
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from lightning.pytorch.utilities import rank_zero_info

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.pixels import check_fit
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality

_EMPTY, _FILLED, _ABSENT = 0, 1, 2
#: Tiles tried to learn the size of a modality's groups; a damaged one does not tell it.
_PROBES = 20


class CachedTiles(TileDataset):
    """The same tiles, each decoded once from its first read to the end of the run.

    The pixels of each modality and resolution lie in one array (rows, C, h, w) of anonymous shared memory,
    which forked workers inherit and whichever worker first reads a tile fills. Pages that nobody fills take
    no memory. A spawned worker cannot inherit it: it says so and decodes as without a cache; the datamodule
    therefore forks its workers. Damaged tiles are not kept: they are read, and reported, anew.

    Args:
        tiles: What decodes.
        rows: Rows of the index that will be read; others are decoded each time.
        limit: Most gigabytes to take; 80 % of the available memory where None.
        processes: Processes on this machine that each keep a cache.

    Raises:
        TerraFMError: If the tiles would take more than that.
    """

    def __init__(self, tiles: TileDataset, rows: np.ndarray, limit: float | None = None, processes: int = 1) -> None:
        names = [modality.name for modality in tiles.modalities]
        super().__init__(tiles.table, names, tiles.native, tiles.tile_size, tiles.transforms)
        self.tiles = tiles
        samples = {name: self._sample(rows, m) for name, m in zip(names, tiles.modalities, strict=True)}
        held = {name: int(tiles.table[f"has_{name}"].to_numpy(bool)[rows].sum()) for name in names}
        tile_bytes = {name: sum(group.nbytes for group in groups.values()) for name, groups in samples.items()}
        needed = processes * sum(held[name] * tile_bytes[name] for name in names) / 1e9
        allowed = 0.8 * _available_memory() / 1e9 if limit is None else limit
        if needed > allowed:
            raise TerraFMError(
                f"`cache` would keep {len(rows)} tiles in {needed:.3g} GB of memory, of which {allowed:.3g} "
                "GB may be taken: switch it off, use fewer tiles, or raise `cache_limit` (GB)."
            )
        rank_zero_info(f"Decoded tiles stay in memory: {len(rows)} tiles, {needed:.3g} GB when all have been read.")
        self._slots = np.full(len(tiles.table), -1)
        self._slots[rows] = np.arange(len(rows))
        self._state = {name: _shared((len(rows),), np.dtype(np.uint8)) for name in names}
        self._groups = {
            name: {res: _shared((len(rows), *group.shape), group.dtype) for res, group in groups.items()}
            for name, groups in samples.items()
        }

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray] | None:
        slot = self._slots[row]
        if slot < 0:
            return self.tiles._read(row, modality)
        state, kept = self._state[modality.name], self._groups[modality.name]
        if state[slot] == _ABSENT:
            return None
        if state[slot] == _FILLED:
            return {res: array[slot].copy() for res, array in kept.items()}
        tiles = self.tiles._read_together(row, modality)
        for slot, groups in ((self._slots[other], groups) for other, groups in tiles.items()):
            if slot >= 0 and groups is None:
                state[slot] = _ABSENT
            elif slot >= 0 and groups is not None and self._fits(groups, kept):
                for res, array in kept.items():
                    array[slot] = groups[res]
                state[slot] = _FILLED  # last, for the other workers: two may decode the same tile, and write the same
        return tiles[row]

    def _read_into(self, row: int, modality: Modality, out: dict[int, np.ndarray]) -> bool:
        """From the cache straight to where the tile is wanted."""
        slot = self._slots[row]
        if slot < 0:
            return self.tiles._read_into(row, modality, out)
        if self._state[modality.name][slot] != _FILLED:
            return super()._read_into(row, modality, out)
        for res, array in out.items():
            kept = self._groups[modality.name][res][slot]
            check_fit(kept, array)
            array[...] = kept
        return True

    @staticmethod
    def _fits(groups: dict[int, np.ndarray], kept: dict[int, np.ndarray]) -> bool:
        """Returns whether a tile has the usual size and type; another fits no batch either: whoever batches says so."""
        return all(
            (groups[res].shape, groups[res].dtype) == (array.shape[1:], array.dtype) for res, array in kept.items()
        )

    def _transform(self, row: int) -> Affine:
        return self.tiles._transform(row)

    def name(self, row: int) -> str:
        """Returns the name of the tile in a log."""
        return self.tiles.name(row)

    def _sample(self, rows: np.ndarray, modality: Modality) -> dict[int, np.ndarray]:
        has = self.tiles.table[f"has_{modality.name}"].to_numpy(bool)[rows]
        for row in rows[has][:_PROBES]:
            try:
                if groups := self.tiles._read(int(row), modality):
                    return groups
            except DamagedTileError:
                continue
        return {}

    def __getstate__(self) -> dict[str, Any]:
        warnings.warn("Spawned workers cannot share the cache: they decode every tile they read.", stacklevel=2)
        return self.__dict__ | {"_slots": np.full_like(self._slots, -1), "_state": {}, "_groups": {}}


def _shared(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that forked processes share; not in /dev/shm, which containers keep small."""
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, int(np.prod(shape))).reshape(shape)


def _available_memory() -> float:
    """Bytes that may still be taken: of the machine, or of the control group (a container) that has less."""
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        memory = float(lines["MemAvailable"].split()[0]) * 1024
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        memory = min(memory, float(limit) - float((group / "memory.current").read_text()))
    return memory

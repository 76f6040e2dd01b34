"""Decoded tiles in memory that all worker processes of a run share, so that each tile is decoded once."""

import mmap
from collections.abc import Sequence

import numpy as np
from affine import Affine
from lightning.pytorch.utilities import rank_zero_info

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.arguments import checked

#: Tiles tried to learn the size of a modality's groups; a damaged one does not tell it.
_PROBES = 20


@checked()
class CachedTiles(TileDataset):
    """The same tiles, each decoded once from its first read to the end of the run.

    The pixels of each modality and resolution lie in one array (rows, C, h, w) of anonymous shared memory, which forked
    workers inherit and whichever worker first reads a tile fills. Pages that nobody fills take no memory. Damaged tiles
    are not kept: they are read, and reported, anew.

    Args:
        tiles: The dataset that decodes.

    Raises:
        TerraFMError: If the system has no room for all tiles.
    """

    def __init__(self, tiles: TileDataset) -> None:
        names = [modality.name for modality in tiles.modalities]
        super().__init__(tiles.table, names, tiles.native, tiles.tile_size, tiles.transforms)
        self.tiles = tiles
        examples = {m.name: self._example(m) for m in tiles.modalities}
        size = len(tiles) * sum(group.nbytes for groups in examples.values() for group in groups.values()) / 1e9
        try:
            self._filled = {name: _shared((len(tiles),), np.dtype(bool)) for name in names}
            self._kept = {
                name: {res: _shared((len(tiles), *group.shape), group.dtype) for res, group in groups.items()}
                for name, groups in examples.items()
            }
        except OSError as error:
            raise TerraFMError(
                f"`cache` would keep {len(tiles)} tiles in {size:.3g} GB of memory, more than this machine has "
                f"({error}): switch it off, or use fewer tiles."
            ) from error
        rank_zero_info(f"Decoded tiles stay in memory: {len(tiles)} tiles, {size:.3g} GB when all have been read.")

    def expect(self, rows: Sequence[int]) -> None:
        """Tells the dataset which tiles it will be asked for."""
        self.tiles.expect([row for row in rows if not all(filled[row] for filled in self._filled.values())])

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray] | None:
        filled, kept = self._filled[modality.name], self._kept[modality.name]
        if filled[row]:
            return {res: array[row].copy() for res, array in kept.items()}
        tiles = self.tiles._read_together(row, modality)
        for other, groups in tiles.items():
            # A tile of another size fits no batch either: whoever batches says so.
            if groups and _layout(groups) == _layout(kept):
                for res, array in kept.items():
                    array[other] = groups[res]
                filled[other] = True  # last: two workers may decode the same tile, and write the same
        return tiles[row]

    def _transform(self, row: int) -> Affine:
        return self.tiles._transform(row)

    def name(self, row: int) -> str:
        """Returns the name of the tile in a log."""
        return self.tiles.name(row)

    def _example(self, modality: Modality) -> dict[int, np.ndarray]:
        """Returns the groups of the first tile that can be read."""
        for row in np.flatnonzero(self.tiles.table[f"has_{modality.name}"])[:_PROBES]:
            try:
                if groups := self.tiles._read(int(row), modality):
                    return groups
            except DamagedTileError:
                continue
        return {}


def _layout(groups: dict[int, np.ndarray]) -> dict[int, tuple[tuple[int, ...], np.dtype]]:
    return {res: (group.shape[-3:], group.dtype) for res, group in groups.items()}


def _shared(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that forked processes share; not in /dev/shm, which containers keep small."""
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype, int(np.prod(shape))).reshape(shape)

"""The bands of a tile: any subset of its stem's. Absent ones hold nodata, and count as being at their training mean.

The index says it in ``bands_<modality>``: names in stem order with spaces between, nothing where the tile has them all.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import present


def band_text(modality: Modality, bands: Iterable[str]) -> str | None:
    """Returns the value of ``bands_<modality>`` for a tile that has ``bands``; those of no stem (B10) do not count.

    Raises:
        TerraFMError: If a band is not of the modality or named twice, or the stem has none of them.
    """
    held = {column for column in modality.stem_columns(bands) if column is not None}
    return None if len(held) == len(modality.bands) else " ".join(modality.bands[column] for column in sorted(held))


class HeldBands:
    """The bands that the tiles of a table have of one modality.

    Args:
        column: The table's ``bands_<modality>``.
        modality: The modality.

    Raises:
        TerraFMError: If a value names no band of the modality, or another thing.
    """

    def __init__(self, column: pd.Series, modality: Modality) -> None:
        names = pd.Categorical(column, copy=False)
        masks = np.zeros((len(names.categories) + 1, len(modality.bands)), dtype=bool)
        masks[-1] = True  # code -1: nothing is said
        for mask, text in zip(masks, names.categories, strict=False):
            try:
                mask[modality.band_indices(str(text).split()) if text != "" else slice(None)] = True
            except TerraFMError as error:
                raise TerraFMError(
                    f"column bands_{modality.name} holds {str(text)[:80]!r}, expected bands out of "
                    f"{' '.join(modality.bands)}, each once and spaces between"
                ) from error
        self._masks, self._codes = masks, names.codes

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        """Tells for each band, in stem order, whether a tile has it, (C,)."""
        return self._masks[self._codes[row]]

    def is_varied(self) -> bool:
        """Tells if any tile lacks a band that another has."""
        return len(np.unique(self._masks[np.unique(self._codes)], axis=0)) > 1


def fill_absent(
    groups: Mapping[int, np.ndarray], modality: Modality, held: NDArray[np.bool_], size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Completes the native groups of a tile that has a subset of the bands.

    Args:
        groups: (c, h, w) per resolution with the bands that are there, in the order of ``modality.native``; a
            resolution without any may be absent.
        modality: The modality.
        held: For each band of the stem, whether it is there, (C,).
        size: Height and width of the tile in pixels of 10 m.

    Returns:
        (C, h, w) per resolution of ``modality.native``; absent bands hold nodata.
    """
    dtype, full = next(iter(groups.values())).dtype, {}
    for resolution, bands in modality.native.items():
        there = held[modality.band_indices(bands)]
        some = groups[resolution] if there.any() else np.empty((0, *(side * 10 // resolution for side in size)), dtype)
        full[resolution] = np.full((len(bands), *some.shape[1:]), modality.nodata, dtype)
        full[resolution][there] = some
    return full


def at_own_resolution(groups: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Returns native groups in which bands that are stored finer than their own resolution are averaged down to it.

    For tiles of one dataset that are stored in different ways, which one batch could not hold. Missing pixels are left
    out of the mean; where most are, the mean is missing. Sizes that do not divide stay.

    Args:
        groups: (C, h, w) per resolution, integers or linear power.
    """
    even = {}
    for resolution, group in groups.items():
        h, w = (max(side * 10 // resolution, 1) for side in groups[10].shape[-2:])
        down, across = group.shape[1] // h, group.shape[2] // w
        if down * across < 2 or group.shape[1:] != (h * down, w * across):
            even[resolution] = group
            continue
        blocks = group.reshape(len(group), h, down, w, across)
        there = present(blocks)
        count = there.sum(axis=(2, 4))
        mean = np.where(there, blocks, 0).sum(axis=(2, 4), dtype=np.float64) / np.maximum(count, 1)
        mean = np.rint(mean) if group.dtype.kind == "u" else mean
        nodata = 0 if group.dtype.kind == "u" else -32768
        even[resolution] = np.where(2 * count >= down * across, mean, nodata).astype(group.dtype)
    return even

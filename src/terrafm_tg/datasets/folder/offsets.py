"""The +1000 DN of baseline 04.00 in a folder's files: told by the user, by name or by pixels."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.radiometry import (
    OFFSET,
    TELLING,
    UNKNOWN,
    offset_beside,
    offset_by_pixels,
    offsets_by_name,
    remove_offset,
)
from terrafm_tg.utils.trust import open_image

from .products import band_file, band_order

_WINDOW = 1024  # pixels along each side that are looked at

Offsets = int | str | Mapping[str, int | str]


def find_offsets(
    index: pd.DataFrame, root: Path, offsets: Offsets, bands: Mapping[str, Sequence[str]] | None = None
) -> pd.DataFrame:
    """Fills in the offsets of a folder's tile table.

    Args:
        index: The tile table.
        root: Of the folder.
        offsets: For all optical modalities or by name: 0 or 1000, what all files hold; ``"detect"``: by the
            product's name, else its pixels (:func:`~terrafm_tg.radiometry.offset_by_pixels`), else for L2A the
            L1C image of the same day or, where dates are not known, of the same row
            (:func:`~terrafm_tg.radiometry.offset_beside`). Modalities that are not named are detected.
        bands: Band order of files that do not name their bands.

    Returns:
        The table with ``offset_<modality>``, -1 where it could not be found out.

    Raises:
        TerraFMError: If a setting is none of these.
    """
    given = offsets if isinstance(offsets, Mapping) else dict.fromkeys(("s2l1c", "s2l2a"), offsets)
    for name in given:
        get_modality(name)
    for name in ("s2l1c", "s2l2a"):
        if f"has_{name}" not in index:
            continue
        how = given.get(name, "detect")
        if how in (0, OFFSET):
            found = np.full(len(index), how)
        elif how == "detect":
            found = _detect(index, root, name, bands or {})
        else:
            raise TerraFMError(f"`offsets` for {name} must be 0, 1000 or 'detect', got {how!r}.")
        found = np.where(index[f"has_{name}"], found, 0).astype(np.int16)
        index = index.assign(**{f"offset_{name}": found})
    return index


def _detect(index: pd.DataFrame, root: Path, name: str, bands: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Finds offsets by name, else by pixels, else (L2A) by the L1C image of the same day."""
    offsets = offsets_by_name(index[f"product_{name}"])
    offsets[~index[f"has_{name}"].to_numpy()] = 0
    paths = index[f"path_{name}"].to_numpy()

    @cache  # an image may be cut into many tiles
    def alone(path: str) -> int:
        return offset_by_pixels(_telling(root, path, bands.get(name)))

    @cache
    def beside(path: str, l1c: str, l1c_offset: int) -> int:
        pixels = _telling(root, path, bands.get(name)), _telling(root, l1c, bands.get("s2l1c"))
        return offset_beside(pixels[0], {band: remove_offset(held, l1c_offset) for band, held in pixels[1].items()})

    with ThreadPoolExecutor(4) as pool:
        rows = offsets == UNKNOWN
        offsets[rows] = list(pool.map(alone, paths[rows]))
        if name == "s2l2a" and "has_s2l1c" in index:
            days = (index["date_s2l2a"] - index["date_s2l1c"]).abs()
            known = index["has_s2l1c"] & (index["offset_s2l1c"] != UNKNOWN) & ~(days > pd.Timedelta(1, "D"))
            rows = (offsets == UNKNOWN) & known.to_numpy()
            l1c = index["path_s2l1c"].to_numpy()[rows], index["offset_s2l1c"].to_numpy()[rows]
            offsets[rows] = list(pool.map(beside, paths[rows], *l1c))
    return offsets


def _telling(root: Path, pattern: str, order: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Reads an image's middle, by band; nothing where it cannot be read, which is said when its tiles are."""
    values = {}
    with contextlib.suppress(RasterioError):
        for band in TELLING:
            path = band_file(root, pattern, band) if "{}" in pattern else root / pattern
            if path is None:
                continue
            with open_image(path) as src:
                held = [band] if "{}" in pattern else band_order(src, order)
                if band in held:
                    size = min(src.height, _WINDOW), min(src.width, _WINDOW)
                    window = Window((src.width - size[1]) // 2, (src.height - size[0]) // 2, size[1], size[0])
                    values[band] = src.read(held.index(band) + 1, window=window)
    return values

"""What to pack: the tiles of one modality by source file, cut into shards, each named by what goes into it."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from terrafm_tg.datasets.folder.files import band_file
from terrafm_tg.modalities import Modality

#: Tiles of a cell; a shard holds whole cells, which are decoded once.
_CELL = 4


@dataclass(frozen=True)
class Unit:
    """The work that gives one shard.

    Args:
        modality: Of which the shard holds tiles.
        name: Of the shard, without an ending: its first source file, and a hash of what is planned to go in.
        rows: Rows of the tile index, in the order in which they lie in the source file.
    """

    modality: Modality
    name: str
    rows: np.ndarray


def source_names(index: pd.DataFrame, root: Path, modality: Modality, salt: str) -> np.ndarray:
    """A number per tile for where its pixels of a modality come from and how they are stored.

    It changes when the source file is another, or one of another size.

    Args:
        index: A tile index.
        root: What the files of the index are relative to.
        modality: Which of its sources.
        salt: What else decides the stored bytes, such as the unit of radar.

    Returns:
        uint64 (n,), 0 where the tile lacks the modality.
    """
    name = modality.name
    own = [f"{column}_{name}" for column in ("product", "part", "group", "path")]
    grid = () if f"part_{name}" in index else ("x", "y", "xres", "yres", "height", "width")
    columns = [column for column in ("cell", "quadrant", *grid, *own) if column in index]
    frame = pd.DataFrame({column: index[column].array for column in columns})
    if (files := _files(index, name)) is not None:
        sizes = np.array([file_bytes(root, str(path), modality) for path in files.categories] + [0])
        frame["size"] = sizes[files.codes]
    frame["salt"] = pd.Categorical.from_codes(np.zeros(len(frame), np.int8), [salt])
    hashes = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return np.where(index[f"has_{name}"].to_numpy(bool), np.maximum(hashes, 1), 0)


def plan_units(
    index: pd.DataFrame, modality: Modality, names: np.ndarray, todo: np.ndarray, limit: int
) -> Iterator[Unit]:
    """Cut the tiles to pack into units of about equal size.

    A unit takes tiles from one Parquet part, in the order of its row groups and whole cells at a time, or from
    consecutive image files. So each part is read once, from its beginning to its end, and a part that comes
    later changes no unit of the others.

    Args:
        index: A tile index.
        modality: Which to pack.
        names: From :func:`source_names`.
        todo: bool (n,), which tiles.
        limit: Most tiles in a shard.

    Yields:
        The units, in the order of the sources.
    """
    rows = np.flatnonzero(todo)
    files = _files(index, modality.name)
    group = index.get(f"group_{modality.name}")
    if not len(rows):
        return
    file = np.zeros(len(rows), np.int64) if files is None else files.codes[rows].astype(np.int64)
    picture = np.zeros(len(rows), np.int64) if group is None else group.to_numpy(np.int64)[rows]
    order = np.lexsort((rows, picture, file))
    rows, file, picture = rows[order], file[order], picture[order]
    # image files are small: a shard takes many; Parquet parts are large, and a shard is of one
    part = file if group is not None else np.zeros_like(file)
    for start, stop in _runs(part):
        shards = _cut(file[start:stop] * (picture.max() + 1) + picture[start:stop], limit)
        for first, last in _runs(shards):
            chosen = rows[start + first : start + last]
            stem = modality.name if files is None else Path(str(files[chosen[0]])).stem.replace("{}", "")
            digest = sha256(names[chosen].astype("<u8").tobytes()).hexdigest()[:12]
            begin = "" if group is None else f"-{picture[start + first]:06d}"
            yield Unit(modality, f"{stem}{begin}-{digest}", chosen)


def tiles_per_shard(index: pd.DataFrame, modality: Modality, tile_size: int, limit: float, item: int) -> int:
    """How many tiles make a shard of at most ``limit`` bytes before compression, a multiple of a cell's four.

    Args:
        index: A tile index; images of several sizes count as the largest.
        modality: Which.
        tile_size: Edge of a tile in pixels of 10 m.
        limit: Bytes.
        item: Bytes per stored pixel.
    """
    if "height" in index:  # of files that may hold all bands at 10 m
        pixels = int(index["height"].max()) * int(index["width"].max()) * len(modality.bands)
    else:
        pixels = sum(len(bands) * (tile_size * 10 // res) ** 2 for res, bands in modality.native.items())
    return max(int(limit // (_CELL * pixels * item)), 1) * _CELL


def _cut(pictures: np.ndarray, limit: int) -> np.ndarray:
    """Number of the shard that each tile goes into: equal shares, and pictures stay whole where they fit in one."""
    count = -(-len(pictures) // limit)
    share = -(-len(pictures) // count)
    starts, stops = np.array(list(_runs(pictures))).T
    whole = stops - starts <= share
    place = np.where(
        np.repeat(whole, stops - starts), np.repeat(starts, stops - starts), np.arange(len(pictures))
    )
    return place // share


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    return zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)


def _files(index: pd.DataFrame, name: str) -> pd.Categorical | None:
    """Where each tile's pixels lie: Parquet part, or pattern of image files; None where the index does not say."""
    for column in (f"part_{name}", f"path_{name}"):
        if column in index:
            files = pd.Categorical(index[column])
            return files.reorder_categories(sorted(files.categories))
    return None


def file_bytes(root: Path, path: str, modality: Modality) -> int:
    """Bytes of a part, or of a product's image files (``{}`` stands for the band); 0 for what is elsewhere or gone."""
    if "://" in path:
        return 0
    found = [band_file(root, path, band) for band in modality.bands] if "{}" in path else [root / path]
    return sum(file.stat().st_size for file in found if file is not None and file.is_file())

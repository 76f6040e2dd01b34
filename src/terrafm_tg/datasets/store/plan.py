"""Shards to write: the tiles of one modality by source file, cut to equal size, and the work that writes one."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrafm_tg.datasets.scenes.scene import held_files
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import quantize
from terrafm_tg.utils.files import content
from terrafm_tg.utils.trust import is_safe

from .shards import SUFFIX, make_row, shard_table, write_shard

#: Tiles of a cell; a shard holds whole cells, which are decoded once.
_CELL = 4


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write."""

    modality: Modality
    name: str  # its first source file, and a hash of all that is planned to go in; without an ending
    rows: np.ndarray  # rows of the tile index, in the order in which they lie in the source file

    @property
    def path(self) -> str:
        """Path below the store."""
        return f"{self.modality.name}/{self.name}{SUFFIX}"


def source_names(index: pd.DataFrame, root: Path, modality: Modality, salt: str) -> np.ndarray:
    """Numbers each tile by the origin of its pixels of a modality and the way in which they are stored.

    It changes when the source file is another or was replaced, by one of equal size too, and with ``salt``: what else
    decides the stored bytes, such as the unit of radar.

    Returns:
        uint64 (n,), 0 where the tile lacks the modality.
    """
    name = modality.name
    own = [f"{column}_{name}" for column in ("product", "part", "group", "path", "files", "verdict")]
    grid = () if f"part_{name}" in index else ("x", "y", "xres", "yres", "height", "width")
    columns = [column for column in ("cell", "quadrant", *grid, *own) if column in index]
    frame = pd.DataFrame({column: index[column].array for column in columns})
    if (files := _files(index, name)) is not None:
        found = [source_files(root, str(path)) for path in files.categories]
        with ThreadPoolExecutor(8) as pool:  # reading waits for the disk
            digests = pool.map(lambda group: " ".join(map(content, group)), found)
        texts = pd.Series([*digests, ""], dtype=object)
        frame["content"] = pd.util.hash_pandas_object(texts, index=False).to_numpy()[files.codes]
    frame["salt"] = pd.Categorical.from_codes(np.zeros(len(frame), np.int8), [salt])
    if f"bands_{name}" in index:  # where it is said: the others keep their number
        subset = pd.Categorical(index[f"bands_{name}"])
        texts = [salt, *(f"{salt} {text}".rstrip() for text in subset.categories)]
        frame["salt"] = pd.Categorical(np.array(texts, object)[subset.codes + 1])
    hashes = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return np.where(index[f"has_{name}"].to_numpy(bool), np.maximum(hashes, 1), 0)


def plan_shards(
    index: pd.DataFrame, modality: Modality, names: np.ndarray, todo: np.ndarray, limit: int
) -> Iterator[ShardPlan]:
    """Cuts the tiles to pack (``todo``, bool (n,)) into shards of about equal size, of at most ``limit`` tiles.

    A shard takes tiles from one Parquet part, in the order of its row groups and whole cells at a time, or from
    consecutive image files. So each part is read once, from its beginning to its end, and a part that comes
    later changes no shard of the others.

    Yields:
        The shards, in the order of the sources.
    """
    files, group = _files(index, modality.name), index.get(f"group_{modality.name}")
    tiles = pd.DataFrame({
        "file": 0 if files is None else files.codes.astype(np.int64),
        "picture": 0 if group is None else group.to_numpy(np.int64),
    }, np.arange(len(index)))[todo].sort_values(["file", "picture"], kind="stable")  # fmt: skip
    # image files are small: a shard takes many; Parquet parts are large, and a shard is of one
    for _, part in tiles.groupby(tiles["file"] if group is not None else np.zeros(len(tiles))):
        for _, shard in part.groupby(_cut(part, limit)):
            chosen = shard.index.to_numpy()
            stem = modality.name if files is None else Path(str(files[chosen[0]])).stem.replace("{}", "")
            digest = sha256(names[chosen].astype("<u8").tobytes()).hexdigest()[:12]
            begin = "" if group is None else f"-{shard['picture'].iat[0]:06d}"
            yield ShardPlan(modality, f"{stem}{begin}-{digest}", chosen)


def tiles_per_shard(index: pd.DataFrame, modality: Modality, tile_size: int, limit: float, item: int) -> int:
    """Counts the tiles of a shard of at most ``limit`` bytes, of ``item`` per pixel: a multiple of a cell's four.

    Images of several sizes count as the largest.
    """
    if "height" in index:  # of files that may hold all bands at 10 m
        pixels = int(index["height"].max()) * int(index["width"].max()) * len(modality.bands)
    else:
        pixels = sum(len(bands) * (tile_size * 10 // res) ** 2 for res, bands in modality.native.items())
    return max(int(limit // (_CELL * pixels * item)), 1) * _CELL


def _cut(tiles: pd.DataFrame, limit: int) -> np.ndarray:
    """Numbers the shard of each tile: equal shares, and pictures stay whole where they fit in one."""
    count = -(-len(tiles) // limit)
    share = -(-len(tiles) // count)
    places = pd.Series(np.arange(len(tiles)), tiles.index).groupby([tiles["file"], tiles["picture"]])
    whole = places.transform("size") <= share
    return np.where(whole, places.transform("min"), np.arange(len(tiles))) // share


def _files(index: pd.DataFrame, name: str) -> pd.Categorical | None:
    """Returns each tile's Parquet part, or pattern of image files; None where the index does not say."""
    for column in (f"part_{name}", f"path_{name}"):
        if column in index:
            files = pd.Categorical(index[column])
            return files.reorder_categories(sorted(files.categories))
    return None


def source_files(root: Path, path: str) -> list[Path]:
    """Lists the files of a part, or of a scene (``{}`` stands for what differs); none elsewhere or gone."""
    return held_files(root, path) if is_safe(path) else []


def write_planned(job: tuple[TileDataset, ShardPlan], out: Path, quantized: bool) -> pd.DataFrame:
    """Writes a shard, in a worker process, unless an earlier run did.

    Returns:
        The shard's table (:func:`~terrafm_tg.datasets.store.shards.shard_table`), a row per tile.

    Raises:
        OSError: If the shard cannot be written.
    """
    (tiles, shard), path = job, out / job[1].path
    if path.is_file():
        found = shard_table(path)
        if not all(np.array_equal(found[c], tiles.table[c].astype(found[c].dtype)) for c in ("cell", "quadrant")):
            raise TerraFMError(f"{path} holds other tiles than its name says: pack the sources into a new folder.")
        return found
    path.parent.mkdir(exist_ok=True)
    return write_shard(path, shard.modality, _rows(tiles, shard.modality, quantized))


def select_tiles(tiles: TileDataset, table: pd.DataFrame, stored: bool = True) -> TileDataset:
    """Returns a dataset with some rows of another, as a worker process is given it; ``stored``: pixels as they are."""
    part = copy.copy(tiles)
    part.index = table.assign(**{
        name: column.array.remove_unused_categories()
        for name, column in table.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    })  # fmt: skip
    if stored:
        part.__dict__ |= {"transforms": None, "harmonize": False, "root": Path(part.root).absolute()}
    return part


def _rows(tiles: TileDataset, modality: Modality, quantized: bool) -> Iterator[dict[str, Any]]:
    """Yields the shard's tiles in their order; those of a cell are decoded together."""
    cells, quadrants = (tiles.table[name].to_numpy() for name in ("cell", "quadrant"))
    ahead: dict[int, dict[int, np.ndarray] | None] = {}
    for row in range(len(tiles)):
        groups, fault = None, ""
        try:
            if row not in ahead:
                ahead |= tiles._read_together(row, modality)
            groups = ahead.pop(row)
        except DamagedTileError as error:
            fault = error.reason
        if groups is None:
            fault = fault or "it is absent"
        elif quantized and modality.unit == "dB":
            # double precision: the same integers on every kind of processor
            groups = {resolution: quantize(group.astype(np.float64)) for resolution, group in groups.items()}
        yield make_row(cells[row], int(quadrants[row]), modality, groups, fault, tiles._bands(row, modality))

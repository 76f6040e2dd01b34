"""Held-out places or blocks of cells with a gap around them, and a pick of tiles that is even over land cover."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.scenes.pairs import ANCHORS
from terrafm_tg.datasets.tiles.outlines import BOX
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import NOT_NEGATIVE, checked

_TOLERANCE = 1e-6  # of a cell's width: corners are computed numbers
_APART = 0.05  # of the smaller of two scenes, which neighbors share at most: boxes of degrees overlap a little
_BLOCK = 4  # cells along the edge of a place that no folder of scenes tells


@checked(seed=NOT_NEGATIVE)
def split_blocks(
    index: pd.DataFrame, val_share: float = 0.1, block: int = 4, gap: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split tiles into training and validation so that no picture of one reaches into the other's cells.

    Neighboring Major-TOM pictures overlap by 0.68 km, and neighboring places look alike: whole blocks of
    cells are held out, in an order drawn by ``seed``, until their tiles make up ``val_share``. Training cells
    with fewer than ``gap`` whole cells between them and a held-out one are dropped. Rows of the grid have
    different numbers of cells, so that distances east to west are measured in degrees, also across the
    antimeridian.

    Args:
        index: Tile index with the column ``cell``.
        val_share: Share of the tiles to hold out; 0 for none.
        block: Edge of a block in cells.
        gap: Cells between training and validation.
        seed: Of the blocks' order.

    Returns:
        Rows for training and rows for validation, ascending.

    Raises:
        TerraFMError: If a setting is out of range, a cell's name is not Major-TOM's, or one side would be
            empty.
    """
    if not 0 <= val_share < 1 or block < 1 or gap < 0:
        raise TerraFMError(
            f"`val_share={val_share}`, `block={block}`, `gap={gap}`: expected a share from 0 to below 1, a "
            "block of 1 or more cells, a gap of 0 or more."
        )
    everything = np.arange(len(index))
    if val_share == 0:
        return everything, everything[:0]
    codes, rows, center, width = _cells(index)
    tiles = np.bincount(codes)
    blocks = _blocks(rows, center, block)
    order = np.random.default_rng([seed, 4]).permutation(blocks.max() + 1)
    sizes = np.bincount(blocks, tiles)[order]
    # A block is held out if that brings the sum nearer to the share asked for; the first always is.
    taken = np.cumsum(sizes) - sizes / 2 <= val_share * len(index)
    taken[0] = True
    held_out = np.isin(blocks, order[taken])
    train = ~held_out & ~_near(rows, center, width, held_out, gap)
    if not train.any():
        raise TerraFMError(
            f"Holding out {val_share:.0%} of {len(rows)} cells in blocks of {block} x {block} with a gap "
            f"of {gap} leaves none to train on: lower `val_block` or `val_share`, set `val_share=0`, or "
            "give more cells."
        )
    return everything[train[codes]], everything[held_out[codes]]


def place_names(table: pd.DataFrame) -> np.ndarray:
    """Names the place of every tile: scenes that share ground are one, and bear the name of their folder.

    Where they all hang together, or files are no scenes (Major-TOM, a packed store), a place is a block of 4 x 4 cells.

    Args:
        table: Tile table.

    Returns:
        (n,) texts; all tiles of a place have the same.
    """
    if (names := _scene_places(table)) is not None:
        return names
    codes, rows, center, _ = _cells(table)
    return np.array([f"block {n}" for n in _blocks(rows, center, _BLOCK)])[codes]


def _scene_places(table: pd.DataFrame) -> np.ndarray | None:
    """Names the place of every tile by its scene; None where tiles are of no scenes, or all of these hang together."""
    paths = pd.Series(None, table.index, dtype=object)
    for name in ANCHORS:  # as tiles take their grid
        if f"path_{name}" in table:
            paths = paths.fillna(table[f"path_{name}"].astype(object))
    if paths.isna().any():
        return None
    how = dict(zip(BOX, ("min", "min", "max", "max"), strict=True))
    scenes = table.groupby(paths, sort=True)[list(BOX)].agg(how)
    numbers = _together(scenes.to_numpy())
    if not numbers.max():
        return None
    names = _folder_names([[*scenes.index[numbers == n]] for n in range(numbers.max() + 1)])
    return paths.map(dict(zip(scenes.index, np.array(names, object)[numbers], strict=True))).to_numpy(str)


def _cells(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The number of each tile's cell; and of each cell the row of the grid, the longitude of its center, its width."""
    codes, names = pd.factorize(table["cell"])
    rows, cols = grid.parse(names)
    width = 360 / grid.cells_per_row(rows)
    return codes, rows, (cols + 0.5) * width, width


def _together(boxes: np.ndarray) -> np.ndarray:
    """Numbers boxes (n, 4), those that share ground alike."""
    shapes = shapely.box(*boxes.T)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    smaller = np.minimum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    share = shapely.area(shapely.intersection(shapes[one], shapes[other])) > _APART * smaller
    edges = coo_array((share[share], (one[share], other[share])), shape=(len(shapes),) * 2)
    return connected_components(edges, directed=False)[1]


def _folder_names(groups: Sequence[Sequence[str]]) -> list[str]:
    """Names groups of files by the deepest folder that all of a group are in and no others, else by the first file."""
    folders = [[PurePosixPath(path).parts[:-1] for path in paths] for paths in groups]
    common = [[part for part in parts[0] if all(part in other for other in parts)] for parts in folders]
    owners = pd.Series([part for parts in folders for part in {x for path in parts for x in path}]).value_counts()
    return [
        next((part for part in reversed(shared) if owners[part] == 1), PurePosixPath(min(paths)).stem.replace("{}", ""))
        for shared, paths in zip(common, groups, strict=True)
    ]


def split_places(table: pd.DataFrame, held_out: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Splits tiles into those of named places, held out, and all others, which share no ground with them.

    Where places are blocks of cells, whose pictures overlap, the cells beside held-out ones are on neither side.

    Args:
        table: Tile table.
        held_out: Names of places (:func:`place_names`).

    Returns:
        Rows for training and rows for validation, ascending.

    Raises:
        TerraFMError: If there is no such place, or no other.
    """
    names = place_names(table)
    known = sorted({*names.tolist()})
    for name in held_out:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise TerraFMError(
                f"There is no place {name!r} in the data{f': did you mean {near[0]!r}?' if near else '.'} It holds "
                f"{', '.join(known[:20])}{' ...' * (len(known) > 20)}."
            )
    held = np.isin(names, list(held_out))
    train = ~held
    if _scene_places(table) is None:
        codes, rows, center, width = _cells(table)
        train &= ~_near(rows, center, width, np.bincount(codes, held) > 0, 1)[codes]
    if not train.any():
        count = len({*held_out})
        raise TerraFMError(
            f"Holding out {count} of {len(known)} places leaves none to train on: name fewer in `val_places`."
        )
    return np.flatnonzero(train), np.flatnonzero(held)


def _blocks(rows: np.ndarray, center: np.ndarray, block: int) -> np.ndarray:
    """The number of each cell's block; columns of a block have the width of cells in its middle row."""
    block_rows = rows // block
    block_cols = np.floor(center % 360 / 360 * grid.cells_per_row(block_rows * block + block // 2) / block)
    return np.unique(block_rows * 10_000 + block_cols, return_inverse=True)[1]  # rows have at most 4,008 cells


def _near(rows: np.ndarray, center: np.ndarray, width: np.ndarray, held_out: np.ndarray, gap: int) -> np.ndarray:
    """Returns whether fewer than ``gap`` whole cells lie between each cell and the nearest held-out one."""
    near = np.zeros(len(rows), bool)
    turn = 2000.0  # degrees that set grid rows apart on one sorted line
    ours, theirs, theirs_width = center % 360, center[held_out] % 360, width[held_out]
    # Each row's line goes once more round the globe on both sides.
    line = np.concatenate([rows[held_out] * turn + theirs + around for around in (-360, 0, 360)])
    order = np.argsort(line)
    line, line_width = line[order], np.tile(theirs_width, 3)[order]
    for step in range(-gap, gap + 1):
        place = (rows + step) * turn + ours
        right = np.searchsorted(line, place)
        for neighbor in (np.maximum(right - 1, 0), np.minimum(right, len(line) - 1)):
            apart = np.abs(line[neighbor] - place) - (line_width[neighbor] + width) / 2
            near |= apart < gap * np.maximum(line_width[neighbor], width) * (1 - _TOLERANCE)
    return near


@checked(count=NOT_NEGATIVE, seed=NOT_NEGATIVE)
def even_pick(land_cover: np.ndarray, rows: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Choose rows as evenly over land-cover classes as they allow.

    Args:
        land_cover: Class of every tile of the index, -1 unknown.
        rows: Candidates. Those of unknown class are chosen only if no class is known.
        count: How many; all candidates where None.
        seed: Of the choice.

    Returns:
        The chosen rows, ascending.
    """
    if count is None or not len(rows):
        return rows
    known = rows[land_cover[rows] >= 0]
    rows = np.random.default_rng([seed, 5]).permutation(known if len(known) else rows)
    turn = pd.Series(rows).groupby(land_cover[rows]).cumcount()  # one of each class, then the next
    return np.sort(rows[np.argsort(turn, kind="stable")[:count]])

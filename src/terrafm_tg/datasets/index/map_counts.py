"""Land cover under the tiles of a table, counted place by place, so that each block of the map is decoded once."""

import shutil
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover
from terrafm_tg.datasets.tiles.table import BOX, outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASSES
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.parallel import run_units

#: Columns that say which place a row is.
GRID = ("epsg", "x", "y", "xres", "yres", "height", "width")
_UNIT = 4096  # tiles of a unit; about as many of Major-TOM's lie over a file of the map
_CACHE = 256  # MB of decoded blocks: some rows of blocks across a file of the map


def describe_map(worldcover: ESAWorldCover) -> dict[str, Any]:
    """Describes the map by all that decides the land cover of an index besides its tiles; JSON can hold it."""
    files = sorted(Path(path) for path in worldcover.index.filepath)
    sizes = {file.name: file.stat().st_size for file in files}
    return {"year": worldcover.year, "missing": worldcover.missing, "files": sizes}


def count_unit(tiles: pd.DataFrame, tile_size: int, worldcover: ESAWorldCover) -> np.ndarray:
    """Counts the map's pixels under each tile: int32 (n, 12), by class, then those without data."""
    with rasterio.Env(GDAL_CACHEMAX=_CACHE):
        counts = [worldcover.histogram(outline) for outline in outlines(tiles, tile_size)]
    return np.stack(counts).astype(np.int32)


def cover_counts(
    table: pd.DataFrame,
    tile_size: int,
    worldcover: ESAWorldCover,
    rows: np.ndarray,
    work: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Counts the pixels of each class under the tiles of a table, by :meth:`ESAWorldCover.histogram`.

    Args:
        table: A tile table.
        tile_size: Edge in 10 m pixels of tiles that the table gives no size of.
        worldcover: The map.
        rows: bool (n,), the rows to count.
        work: Folder with the counts of a stopped run, a file per unit, to which this one adds its own.
        workers: As for :func:`~terrafm_tg.utils.parallel.run_units`.
        scheduler: Likewise; its machines see the map's files under the same paths.
        progress: Show a bar.

    Returns:
        int32 (n, 12), 0 in other rows.

    Raises:
        TerraFMError: If the map covers none of the table's tiles, or a file of it cannot be read.
    """
    grid, settings = table[[name for name in GRID if name in table]], f"{tile_size} {describe_map(worldcover)}"
    # file by file of the map, which are 3 degrees wide, and from north to south, as the blocks of a file lie
    order = np.lexsort((-table["ymax"], table["xmin"] // 3, table["ymin"] // 3))
    order = order[rows[order]]
    counts = np.zeros((len(table), len(CLASSES) + 1), dtype=np.int32)
    waiting, names = [], []
    for unit in np.split(order, range(_UNIT, len(order), _UNIT)) if len(order) else ():
        places = b"".join(grid[column].to_numpy()[unit].tobytes() for column in grid)
        name = f"{sha256(settings.encode() + places).hexdigest()}.npy"
        try:
            counts[unit] = np.load(work / name)
        except (OSError, ValueError, EOFError):  # not kept, or damaged
            waiting.append(unit)
            names.append(name)
    count = partial(count_unit, tile_size=tile_size, worldcover=worldcover)
    jobs = [grid.iloc[unit] for unit in waiting]
    for number, values in run_units(
        count, jobs, workers=workers, scheduler=scheduler, title="Land cover", progress=progress
    ):
        counts[waiting[number]] = values
        with atomic_write(work / names[number], sole_writer=True) as part, part.open("wb") as file:
            np.save(file, values)
    if rows.all() and not counts.any():
        shutil.rmtree(work, ignore_errors=True)
        here = table[BOX[0]].min(), table[BOX[1]].min(), table[BOX[2]].max(), table[BOX[3]].max()
        box, tiles = (", ".join(f"{limit:.1f}" for limit in box) for box in (worldcover.index.total_bounds, here))
        raise TerraFMError(
            f"The {len(worldcover.index)} files of ESA WorldCover (within {box} degrees) cover none of the "
            f"{len(table):,} tiles (within {tiles}): give the folder with the map's files for these places."
        )
    return counts

"""Land cover under the tiles of a table, counted file by file of the map, so that each block is decoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.errors import RasterioError

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, count_classes
from terrafm_tg.datasets.tiles.table import BOX, outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASSES, OCEAN
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.parallel import run_units

#: Columns that say which place a row is.
GRID = ("epsg", "x", "y", "xres", "yres", "height", "width")
_UNIT = 8192  # most tiles of a unit; a file of the map lies under about 4,000 of Major-TOM's
_CHUNK = 1 << 18  # rows whose outlines are in memory at once
_CACHE = 256  # MB of decoded blocks: some rows of blocks across a file of the map


@dataclass(frozen=True)
class CoverUnit:
    """Tiles over one file of the map."""

    path: str  # the file
    tiles: np.ndarray  # (n,) rows of the table
    grid: pd.DataFrame  # their columns `GRID`
    tile_size: int
    turn: int = 0  # degrees: a tile that crosses the date line goes on beyond 180, where the map starts anew at -180

    def outlines(self) -> np.ndarray:
        """Returns the tiles' outlines in degrees of the map, (n,) polygons."""
        return shapely.transform(outlines(self.grid, self.tile_size), lambda corners: corners - [self.turn, 0])

    def name(self) -> str:
        """Hashes all that decides the unit's result."""
        file = Path(self.path)
        content = sha256(f"2 {file.name} {file.stat().st_size} {self.tile_size} {self.turn}".encode())
        for column in self.grid:
            content.update(self.grid[column].to_numpy().tobytes())
        return content.hexdigest()


def count_unit(unit: CoverUnit) -> np.ndarray:
    """Counts the pixels of one file of the map under each tile: int32 (n, 12), by class, then those without data.

    Raises:
        TerraFMError: If the file cannot be read.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), rasterio.open(unit.path) as src:
            return np.stack([count_classes(src, outline) for outline in unit.outlines()]).astype(np.int32)
    except RasterioError as error:
        raise TerraFMError(f"{unit.path} of ESA WorldCover cannot be read ({error}): get it again.") from error


def cover_units(
    table: pd.DataFrame, tile_size: int, worldcover: ESAWorldCover, rows: np.ndarray
) -> Iterator[tuple[CoverUnit, shapely.Polygon]]:
    """Yields the units that cover some rows of a table, each with the box of its file."""
    grid = table[[name for name in GRID if name in table]]
    west, south, east, north = (table[name].to_numpy() for name in BOX)
    for path, box in zip(worldcover.index.filepath, worldcover.index.geometry, strict=True):
        left, bottom, right, top = box.bounds
        for turn in (0, 360):
            over = rows & (west - turn < right) & (east - turn > left) & (south < top) & (north > bottom)
            tiles = np.flatnonzero(over)
            tiles = tiles[np.argsort(-north[tiles], kind="stable")]  # as the blocks of a file lie
            for part in np.split(tiles, range(_UNIT, len(tiles), _UNIT)) if len(tiles) else ():
                yield CoverUnit(str(Path(path).absolute()), part, grid.iloc[part], tile_size, turn), box


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
    """Counts the pixels of each class under the tiles of a table, as :meth:`ESAWorldCover.histogram` does.

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
    units = list(cover_units(table, tile_size, worldcover, rows))
    if rows.all() and not units:
        here = [*table[["xmin", "ymin"]].min(), *table[["xmax", "ymax"]].max()]
        box, tiles = (", ".join(f"{limit:.1f}" for limit in box) for box in (worldcover.index.total_bounds, here))
        raise TerraFMError(
            f"The {len(worldcover.index)} files of ESA WorldCover (within {box} degrees) cover none of the "
            f"{len(table):,} tiles (within {tiles}): give the folder with the map's files for these places."
        )
    counts = np.zeros((len(table), len(CLASSES) + 1), dtype=np.int32)
    waiting = []
    for unit, _ in units:
        try:
            counts[unit.tiles] += np.load(work / f"{unit.name()}.npy")  # a tile is in a unit once
        except (OSError, ValueError, EOFError):  # not kept, or damaged
            waiting.append(unit)
    for number, values in run_units(
        count_unit, waiting, workers=workers, scheduler=scheduler, title="Land cover", progress=progress
    ):
        counts[waiting[number].tiles] += values
        path = work / f"{waiting[number].name()}.npy"
        with atomic_write(path, sole_writer=True) as part, part.open("wb") as file:
            np.save(file, values)
    if worldcover.missing == "ocean":
        missing = np.zeros(len(table))
        for chunk in np.split(np.flatnonzero(rows), range(_CHUNK, rows.sum(), _CHUNK)):
            missing[chunk] = shapely.area(outlines(table.iloc[chunk], tile_size))
        for unit, box in units:
            missing[unit.tiles] -= shapely.area(shapely.intersection(unit.outlines(), box))
        counts[:, OCEAN] += np.rint(missing / worldcover.res[0] ** 2).astype(np.int32)
    return counts

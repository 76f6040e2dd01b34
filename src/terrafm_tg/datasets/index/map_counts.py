"""Land cover under the tiles of a table, counted file by file of the map, so that each block is decoded once."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.errors import RasterioError

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, count_classes
from terrafm_tg.datasets.tiles.table import BOX, outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASSES, OCEAN
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.trust import open_image

_EVERY = 2.0  # seconds between files: small units share one


class FinishedUnits:
    """Arrays by name in a folder: each file is written atomically, and damaged ones are as if absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: dict[str, np.ndarray] = {}
        self._written = time.monotonic()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields names and arrays (1-d int32) of all that was kept, file by file."""
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = pq.read_table(path)
                names, values = table["unit"].to_pylist(), table["values"].combine_chunks()
            except (pa.ArrowException, OSError, KeyError):
                continue  # it is computed again
            for name, value in zip(names, values, strict=True):
                yield name, value.values.to_numpy()

    def add(self, name: str, values: np.ndarray) -> None:
        """Keeps an array of int32; at the latest some seconds later it is on the disk."""
        self._waiting[name] = values.ravel()
        if time.monotonic() - self._written >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes the arrays that wait."""
        if self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = list(self._waiting)
            path = self.folder / f"{sha256(' '.join(names).encode()).hexdigest()[:24]}.parquet"
            values = pa.array(list(self._waiting.values()), pa.list_(pa.int32()))
            with atomic_write(path, sole_writer=True) as part:
                pq.write_table(pa.table({"unit": names, "values": values}), part, compression="zstd")
        self._waiting, self._written = {}, time.monotonic()

    def clear(self) -> None:
        """Removes the folder: the file that it served is there."""
        self._waiting = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()


#: Columns that say which place a row is.
GRID = ("epsg", "x", "y", "xres", "yres", "height", "width")
_UNIT = 8192  # most tiles of a unit; a file of the map lies under about 4,000 of Major-TOM's
_CHUNK = 1 << 18  # rows whose outlines are in memory at once
_CACHE = 256  # MB of decoded blocks: some rows of blocks across a file of the map
# A tile that crosses the date line goes on beyond it; the map starts anew in the west.
_EAST, _TURN = 180, 360


@dataclass(frozen=True)
class CoverUnit:
    """Tiles over one file of the map."""

    path: str  # the file
    rings: np.ndarray  # (n, 4, 2) corners of the tiles in degrees


def count_unit(unit: CoverUnit) -> np.ndarray:
    """Counts the pixels of one file of the map under each tile: int32 (n, 12), by class, then those without data.

    Raises:
        TerraFMError: If the file cannot be read.
    """
    counts = np.zeros((len(unit.rings), len(CLASSES) + 1), dtype=np.int32)
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), open_image(unit.path) as src:
            for row, outline in enumerate(shapely.polygons(unit.rings)):
                counts[row] = count_classes(src, outline)
    except RasterioError as error:
        raise TerraFMError(f"{unit.path} of ESA WorldCover cannot be read ({error}): get it again.") from error
    return counts


class CoverUnits:
    """The units that cover some rows of a table, made one by one when they are asked for."""

    def __init__(self, table: pd.DataFrame, tile_size: int, worldcover: ESAWorldCover, rows: np.ndarray) -> None:
        self.grid, self.tile_size = table[[name for name in GRID if name in table]], tile_size
        self.paths = [str(Path(path).absolute()) for path in worldcover.index.filepath]
        self.sizes = [Path(path).stat().st_size for path in self.paths]
        self.boxes = worldcover.index.geometry.bounds.to_numpy()
        self.west, self.south, self.east, self.north = (table[name].to_numpy() for name in BOX)
        chunks = range(0, len(table), _CHUNK)
        pairs = [self._pairs(rows, start, shift) for start in chunks for shift in (0, _TURN)]
        tiles, files, turned = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        # from north to south, as the blocks of a file lie
        order = np.lexsort((tiles, -self.north[tiles], files))
        self.tiles, self.files, self.turned = tiles[order], files[order], turned[order]
        starts = np.flatnonzero(np.diff(self.files, prepend=-1))
        lengths = np.diff(starts, append=len(self.files))
        self.slices = [
            slice(start + first, start + min(first + _UNIT, length))
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            for first in range(0, length, _UNIT)
        ]

    def _pairs(self, rows: np.ndarray, start: int, shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs some tiles with the files of the map that share an area with them; bool: once round the globe."""
        tiles = start + np.flatnonzero(rows[start : start + _CHUNK])
        if shift:
            tiles = tiles[self.east[tiles] > _EAST]
        box = self.west[tiles] - shift, self.south[tiles], self.east[tiles] - shift, self.north[tiles]
        near, files = shapely.STRtree(shapely.box(*self.boxes.T)).query(shapely.box(*box))
        west, south, east, north = self.boxes[files].T
        share = (box[0][near] < east) & (box[2][near] > west) & (box[1][near] < north) & (box[3][near] > south)
        return tiles[near[share]], files[share], np.full(share.sum(), shift > 0)

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[CoverUnit]:
        return map(self.unit, range(len(self)))

    def name(self, unit: int) -> str:
        """Hashes all that decides the unit's result."""
        here = self.slices[unit]
        file = self.files[here.start]
        content = sha256(f"1 {Path(self.paths[file]).name} {self.sizes[file]} {self.tile_size}".encode())
        for column in self.grid:
            content.update(self.grid[column].to_numpy()[self.tiles[here]].tobytes())
        content.update(self.turned[here].tobytes())
        return content.hexdigest()

    def unit(self, number: int) -> CoverUnit:
        """Makes one unit."""
        here = self.slices[number]
        shapes = outlines(self.grid.iloc[self.tiles[here]], self.tile_size)
        rings = shapely.get_coordinates(shapes).reshape(len(shapes), -1, 2)[:, :4]
        rings[self.turned[here], :, 0] -= _TURN
        return CoverUnit(self.paths[self.files[here.start]], rings)

    def not_covered(self, rows: np.ndarray, resolution: float) -> np.ndarray:
        """Counts the pixels of each tile without a file of the map, int64 (n,), 0 where not asked for."""
        missing = np.zeros(len(rows), dtype=np.int64)
        boxes = self.boxes[self.files]
        shift = np.where(self.turned, _TURN, 0)
        inside = (self.west[self.tiles] - shift >= boxes[:, 0]) & (self.east[self.tiles] - shift <= boxes[:, 2])
        inside &= (self.south[self.tiles] >= boxes[:, 1]) & (self.north[self.tiles] <= boxes[:, 3])
        partly = rows.copy()
        partly[self.tiles[inside]] = False
        edge = partly[self.tiles]
        places = np.flatnonzero(partly)
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            shapes = outlines(self.grid.iloc[chunk], self.tile_size)
            missing_area = shapely.area(shapes)
            here = edge & (self.tiles >= chunk[0]) & (self.tiles <= chunk[-1])
            at = np.searchsorted(chunk, self.tiles[here])
            files = shapely.box(*(boxes[here] + shift[here, None] * [1, 0, 1, 0]).T)
            np.subtract.at(missing_area, at, shapely.area(shapely.intersection(shapes[at], files)))
            missing[chunk] = np.rint(missing_area / resolution**2)
        return missing


def cover_counts(
    table: pd.DataFrame,
    tile_size: int,
    worldcover: ESAWorldCover,
    rows: np.ndarray,
    finished: FinishedUnits,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, int]:
    """Counts the pixels of each class under the tiles of a table, as :meth:`ESAWorldCover.histogram` does.

    Args:
        table: A tile table.
        tile_size: Edge in 10 m pixels of tiles that the table gives no size of.
        worldcover: The map.
        rows: bool (n,), the rows to count.
        finished: The counts of a stopped run, to which this one adds its own.
        workers: As for :func:`~terrafm_tg.utils.parallel.run_units`.
        scheduler: Likewise; its machines see the map's files under the same paths.
        progress: Show a bar.

    Returns:
        int32 (n, 12), 0 in other rows, and the number of units counted rather than found.

    Raises:
        TerraFMError: If the map covers none of the table's tiles, or a file of it cannot be read.
    """
    units = CoverUnits(table, tile_size, worldcover, rows)
    if rows.all() and not len(units):
        raise TerraFMError(
            f"The {len(units.paths)} files of ESA WorldCover (within {_extent(units.boxes.T)} degrees) cover none of "
            f"the {len(table):,} tiles (within {_extent([table[name] for name in BOX])}): give the folder with the "
            "map's files for these places."
        )
    counts = np.zeros((len(table), len(CLASSES) + 1), dtype=np.int32)
    waiting = {units.name(number): number for number in range(len(units))}
    for name, values in finished:
        if (number := waiting.pop(name, None)) is not None:
            counts[units.tiles[units.slices[number]]] += values.reshape(-1, counts.shape[1])
    names, units.slices = list(waiting), [units.slices[number] for number in waiting.values()]
    with finished:
        results = run_units(
            count_unit, units, workers=workers, scheduler=scheduler, title="Land cover", progress=progress
        )
        for number, values in results:
            counts[units.tiles[units.slices[number]]] += values  # a tile is in a unit once
            finished.add(names[number], values)
    if worldcover.missing == "ocean":
        counts[:, OCEAN] += units.not_covered(rows, worldcover.res[0])
    return counts, len(names)


def _extent(box: np.ndarray | list[pd.Series]) -> str:
    west, south, east, north = box
    return ", ".join(f"{v:.1f}" for v in (west.min(), south.min(), east.max(), north.max()))

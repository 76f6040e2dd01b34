"""Land cover of cells before their pictures are there: from a tile index, or from the map's files under them."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from geopandas import GeoDataFrame

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.rows import tile_corners
from terrafm_tg.datasets.tiles.footprints import outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, UNKNOWN, majority
from terrafm_tg.utils.parallel import run_units

from .http import Http, NotThereError
from .selection import LandCoverOf
from .whole import save_file

#: Where ESA publishes the map.
WORLDCOVER = "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v200/2021/map"
#: Bytes of an average file of the map (117 GB in 2,651 files).
FILE_BYTES = 44_000_000
_TILE = 534  # 10 m pixels across a tile
_UNIT = 256  # tiles that one process looks at before it reports


def tiles_of(zones: pd.Series) -> GeoDataFrame:
    """The four tiles of each cell, four rows each, as the tile index has them.

    Args:
        zones: EPSG code of each cell's zone, indexed by the cell's name.
    """
    epsg = zones.to_numpy(dtype=np.int64)
    x, y = tile_corners(*grid.parse(zones.index), epsg, _TILE)
    table = pd.DataFrame({"epsg": np.repeat(epsg, 4), "x": x, "y": y})
    return GeoDataFrame(geometry=outlines(table, _TILE), crs=4326)


def map_files(tiles: GeoDataFrame) -> list[str]:
    """Names of the map's files (3 x 3 degrees) that tiles reach into."""
    west, south, east, north = shapely.bounds(tiles.geometry.array).T
    corners = [(x, y) for x in (west, east) for y in (south, north)]
    lon, lat = (np.floor(np.concatenate(v) / 3).astype(int) * 3 for v in zip(*corners, strict=True))
    lon = (lon + 180) % 360 - 180
    names = {
        f"{'N' if y >= 0 else 'S'}{abs(y):02}{'E' if x >= 0 else 'W'}{abs(x):03}"
        for x, y in set(zip(lon.tolist(), lat.tolist(), strict=True))
        if -60 <= y < 84
    }
    return [f"ESA_WorldCover_10m_2021_v200_{name}_Map.tif" for name in sorted(names)]


def fetch_map(http: Http, names: list[str], folder: Path, source: str = WORLDCOVER) -> int:
    """Download files of the map that are not in a folder; open sea has none.

    Returns:
        How many came.

    Raises:
        TerraFMError: If the source cannot be read.
    """
    came = 0
    for name in names:
        if not (folder / name).is_file():
            try:
                came += save_file(http, f"{source.rstrip('/')}/{name}", folder / name)
            except NotThereError:  # open sea
                continue
    return came


def cover_from(
    path: Path, prepare: Callable[[list[str]], None] | None = None, progress: bool = True
) -> LandCoverOf:
    """A function that tells the land cover of cells.

    Args:
        path: A tile index, or a folder of the map's files.
        prepare: Called with the names of the files that are needed, to fetch them; without it a place
            without a file is unknown, unless the folder holds the complete map.
        progress: Show a bar.

    Raises:
        TerraFMError: If there is neither.
    """
    if path.is_dir() or prepare is not None:
        return partial(_from_map, path, prepare, progress)
    if not path.is_file():
        raise TerraFMError(
            f"{path} does not exist: give a tile index (`terrafm index`) or a folder of ESA WorldCover."
        )
    return partial(_from_index, path)


def _from_map(
    folder: Path, prepare: Callable[[list[str]], None] | None, progress: bool, zones: pd.Series
) -> np.ndarray:
    tiles = tiles_of(zones)
    if prepare is not None:
        prepare(map_files(tiles))
    polygons, missing = np.asarray(tiles.geometry.array), "ocean" if prepare else None
    units = [(folder, missing, polygons[i : i + _UNIT]) for i in range(0, len(polygons), _UNIT)]
    parts = dict(run_units(_majorities, units, title="Land cover", progress=progress))
    cover = np.concatenate([parts[i] for i in range(len(units))])
    return _classes(np.repeat(np.arange(len(zones)), 4), cover, len(zones))


@cache
def _map(folder: Path, missing: str | None) -> ESAWorldCover:
    return ESAWorldCover(folder, missing=missing)


def _majorities(unit: tuple[Path, str | None, np.ndarray]) -> np.ndarray:
    """The most frequent class of each of some tiles."""
    folder, missing, outlines = unit
    held = _map(folder, missing)
    return np.array([majority(held.histogram(tile), tile.centroid.y) for tile in outlines], dtype=np.int64)


def _from_index(path: Path, zones: pd.Series) -> np.ndarray:
    try:
        table = pq.read_table(path, columns=["cell", "land_cover"]).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(
            f"{path} is no tile index with land cover ({error}): run `terrafm index`."
        ) from error
    cells = zones.index.get_indexer(pd.Index(table["cell"].astype(str)))
    return _classes(cells[cells >= 0], table["land_cover"].to_numpy()[cells >= 0], len(zones))


def _classes(cells: np.ndarray, cover: np.ndarray, count: int) -> np.ndarray:
    """Which classes occur among the tiles of each cell, as booleans (count, 12)."""
    found = np.zeros((count, len(CLASS_NAMES)), dtype=bool)
    known = cover != UNKNOWN
    found[cells[known], cover[known]] = True
    return found

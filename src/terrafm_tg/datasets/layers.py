"""Maps under tiles: land cover, climate zone and region of each row of a tile index."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from geopandas import GeoDataFrame
from rasterio.errors import RasterioError
from rasterio.transform import rowcol
from rasterio.warp import transform as warp_points
from rasterio.windows import Window
from rich.progress import track

from terrafm_tg.errors import TerraFMError

from .esa_worldcover import CLASSES, UNKNOWN, ESAWorldCover, majority

#: Tiles that one process looks at before it reports.
_CHUNK = 256
_STRIP = 512  # rows of a climate map that are read at once
_worldcover: ESAWorldCover  # of a process that counts


def land_cover(
    index: GeoDataFrame, worldcover: ESAWorldCover, workers: int | None = None, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Land cover of each tile from ESA WorldCover.

    Args:
        index: A tile index.
        worldcover: The map.
        workers: Processes; 0 for this one, None for one per core where there is much to do.
        progress: Show a bar.

    Returns:
        int8 (n,), the majority class (:func:`~.esa_worldcover.majority`), and float32 (n, 11), each class'
        share of all pixels.

    Raises:
        TerraFMError: If the map covers none of the tiles.
    """
    geometry = index.geometry.array
    if not len(worldcover.index.sindex.query(geometry, predicate="intersects")[0]):
        tiles, files = (", ".join(f"{v:.1f}" for v in f.total_bounds) for f in (index, worldcover.index))
        raise TerraFMError(
            f"The {len(worldcover.index)} files of ESA WorldCover (within {files} degrees) cover none of the "
            f"{len(index):,} tiles (within {tiles}): give the folder with the map's files for these places."
        )
    _, _, order = _by_place(geometry)
    chunks = [geometry[order[i : i + _CHUNK]] for i in range(0, len(order), _CHUNK)]
    parts = track(_counts(chunks, worldcover, workers), "Land cover", len(chunks), disable=not progress)
    counts = np.empty((len(index), len(CLASSES) + 1), dtype=np.int64)
    counts[order] = np.concatenate(list(parts))
    latitude = index.geometry.bounds[["miny", "maxy"]].mean(axis=1)
    cover = [majority(histogram, lat) for histogram, lat in zip(counts, latitude, strict=True)]
    share = counts[:, : len(CLASSES)] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.array(cover, dtype=np.int8), share.astype(np.float32)


def climate_zone(index: GeoDataFrame, path: Path) -> np.ndarray:
    """The code of a climate map (such as Beck et al. 2023, Köppen-Geiger) at the middle of each tile.

    Returns:
        int16 (n,), -1 outside of the map and where it has no data.

    Raises:
        TerraFMError: If the map cannot be read or holds no integer codes.
    """
    lon, lat, _ = _by_place(index.geometry.array)
    zones = np.full(len(index), UNKNOWN, dtype=np.int64)
    try:
        with rasterio.open(path) as src:
            if not np.issubdtype(np.dtype(src.dtypes[0]), np.integer):
                raise TerraFMError(f"{path} holds {src.dtypes[0]}: expected a map of integer climate codes.")
            x, y = warp_points("EPSG:4326", src.crs, lon, lat)
            rows, columns = (np.asarray(part, dtype=np.int64) for part in rowcol(src.transform, x, y))
            inside = (rows >= 0) & (rows < src.height) & (columns >= 0) & (columns < src.width)
            for strip in np.unique(rows[inside] // _STRIP):
                here = inside & (rows // _STRIP == strip)
                window = Window(0, strip * _STRIP, src.width, min(_STRIP, src.height - strip * _STRIP))
                zones[here] = src.read(1, window=window)[rows[here] - strip * _STRIP, columns[here]]
            if src.nodata is not None:
                zones[zones == src.nodata] = UNKNOWN
    except RasterioError as error:
        raise TerraFMError(f"The climate map {path} cannot be read: {error}.") from error
    return zones.astype(np.int16)


def region(index: GeoDataFrame, path: Path) -> np.ndarray:
    """Which polygon of a vector file holds the middle of each tile.

    Returns:
        int16 (n,), the polygon's row in the file (the first, where several do), -1 where none does.

    Raises:
        TerraFMError: If the file cannot be read.
    """
    try:
        polygons = gpd.read_file(path)
    except (RuntimeError, OSError) as error:  # pyogrio's errors are RuntimeErrors
        raise TerraFMError(f"The regions {path} cannot be read: {error}.") from error
    lon, lat, _ = _by_place(index.geometry.array)
    tiles, rows = polygons.to_crs(4326).sindex.query(shapely.points(lon, lat), predicate="intersects")
    found = np.full(len(index), len(polygons))
    np.minimum.at(found, tiles, rows)
    return np.where(found < len(polygons), found, UNKNOWN).astype(np.int16)


def _by_place(geometry: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitude and latitude of the tiles' middles, and an order in which neighbours follow each other."""
    west, south, east, north = shapely.bounds(geometry).T
    lon, lat = ((west + east) / 2 + 180) % 360 - 180, (south + north) / 2
    return lon, lat, np.lexsort((lat, lon // 3, lat // 3))  # by the map's files


def _counts(chunks: list[np.ndarray], worldcover: ESAWorldCover, workers: int | None) -> Iterator[np.ndarray]:
    if workers is None:
        workers = min(os.cpu_count() or 1, len(chunks) // 4)
    if workers < 2:
        _start(worldcover)
        yield from map(_count, chunks)
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(worldcover,)) as pool:
        yield from pool.map(_count, chunks)


def _start(worldcover: ESAWorldCover) -> None:
    global _worldcover
    _worldcover = worldcover


def _count(chunk: np.ndarray) -> np.ndarray:
    return np.stack([_worldcover.histogram(geometry) for geometry in chunk])

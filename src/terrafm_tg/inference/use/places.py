"""Points and polygons from a file: GeoJSON, GeoParquet or CSV."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pyproj import CRS
from pyproj.exceptions import CRSError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.parquet import read_table
from terrafm_tg.utils.trust import read_text

from .tables import geo_of

if TYPE_CHECKING:
    import geopandas as gpd

_X, _Y = ("lon", "longitude", "lng", "x", "easting"), ("lat", "latitude", "y", "northing")
_MOST_TEXT = 1 << 29  # bytes


def read_places(path: Path, crs: str | None = None) -> "gpd.GeoDataFrame":
    """Reads points or polygons.

    Args:
        path: GeoJSON (``.geojson``, ``.json``), GeoParquet (``.parquet``), or CSV with the columns lon and lat, x and
            y, or geometry (WKT).
        crs: Of the coordinates, where the file does not tell: such as EPSG:32633; else longitude and latitude.

    Returns:
        The geometries in the file's CRS, with its other columns; empty geometries are left out.

    Raises:
        TerraFMError: If it is none, is empty, or its coordinates cannot be degrees and no CRS is given.
    """
    import geopandas as gpd

    if not path.is_file():
        raise TerraFMError(f"There is no file {path}: give points or polygons in GeoJSON, GeoParquet or CSV.")
    readers = {".geojson": _geojson, ".json": _geojson, ".parquet": _parquet, ".geoparquet": _parquet, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TerraFMError(f"{path} is not read: give points or polygons in {', '.join(readers)}.")
    try:
        columns, shapes, own = reader(path)
        found = gpd.GeoDataFrame(columns, geometry=shapes, crs=None)
        known = CRS.from_user_input(own or crs or "EPSG:4326")
        other = own and crs and CRS.from_user_input(crs) != known
    except TerraFMError:
        raise
    except (CRSError, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
        raise TerraFMError(
            f"{path} cannot be read as points or polygons ({reason}): give GeoJSON, GeoParquet, or CSV with the "
            "columns lon and lat."
        ) from error
    if other:
        raise TerraFMError(f"{path} says that its CRS is {known.name}, and `labels_crs` is {crs}: leave that out.")
    found = found[~(found.geometry.is_empty | found.geometry.isna())].reset_index(drop=True)
    if found.empty:
        raise TerraFMError(f"{path} holds no points or polygons: give at least one.")
    bounds = found.total_bounds
    if known.is_geographic and (np.abs(bounds[[0, 2]]).max() > 360 or np.abs(bounds[[1, 3]]).max() > 90.0001):
        exchanged = np.abs(bounds[[0, 2]]).max() <= 90 and np.abs(bounds[[1, 3]]).max() <= 360
        advice = "longitude and latitude are exchanged, it seems" if exchanged else "say their CRS (`labels_crs`)"
        raise TerraFMError(
            f"{path} has coordinates up to {bounds[2]:g}, {bounds[3]:g}, which are no degrees of longitude and "
            f"latitude: {advice}."
        )
    return found.set_crs(known)


def _geojson(path: Path) -> tuple[pd.DataFrame, Any, Any]:
    import shapely

    content = json.loads(read_text(path, _MOST_TEXT) or "null")
    features = content["features"] if content["type"] == "FeatureCollection" else [content]
    shapes = shapely.from_geojson([json.dumps(feature.get("geometry")) for feature in features])
    said = content.get("crs") or {}
    return pd.DataFrame([f.get("properties") or {} for f in features]), shapes, said and said["properties"]["name"]


def _parquet(path: Path) -> tuple[pd.DataFrame, Any, Any]:
    import shapely

    table = read_table(path)
    geo = geo_of((table.schema.metadata or {}).get(b"geo", b""))
    if geo is None:
        raise ValueError("it has no geometry")
    frame = table.to_pandas()
    return frame.drop(columns=geo[0]), shapely.from_wkb(frame[geo[0]].to_numpy()), geo[1]


def _csv(path: Path) -> tuple[pd.DataFrame, Any, Any]:
    import shapely

    frame = pd.read_csv(path, skipinitialspace=True)
    names = {str(name).strip().lower(): name for name in frame.columns}
    wkt = names.get("geometry", names.get("wkt"))
    if wkt is not None:
        return frame.drop(columns=wkt), shapely.from_wkt(frame[wkt].to_numpy()), None
    x, y = (next((names[name] for name in known if name in names), None) for known in (_X, _Y))
    if x is None or y is None:
        raise ValueError(f"its columns are {', '.join(map(str, frame.columns[:8]))}")
    there = frame[[x, y]].notna().all(axis=1)
    frame = frame[there]
    return frame.drop(columns=[x, y]), shapely.points(frame[x].astype(float), frame[y].astype(float)), None

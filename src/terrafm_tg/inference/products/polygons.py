"""Polygons of a map of classes, for GIS: one per connected area, without gaps where borders are simplified."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError

from .legend import Legend

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

#: Formats by a file's ending.
FORMATS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".parquet": "", ".geoparquet": ""}


def check_format(path: Path, option: str = "polygons") -> None:
    """Refuses an ending that is of no format.

    Args:
        path: The file.
        option: That names it.

    Raises:
        TerraFMError: Naming it.
    """
    if path.suffix.lower() not in FORMATS:
        raise TerraFMError(f"`{option}` is {path}: give a file that ends with {', '.join(FORMATS)}.")


def write_polygons(
    path: Path, classes: Path, legend: Legend, simplify: float | None = None, min_area: float | None = None
) -> int:
    """Writes a polygon for each connected area of a class, with ``class``, ``name``, ``color`` and ``area_m2``.

    Args:
        path: GeoPackage, GeoJSON (then in degrees) or GeoParquet 1.1; written atomically.
        classes: The map, of meters.
        legend: Of the map.
        simplify: Meters to which borders are simplified: those between two polygons once for both. The areas are those
            of the simplified polygons.
        min_area: Square meters: smaller areas become part of their largest neighbor.

    Returns:
        Number of polygons.

    Raises:
        TerraFMError: If the ending is of no format.
    """
    import geopandas
    import rasterio
    import shapely
    from rasterio.features import shapes, sieve

    check_format(path)
    with rasterio.open(classes) as source:
        values, valid = source.read(1), source.read_masks(1) > 0
        transform, crs = source.transform, source.crs
    pixel = abs(transform.a * transform.e)
    if min_area is not None and (least := int(np.ceil(min_area / pixel))) > 1:
        values = sieve(values, size=least, mask=valid, connectivity=4)
    found = list(shapes(values, mask=valid, connectivity=4))  # in pixels, so that corners are whole numbers
    numbers = np.array([int(number) for _, number in found], dtype=np.int32)
    outlines: NDArray = np.array([_polygon(shape["coordinates"]) for shape, _ in found], dtype=object)
    if simplify is not None and len(outlines):
        # The borders of neighbors have the same corners then, as the common simplification needs it.
        outlines = shapely.transform(shapely.segmentize(outlines, 1.0), np.rint)
        outlines = shapely.coverage_simplify(outlines, simplify / np.sqrt(pixel))
        kept = ~shapely.is_empty(outlines)
        outlines, numbers = outlines[kept], numbers[kept]
    placed = shapely.transform(outlines, _onto(transform))
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in legend.colors]
    table = geopandas.GeoDataFrame(
        {
            "class": numbers,
            "name": np.array(legend.names, dtype=object)[numbers],
            "color": np.array(colors, dtype=object)[numbers],
            "area_m2": shapely.area(placed),
        },
        geometry=list(placed),
        crs=crs,
    )
    write_frame(table, path, "classes")
    return len(table)


def _polygon(rings: list[list[tuple[float, float]]]) -> object:
    from shapely import Polygon

    return Polygon(rings[0], rings[1:])


def _onto(transform: Affine) -> Callable[[NDArray], NDArray]:
    """Maps pixels (n, 2) to coordinates."""
    matrix, shift = np.array([[transform.a, transform.d], [transform.b, transform.e]]), (transform.c, transform.f)
    return lambda xy: xy @ matrix + shift


def write_frame(table: "GeoDataFrame", path: Path, layer: str) -> None:
    """Writes a table of geometries beside its path, under an ending of the format, which GDAL looks at, and renames.

    Args:
        table: Of any CRS.
        path: GeoPackage, GeoJSON (then in degrees) or GeoParquet 1.1.
        layer: Name of the table in a GeoPackage.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ending, kind = path.suffix.lower(), FORMATS[path.suffix.lower()]
    part = path.with_name(f".{path.stem}.{uuid4().hex}{ending}")
    try:
        if not kind:
            table.to_parquet(part, index=False, write_covering_bbox=True, schema_version="1.1.0", compression="zstd")
        else:
            options = {"RFC7946": "YES"} if kind == "GeoJSON" else {"SPATIAL_INDEX": "YES"}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*empty.*")
                table.to_file(part, driver=kind, layer=layer, engine="pyogrio", **options)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

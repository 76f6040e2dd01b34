"""Places of embeddings on the ground, as GeoJSON and Major-TOM's tables have them."""

from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray
from shapely.affinity import translate
from shapely.geometry import box

from terrafm_tg.datasets.majortom.grid import cells_at, names
from terrafm_tg.datasets.tiles.outlines import outlines, transformer

if TYPE_CHECKING:
    import geopandas as gpd

_POINTS = 16  # along an edge of a map: what is straight in one CRS is not in another


def footprint(crs: str, transform: Affine, height: float, width: float) -> shapely.Geometry:
    """Returns the ground that pixels cover, in longitude and latitude.

    It is a polygon, or one on either side of 180 degrees, as GeoJSON (RFC 7946) wants it.

    Args:
        crs: CRS of the pixels, as text.
        transform: From pixels to the CRS.
        height: In pixels.
        width: In pixels.
    """
    ring = shapely.segmentize(box(0, 0, width, height).exterior, max(height, width) / _POINTS)
    lon, lat = transformer(crs, 4326).transform(*(transform * tuple(shapely.get_coordinates(ring).T)))
    lon = np.unwrap(lon, period=360)
    if abs(lon[-1] - lon[0]) > 180 and crs.startswith("EPSG:"):  # around a pole
        place = {"epsg": int(crs[5:]), "x": transform.c, "y": transform.f, "xres": transform.a, "yres": -transform.e}
        return split(outlines(pd.DataFrame([place | {"height": height, "width": width}]).astype({"epsg": np.int32})))[0]
    return split(np.array([shapely.Polygon(np.stack([lon, lat], axis=1))]))[0]


def split(polygons: NDArray) -> NDArray:
    """Cuts polygons (n,) that go on beyond 180 degrees there, and moves what is beyond to its other side."""
    polygons = polygons.copy()
    bounds = shapely.bounds(polygons)
    for i in np.flatnonzero((bounds[:, 0] < -180) | (bounds[:, 2] > 180)):
        turns = ((turn, polygons[i].intersection(box(turn - 180, -90, turn + 180, 90))) for turn in (-360, 0, 360))
        shapes = [translate(shape, -turn) for turn, shape in turns if shape.area]
        polygons[i] = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
    return shapely.normalize(polygons)


def tile_rows(
    epsg: int, transform: Affine, boxes: Iterable[tuple[int, int, int, int]], product: str, timestamp: str, model: str
) -> "gpd.GeoDataFrame":
    """Returns the rows of a table of tiles of one image, with Major-TOM's columns but for ``embedding``.

    Args:
        epsg: Code of the image's CRS.
        transform: From its pixels to the CRS, north up.
        boxes: Columns and rows of the tiles' pixels: the first ones, and those behind the last (x, y, x, y).
        product: The product that the image is of.
        timestamp: When it was taken, in ISO 8601.
        model: Name of the model.

    Returns:
        A frame in EPSG:4326 with ``unique_id``, ``grid_cell``, ``grid_row_u``, ``grid_col_r``, ``product_id``,
        ``timestamp``, ``centre_lat``, ``centre_lon``, ``utm_footprint``, ``utm_crs``, ``pixel_bbox`` and ``geometry``.
        The cell is that of Major-TOM's grid which the middle of a tile lies in.
    """
    import geopandas as gpd

    places = np.array(list(boxes), dtype=np.int64).reshape(-1, 4)
    left, top = transform * (places[:, 0], places[:, 1])
    right, bottom = transform * (places[:, 2], places[:, 3])
    size = {"xres": transform.a, "yres": -transform.e, "width": places[:, 2] - places[:, 0]}
    size["height"] = places[:, 3] - places[:, 1]
    shapes = split(outlines(pd.DataFrame({"epsg": epsg, "x": left, "y": top} | size)))
    lon, lat = transformer(f"EPSG:{epsg}", 4326).transform((left + right) / 2, (top + bottom) / 2)
    lon = (lon + 180) % 360 - 180
    rows, columns = cells_at(lat, lon)
    said = f" {timestamp} {product} {model}".encode()
    return gpd.GeoDataFrame(
        {
            "unique_id": [sha256(wkb + said).hexdigest() for wkb in shapely.to_wkb(shapes)],
            "grid_cell": names(rows, columns), "grid_row_u": rows, "grid_col_r": columns, "product_id": product,
            "timestamp": pd.to_datetime(timestamp, utc=True), "centre_lat": lat, "centre_lon": lon,
            "utm_footprint": shapely.to_wkt(shapely.box(left, bottom, right, top), rounding_precision=3),
            "utm_crs": f"EPSG:{epsg}", "pixel_bbox": places.tolist(),
        },
        geometry=shapes,
        crs="EPSG:4326",
    )  # fmt: skip

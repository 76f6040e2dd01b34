"""One product of one cell as Major-TOM stores it: a GeoTIFF per band, a PNG thumbnail, and the metadata."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from terrafm_tg.datasets.tiles.outlines import turned

from .grid import GridCell


@dataclass(frozen=True)
class ProductRow:
    """One product of one cell.

    Args:
        image: Row of an ``images/part_*.parquet`` table: names, and files as bytes.
        metadata: Row of ``metadata.parquet`` without the place of the image row; ``box`` is the footprint's
            west, south, east and north.
    """

    image: dict[str, Any]
    metadata: dict[str, Any]


def product_row(
    product: str,
    time: datetime,
    cell: GridCell,
    size: int,
    thumbnail: bytes,
    files: Mapping[str, bytes],
    more: Mapping[str, Any],
) -> ProductRow:
    """Describes a product of a cell as Major-TOM's tables do.

    Args:
        product: Its name.
        time: Of acquisition.
        cell: The cell.
        size: Pixels of 10 m across its picture.
        thumbnail: A PNG.
        files: A GeoTIFF per band, and others.
        more: Columns that not every product has, in the order of the table: cloud, nodata, orbit.
    """
    (lon, lat), *corners = cell.lonlat(size, [(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
    lons, lats = np.transpose(corners)
    lons = turned(lons, lon - 180)  # a picture that 180 degrees cuts goes on beyond
    lons -= 360 * np.floor((lons.min() + 180) / 360)
    names = {"product_id": product, "grid_cell": cell.name}
    image = {**names, "product_datetime": f"{time:%Y-%m-%d %H:%M:%S}", "thumbnail": thumbnail, **files}
    metadata = {
        "grid_cell": cell.name,
        "grid_row_u": cell.row,
        "grid_col_r": cell.col,
        "product_id": product,
        "timestamp": time,
        **more,
        "centre_lat": lat,
        "centre_lon": lon,
        "crs": f"EPSG:{cell.epsg}",
        "box": (*np.min([lons, lats], axis=1).tolist(), *np.max([lons, lats], axis=1).tolist()),
    }
    return ProductRow(image, metadata)


def geotiff(band: np.ndarray, epsg: int, transform: Affine, nodata: float | None = None) -> bytes:
    """Encodes a band (h, w) of a cell's picture as an LZW-compressed, tiled GeoTIFF."""
    height, width = band.shape
    block = min(1024, width // 16 * 16 + 16)  # 1024 as published, less for a smaller picture
    profile = {"driver": "GTiff", "count": 1, "dtype": band.dtype, "nodata": nodata, "compress": "lzw"}
    profile |= {"tiled": True, "blockxsize": block, "blockysize": block, "crs": CRS.from_epsg(epsg)}
    with MemoryFile() as memory:
        with memory.open(height=height, width=width, transform=transform, **profile) as file:
            file.write(band, 1)
        return memory.read()


def optical_thumbnail(red: np.ndarray, green: np.ndarray, blue: np.ndarray, offset: int, outside: np.ndarray) -> bytes:
    """Draws a PNG in natural colors of digital numbers (H, W), black where ``outside``."""
    rgb = np.stack([red, green, blue]).astype(np.float32)
    return _png((rgb - offset) / 3000, outside)


def radar_thumbnail(vv: np.ndarray, vh: np.ndarray, outside: np.ndarray) -> bytes:
    """Draws a PNG of linear power (H, W), black where ``outside``."""
    vv, vh = 10 * np.log10(np.maximum(np.stack([vv, vh]), 1e-4))
    return _png(np.stack([vv, vh + 7, vv]) / 22 + 1, outside)


def _png(rgb: np.ndarray, outside: np.ndarray) -> bytes:
    """Encodes a PNG at half the resolution of ``rgb`` (3, H, W)."""
    small = np.where(outside, 0, np.clip(rgb, 0, 1))[:, ::2, ::2]
    buffer = io.BytesIO()
    picture = Image.fromarray((255 * small).astype(np.uint8).transpose(1, 2, 0))
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

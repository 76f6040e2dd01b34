"""A rendered cell as rows of Major-TOM's tables: a GeoTIFF per band, a PNG thumbnail, the metadata."""

import io
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from terrafm_tg.datasets.esa_worldcover import CLASSES

from . import optics, radar
from .cell import GridCell
from .latents import draw_latents
from .planet import Planet
from .product import Product, plan_products
from .spectra import BANDS
from .surface import Ground, render_ground

_CODES = np.array([c.code for c in CLASSES], dtype=np.uint8)


@dataclass(frozen=True)
class Row:
    """One product of one cell.

    Args:
        image: Row of an ``images/part_*.parquet`` table: names, and files as bytes.
        metadata: Row of ``metadata.parquet`` without the place of the image row; ``box`` is the footprint's
            west, south, east and north.
    """

    image: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class EncodedCell:
    """All that is written of one cell.

    Args:
        cell: Which.
        codes: (H, W) uint8, WorldCover codes in the picture's grid, 0 over open sea.
        rows: Per modality that the cell has, its product.
    """

    cell: GridCell
    codes: np.ndarray
    rows: dict[str, Row] = field(default_factory=dict)


def encode_cell(planet: Planet, cell: GridCell, size: int) -> EncodedCell:
    """Render a cell and encode its products.

    Args:
        planet: Where it lies.
        cell: Which.
        size: Pixels across its picture at 10 m, a multiple of 12.
    """
    ground = render_ground(draw_latents(planet, cell, size))
    encoded = EncodedCell(cell, np.where(ground.open_sea, 0, _CODES[ground.land_cover]).astype(np.uint8))
    scenes: dict[datetime, optics.OpticalScene] = {}  # both levels of one date show the same sky
    with rasterio.Env():
        for modality, product in plan_products(planet.seed, cell).items():
            if product is None:
                continue
            if modality == "s1rtc":
                encoded.rows[modality] = _radar(ground, product, cell, size)
                continue
            if product.time not in scenes:
                scenes[product.time] = optics.observe(ground, product, cell.corner[0])
            encoded.rows[modality] = _optical(scenes[product.time], modality, product, cell, size)
    return encoded


def _radar(ground: Ground, product: Product, cell: GridCell, size: int) -> Row:
    power = radar.observe(ground, product)
    outside = power[0] == radar.NODATA
    vv, vh = 10 * np.log10(np.maximum(power, 1e-4))
    thumbnail = _png(np.stack([vv, vh + 7, vv]) / 22 + 1, outside)
    files = {
        "vv": geotiff(power[0], cell, 10, size, radar.NODATA),
        "vh": geotiff(power[1], cell, 10, size, radar.NODATA),
    }
    metadata = {
        "nodata": 100 * float(outside.mean()),
        "orbit_state": "ascending" if product.ascending else "descending",
    }
    return _row(product, cell, size, thumbnail, files, metadata)


def _optical(scene: optics.OpticalScene, modality: str, product: Product, cell: GridCell, size: int) -> Row:
    bands = optics.sample(scene, modality[-3:].upper(), product.offset)
    outside = bands["B02"] == 0
    rgb = np.stack([bands[name] for name in ("B04", "B03", "B02")]).astype(np.float32)
    thumbnail = _png((rgb - product.offset) / 3000, outside)
    files = {name: geotiff(band, cell, BANDS[name][1], size) for name, band in bands.items()}
    files["cloud_mask"] = geotiff(scene.cloud_mask, cell, 10, size)
    cloudy = np.isin(scene.cloud_mask, (1, 2))
    metadata = {"cloud_cover": 100 * float(cloudy.mean()), "nodata": 100 * float(outside.mean())}
    return _row(product, cell, size, thumbnail, files, metadata)


def _row(
    product: Product,
    cell: GridCell,
    size: int,
    thumbnail: bytes,
    files: dict[str, bytes],
    more: dict[str, Any],
) -> Row:
    (lon, lat), *corners = cell.lonlat(size, [(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
    lons, lats = zip(*corners, strict=True)
    image = {
        "product_id": product.id,
        "grid_cell": cell.name,
        "product_datetime": f"{product.time:%Y-%m-%d %H:%M:%S}",
        "thumbnail": thumbnail,
        **files,
    }
    metadata = {
        "grid_cell": cell.name,
        "grid_row_u": cell.row,
        "grid_col_r": cell.col,
        "product_id": product.id,
        "timestamp": product.time,
        **more,
        "centre_lat": lat,
        "centre_lon": lon,
        "crs": f"EPSG:{cell.epsg}",
        "box": (min(lons), min(lats), max(lons), max(lats)),
    }
    return Row(image, metadata)


def geotiff(band: np.ndarray, cell: GridCell, metres: int, size: int, nodata: float | None = None) -> bytes:
    """A band (h, w) of a cell's picture as an LZW-compressed, tiled GeoTIFF."""
    height, width = band.shape
    block = min(1024, width // 16 * 16 + 16)  # 1024 as published, less for a smaller picture
    profile = {"driver": "GTiff", "count": 1, "dtype": band.dtype, "nodata": nodata, "compress": "lzw"}
    profile |= {"tiled": True, "blockxsize": block, "blockysize": block, "crs": CRS.from_epsg(cell.epsg)}
    transform = cell.transform(size, metres)
    with MemoryFile() as memory:
        with memory.open(height=height, width=width, transform=transform, **profile) as file:
            file.write(band, 1)
        return memory.read()


def _png(rgb: np.ndarray, outside: np.ndarray) -> bytes:
    """A thumbnail at half the resolution of ``rgb`` (3, H, W), black where ``outside``."""
    small = np.where(outside, 0, np.clip(rgb, 0, 1))[:, ::2, ::2]
    buffer = io.BytesIO()
    picture = Image.fromarray((255 * small).astype(np.uint8).transpose(1, 2, 0))
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

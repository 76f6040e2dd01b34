"""A rendered cell as rows of Major-TOM's tables: a GeoTIFF per band, a PNG thumbnail, the metadata."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import rasterio

from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.datasets.majortom.images import ProductRow, geotiff, optical_thumbnail, product_row, radar_thumbnail
from terrafm_tg.land_cover import CLASSES
from terrafm_tg.simulation import optics, radar

from .latents import draw_latents
from .optics import BANDS
from .planet import Planet
from .product import Acquisition, plan_acquisitions
from .surface import Ground, render_ground

_CODES = np.array([c.code for c in CLASSES], dtype=np.uint8)


@dataclass(frozen=True)
class EncodedCell:
    """One cell's map and products, ready to be written."""

    cell: GridCell
    codes: np.ndarray  # (H, W) uint8, WorldCover codes in the picture's grid, 0 over open sea
    rows: dict[str, ProductRow] = field(default_factory=dict)  # per modality that the cell has, its product


def encode_cell(planet: Planet, cell: GridCell, size: int) -> EncodedCell:
    """Renders a cell, ``size`` pixels of 10 m across (a multiple of 12), and encodes its products."""
    ground = render_ground(draw_latents(planet, cell, size))
    encoded = EncodedCell(cell, np.where(ground.open_sea, 0, _CODES[ground.land_cover]).astype(np.uint8))
    scenes: dict[datetime, optics.OpticalScene] = {}  # both levels of one date show the same sky
    with rasterio.Env():
        for modality, product in plan_acquisitions(planet.seed, cell).items():
            if product is None:
                continue
            if modality == "s1rtc":
                encoded.rows[modality] = _radar(ground, product, cell, size)
                continue
            if product.time not in scenes:
                scenes[product.time] = optics.observe_optics(ground, product, cell.corner[0])
            encoded.rows[modality] = _optical(scenes[product.time], modality, product, cell, size)
    return encoded


def _radar(ground: Ground, product: Acquisition, cell: GridCell, size: int) -> ProductRow:
    power = radar.observe_radar(ground, product)
    outside = power[0] == radar.NODATA
    thumbnail = radar_thumbnail(power[0], power[1], outside)
    grid = cell.epsg, cell.transform(size)
    files = {name: geotiff(band, *grid, radar.NODATA) for name, band in zip(("vv", "vh"), power, strict=True)}
    metadata = {
        "nodata": 100 * float(outside.mean()),
        "orbit_state": "ascending" if product.ascending else "descending",
    }
    return product_row(product.id, product.time, cell, size, thumbnail, files, metadata)


def _optical(scene: optics.OpticalScene, modality: str, product: Acquisition, cell: GridCell, size: int) -> ProductRow:
    bands = optics.sample_bands(scene, modality[-3:].upper(), product.offset)
    outside = bands["B02"] == 0
    thumbnail = optical_thumbnail(bands["B04"], bands["B03"], bands["B02"], product.offset, outside)
    grids = {name: cell.transform(size, BANDS[name][1]) for name in bands}
    files = {name: geotiff(band, cell.epsg, grids[name]) for name, band in bands.items()}
    files["cloud_mask"] = geotiff(scene.cloud_mask, cell.epsg, cell.transform(size))
    cloudy = np.isin(scene.cloud_mask, (1, 2))
    metadata = {"cloud_cover": 100 * float(cloudy.mean()), "nodata": 100 * float(outside.mean())}
    return product_row(product.id, product.time, cell, size, thumbnail, files, metadata)

"""The simulated planet on disk: Major-TOM's Parquet files, WorldCover tiles, climate zones and regions."""

import json
import math
import zlib
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from shapely import box

from terrafm_tg.datasets.esa_worldcover import map_file
from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.datasets.majortom.images import ProductRow, geotiff, optical_thumbnail, product_row, radar_thumbnail
from terrafm_tg.land_cover import CLASSES
from terrafm_tg.simulation import optics, radar

from .optics import BANDS
from .planet import Planet
from .product import Acquisition, plan_acquisitions
from .surface import Ground, render_ground

_CODES = np.array([c.code for c in CLASSES], dtype=np.uint8)


def encode_cell(planet: Planet, size: int, cell: GridCell) -> tuple[np.ndarray, dict[str, ProductRow]]:
    """Renders a cell, ``size`` pixels of 10 m across (a multiple of 12), and encodes its products.

    Returns:
        WorldCover's codes in the picture's grid, (H, W) uint8, 0 over open sea; and by modality that the cell has, its
        product.
    """
    ground = render_ground(planet, cell, size)
    rows = {}
    scenes: dict[datetime, optics.OpticalScene] = {}  # both levels of one date show the same sky
    with rasterio.Env():
        for modality, product in plan_acquisitions(planet.seed, cell).items():
            if modality == "s1rtc":
                rows[modality] = _radar(ground, product, cell, size)
                continue
            if product.time not in scenes:
                scenes[product.time] = optics.OpticalScene(ground, product, cell.corner[0])
            rows[modality] = _optical(scenes[product.time], modality, product, cell, size)
    return np.where(ground.open_sea, 0, _CODES[ground.land_cover]).astype(np.uint8), rows


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
    bands = scene.bands(modality[-3:].upper(), product.offset)
    outside = bands["B02"] == 0
    thumbnail = optical_thumbnail(bands["B04"], bands["B03"], bands["B02"], product.offset, outside)
    grids = {name: cell.transform(size, BANDS[name][1]) for name in bands}
    files = {name: geotiff(band, cell.epsg, grids[name]) for name, band in bands.items()}
    files["cloud_mask"] = geotiff(scene.cloud_mask, cell.epsg, cell.transform(size))
    cloudy = np.isin(scene.cloud_mask, (1, 2))
    metadata = {"cloud_cover": 100 * float(cloudy.mean()), "nodata": 100 * float(outside.mean())}
    return product_row(product.id, product.time, cell, size, thumbnail, files, metadata)


#: A part is closed after the row that exceeds this; published parts hold about 5.3 GB.
PART_BYTES = 256 * 2**20


class ProductWriter:
    """Writes one product's ``images/part_00001.parquet`` ... and, at the end, its ``metadata.parquet``.

    Every row is a row group of its own, so that one cell can be read with one range request.

    Args:
        folder: Of the product, such as ``root/Core-S2L2A``; must not exist.
        part_bytes: Size from which a new part is begun.
    """

    def __init__(self, folder: Path, part_bytes: int = PART_BYTES) -> None:
        self.folder = folder
        self.part_bytes = part_bytes
        (folder / "images").mkdir(parents=True)
        self._metadata: list[dict[str, Any]] = []
        self._part: pq.ParquetWriter | None = None
        self._parts = self._rows = self._bytes = 0

    def add(self, row: ProductRow) -> None:
        """Appends one product."""
        if self._part is None:
            self._parts, self._rows, self._bytes = self._parts + 1, 0, 0
            types = {k: pa.binary() if isinstance(v, bytes) else pa.string() for k, v in row.image.items()}
            self._part = pq.ParquetWriter(
                self.folder / self._url, pa.schema(types.items()), compression="NONE", write_statistics=False
            )
        self._part.write_table(pa.Table.from_pylist([row.image], schema=self._part.schema))
        self._metadata.append(row.metadata | {"parquet_url": self._url, "parquet_row": self._rows})
        self._rows += 1
        self._bytes += sum(map(len, row.image.values()))
        if self._bytes > self.part_bytes:
            self._close_part()

    def close(self) -> None:
        """Writes the metadata: Sentinel-2's with footprints (GeoParquet), Sentinel-1's without, as published."""
        self._close_part()
        if not self._metadata:
            return
        table = pd.DataFrame(self._metadata)
        table["timestamp"] = table["timestamp"].astype("datetime64[us]")
        footprints = [box(*bounds) for bounds in table.pop("box")]
        path = self.folder / "metadata.parquet"
        if "orbit_state" in table:
            table.to_parquet(path, index=False)
        else:
            gpd.GeoDataFrame(table, geometry=footprints, crs="EPSG:4326").to_parquet(path, index=False)

    @property
    def _url(self) -> str:
        return f"images/part_{self._parts:05d}.parquet"

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


_WGS84 = CRS.from_epsg(4326)
_TILE = 3  # degrees
_PIXELS = 12_000  # per degree, as in the published map
_WORLDCOVER: dict[str, Any] = {
    "driver": "GTiff", "width": _TILE * _PIXELS, "height": _TILE * _PIXELS, "count": 1, "dtype": "uint8",
    "crs": _WGS84, "nodata": 0, "compress": "deflate", "tiled": True, "blockxsize": 512, "blockysize": 512,
    "sparse_ok": True,
}  # fmt: skip
_REGIONS = {  # west, south, east, north
    "Northwest": (-180, 15, -60, 90),
    "North Atlantic": (-60, 15, 0, 90),
    "North": (0, 15, 60, 90),
    "Northeast": (60, 15, 180, 90),
    "Southwest": (-180, -90, -60, 15),
    "South Atlantic": (-60, -90, 0, 15),
    "South": (0, -90, 60, 15),
    "Southeast": (60, -90, 180, 15),
}


class WorldCoverWriter:
    """Collects cells, then writes the 3° tiles that they touch; only blocks that hold data take space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._patches: defaultdict[tuple[int, int], list[tuple[Window, bytes]]] = defaultdict(list)

    def add(self, cell: GridCell, codes: np.ndarray) -> None:
        """Warps the codes (H, W) of a cell's UTM picture to the map's own grid, by nearest neighbor."""
        size = len(codes)
        edge = [(u / 4, v / 4) for u in range(5) for v in range(5)]
        lons, lats = zip(*cell.lonlat(size, edge), strict=True)
        for lat in range(_corner(min(lats)), _corner(max(lats)) + 1, _TILE):
            for lon in range(_corner(min(lons)), _corner(max(lons)) + 1, _TILE):
                left, top = max(min(lons), lon), min(max(lats), lat + _TILE)
                right, bottom = min(max(lons), lon + _TILE), max(min(lats), lat)
                col, row = math.floor((left - lon) * _PIXELS), math.floor((lat + _TILE - top) * _PIXELS)
                width = math.ceil((right - lon) * _PIXELS) - col
                height = math.ceil((lat + _TILE - bottom) * _PIXELS) - row
                window, patch = Window(col, row, width, height), np.zeros((height, width), dtype=np.uint8)
                reproject(
                    codes, patch, src_transform=cell.transform(size), src_crs=CRS.from_epsg(cell.epsg),
                    dst_transform=window_transform(window, _origin(lat, lon)), dst_crs=_WGS84,
                    src_nodata=255, dst_nodata=0, resampling=Resampling.nearest,
                )  # fmt: skip
                self._patches[lat, lon].append((window, zlib.compress(patch, 1)))

    def close(self) -> None:
        """Writes all tiles."""
        self.folder.mkdir(parents=True)
        for (lat, lon), patches in self._patches.items():
            path = self.folder / map_file(lat, lon)
            with rasterio.open(path, "w+", transform=_origin(lat, lon), **_WORLDCOVER) as file:
                for window, packed in patches:
                    patch = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(window.height, window.width)
                    before = file.read(1, window=window)  # the frames of two cells may overlap
                    file.write(np.where(patch > 0, patch, before), 1, window=window)


def _corner(degrees: float) -> int:
    return math.floor(degrees / _TILE) * _TILE


def _origin(lat: int, lon: int) -> rasterio.Affine:
    return from_origin(lon, lat + _TILE, 1 / _PIXELS, 1 / _PIXELS)


def write_climate(path: Path, planet: Planet) -> None:
    """Writes climate zones at 0.5° as a GeoTIFF of Köppen-Geiger codes (1 Af ... 30 EF), 0 over the sea."""
    lat, lon = np.arange(89.75, -90, -0.5), np.arange(-179.75, 180, 0.5)
    field = planet.at(lat, lon)
    warm, moist = field["temperature"], field["moisture"]
    rules = [
        (field["elevation"] < -0.3, 0),
        (warm < -9, 30),  # EF
        (warm < -2, 29),  # ET
        ((moist < 0.25) & (warm > 12), 4),  # BWh
        (moist < 0.25, 5),  # BWk
        ((moist < 0.42) & (warm > 12), 6),  # BSh
        (moist < 0.42, 7),  # BSk
        ((warm > 20) & (moist > 0.7), 1),  # Af
        ((warm > 20) & (moist > 0.55), 2),  # Am
        (warm > 20, 3),  # Aw
        (warm > 12, 14),  # Cfa
        (warm > 6, 15),  # Cfb
        (warm > 2, 26),  # Dfb
    ]
    zones = np.select([where for where, _ in rules], [code for _, code in rules], 27).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=len(lon), height=len(lat), count=1, dtype="uint8", nodata=0,
        crs=_WGS84, transform=from_origin(-180, 90, 0.5, 0.5), compress="deflate",
    ) as file:  # fmt: skip
        file.write(zones, 1)


def write_regions(path: Path) -> None:
    """Writes eight regions of the planet as GeoJSON polygons with a ``name``."""
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": {"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]},
        }
        for name, (w, s, e, n) in _REGIONS.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))

"""Writes tiny files in the true formats: Major-TOM's Parquet with a GeoTIFF per band, and plain GeoTIFFs."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import rasterio
from affine import Affine
from torch import Tensor

from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.modalities import MODALITIES

SIZE = 24  # pixels of a tiny cell; a tile has 12
EPSG, X, Y = 32633, 400_000, 5_000_000  # place of a plain GeoTIFF


def tiff(pixels: np.ndarray, epsg: int, x: float, y: float, res: float, nodata: float | None = None) -> bytes:
    """GeoTIFF of (C, h, w) whose upper left corner lies at (x, y)."""
    pixels = np.atleast_3d(pixels) if pixels.ndim == 3 else pixels[None]
    buffer, block = io.BytesIO(), 16 if pixels.shape[1] < 178 else 1024
    with rasterio.open(
        buffer, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype, crs=f"EPSG:{epsg}", transform=Affine(res, 0, x, 0, -res, y), nodata=nodata,
        compress="lzw", tiled=True, blockxsize=block, blockysize=block,
    ) as file:  # fmt: skip
        file.write(pixels)
    return buffer.getvalue()


def corner_of(cell: str, epsg: int, size: int = SIZE) -> tuple[float, float]:
    """Upper left corner of a cell's picture: its middle lies 5 km from the cell's bottom left corner."""
    lat, lon = grid.corners(*grid.parse([cell]))
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon[0], lat[0])
    return x + 5000 - size * 5, y + 5000 + size * 5


def band_pixels(modality: str, band: str, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Random numbers for one band of one cell, at its native size."""
    held = MODALITIES[modality]
    res = held.resolutions[held.bands.index(band)] if band in held.bands else 60
    random = np.random.default_rng([seed, *modality.encode(), *band.encode()])
    shape = (size * 10 // res,) * 2
    if modality == "s1rtc":
        return random.gamma(2, 0.1, shape).astype(np.float32) + np.float32(1e-3)
    return random.integers(1200, 5000, shape).astype(np.uint16)


def product(modality: str, cell: str, baseline: str = "N0301", date: str = "20210501T101031", **changes) -> dict:
    """A row of a product: its ``bands``, of which ``pixels`` replaces some, and its ``metadata``."""
    epsg, size = changes.pop("epsg", 32633), changes.pop("size", SIZE)
    x, y = changes.pop("corner", corner_of(cell, epsg, size))
    held = MODALITIES[modality]
    bands = (
        [b.lower() for b in held.bands] if modality == "s1rtc" else [*held.bands, *(["B10"] * (modality == "s2l1c"))]
    )
    replaced, nodata = changes.pop("pixels", {}), -32768.0 if modality == "s1rtc" else None
    columns = {}
    for band in bands:
        pixels = replaced.get(band, band_pixels(modality, band.upper(), size))
        columns[band] = tiff(pixels, epsg, x, y, size * 10 / len(pixels), changes.get("tiff_nodata", nodata))
    changes.pop("tiff_nodata", None)
    kind = {"s1rtc": "S1A_IW_GRDH", "s2l1c": "S2A_MSIL1C", "s2l2a": "S2A_MSIL2A"}[modality]
    name = f"{kind}_{date}_{baseline}_R022_T33UUP_20220101T000000"
    metadata = {
        "grid_cell": cell,
        "product_id": name,
        "timestamp": pd.Timestamp(date),
        "cloud_cover": 0.0,
        "nodata": 0.0,
        "crs": f"EPSG:EPSG:{epsg}" if modality == "s1rtc" else f"EPSG:{epsg}",
    }
    return {"bands": columns, "metadata": metadata | changes}


class Places(TileDataset):
    """Tiles that are looked up only."""

    def _read(self, row, modality):
        raise AssertionError("no pixels here")


def sample_of(dataset: TileDataset, row: int = 0) -> dict[str, Tensor]:
    """A tile of the dataset."""
    return dataset[dataset.tile_slice(row)]


def write_major_tom(root: Path, rows: dict[str, list[dict]], url: str = "https://host/resolve/main/images/") -> Path:
    """A Major-TOM root with the rows of each modality, one row per row group, two rows per file."""
    for modality, products in rows.items():
        folder = root / FOLDERS[modality]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        metadata = []
        for part, start in enumerate(range(0, len(products), 2), 1):
            name = f"part_{part:05}.parquet"
            held = products[start : start + 2]
            named = [{key: p["metadata"][key] for key in ("product_id", "grid_cell")} | p["bands"] for p in held]
            table = pa.Table.from_pylist(named)
            pq.write_table(table, folder / "images" / name, row_group_size=1)
            for group, p in enumerate(held):
                metadata.append(p["metadata"] | {"parquet_url": url + name, "parquet_row": group})
        pd.DataFrame(metadata).to_parquet(folder / "metadata.parquet")
    return root


def write(path, pixels, x=X, y=Y, res=10, epsg=EPSG, descriptions=None, **tags):
    """Writes a plain GeoTIFF (C, h, w), with names of its bands and tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiff(pixels, epsg, x, y, res))
    if descriptions or tags:
        with rasterio.open(path, "r+") as file:
            file.update_tags(**tags)
            for i, text in enumerate(descriptions or [], 1):
                file.set_band_description(i, text)


def optics(bands, size=24, offset=0, seed=0):
    """Random digital numbers; B10, the 11th of 13 bands, is black."""
    pixels = np.random.default_rng(seed).integers(100, 3000, (bands, size, size)).astype(np.uint16)
    pixels += np.uint16(offset)
    if bands == 13:
        pixels[10] = 12 + offset
    return pixels


def radar(size=24, seed=1):
    """Random decibels of VV and VH, which lies seven below."""
    pixels = np.random.default_rng(seed).normal(-11, 3, (2, size, size)).astype(np.float32)
    pixels[1] -= 7
    return pixels

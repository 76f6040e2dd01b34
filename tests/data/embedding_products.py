"""Tiny embedding products, written with the libraries that anyone uses, and what is in them."""

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import zarr
from affine import Affine
from pyproj import CRS, Transformer

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products import Reduction
from terrafm_tg.inference.products.cog import write_cog as write_map
from terrafm_tg.inference.products.zarr import write_zarr as write_store

#: A map in UTM zone 33, north of the equator, with pixels of 160 m.
UTM = "EPSG:32633"
PLACE = Affine(160, 0, 400_000, 0, -160, 5_800_000)
ABOUT = {"model": "terrafm_tiny", "pooling": "mean", "window": 14, "dates": {"s2l2a": ["2024-05-01T10:00:00"]}}


def values(height: int = 20, width: int = 24, dims: int = 8, seed: int = 0) -> np.ndarray:
    """Embeddings (h, w, D) of three classes in vertical strips, with noise; some are missing."""
    rng = np.random.default_rng(seed)
    centers = 3 * np.random.default_rng(99).normal(size=(3, dims))
    x = centers[strips(height, width)] + 0.5 * rng.normal(size=(height, width, dims))
    x[:2, :3] = np.nan
    return x.astype(np.float32)


def strips(height: int = 20, width: int = 24) -> np.ndarray:
    """The class of each pixel, 0, 1, 2 from west to east."""
    return np.broadcast_to(np.arange(width) * 3 // width, (height, width))


def write_cog(
    path: Path,
    x: np.ndarray,
    transform: Affine = PLACE,
    crs: str = UTM,
    scale: float | None = None,
    about: dict[str, Any] = ABOUT,
) -> Path:
    """Writes a map as a tiled GeoTIFF; with ``scale`` as int8, -128 where missing."""
    stored, nodata = x, np.nan
    if scale is not None:
        stored, nodata = np.where(np.isnan(x), -128, np.clip(np.round(x / scale), -127, 127)).astype(np.int8), -128
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "zstd"}
    height, width, dims = x.shape
    profile |= {"height": height, "width": width, "count": dims, "dtype": stored.dtype, "nodata": nodata}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as dst:
        dst.write(np.moveaxis(stored, -1, 0))
        if scale is not None:
            dst.scales, dst.offsets = [scale] * dims, [0.0] * dims
        dst.update_tags(**{key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()})
    return path


def write_zarr(path: Path, x: np.ndarray, transform: Affine = PLACE, crs: str = UTM) -> Path:
    """Writes a map as a sharded Zarr v3 store with coordinates and CF's grid mapping."""
    height, width, dims = x.shape
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=dict(ABOUT))
    array = group.create_array(
        "embeddings", shape=x.shape, chunks=(8, 8, dims), shards=(16, 16, dims), dtype="float32", fill_value=np.nan,
        dimension_names=("y", "x", "embedding"), attributes={"grid_mapping": "spatial_ref"},
    )  # fmt: skip
    array[:] = x
    for name, middles in (
        ("x", transform.c + transform.a * (np.arange(width) + 0.5)),
        ("y", transform.f + transform.e * (np.arange(height) + 0.5)),
    ):
        group.create_array(name, data=middles, dimension_names=(name,))
    group.create_array("spatial_ref", data=np.int64(0), attributes={"crs_wkt": CRS(crs).to_wkt()})
    return path


def write_table(path: Path, x: np.ndarray, columns: tuple[str, ...] = ("embedding",), geometry: Any = None) -> Path:
    """Writes embeddings (n, D) as a GeoParquet table of points in two row groups; missing ones are null."""
    n = len(x)
    lists = [None if np.isnan(row).any() else row.tolist() for row in x]
    points = shapely.points(13 + 0.01 * np.arange(n), 52.0) if geometry is None else geometry
    cells = {"grid_cell": [f"{i}U_7R" for i in range(n)], "timestamp": ["2024-06-02T00:00:00"] * n}
    frame = gpd.GeoDataFrame(dict.fromkeys(columns, lists) | cells, geometry=points, crs=4326)
    frame.to_parquet(path, row_group_size=-(-n // 2))
    return path


def middle(row: int, column: int, transform: Affine = PLACE, crs: str = UTM) -> tuple[float, float]:
    """Longitude and latitude of a pixel's middle, by pyproj itself."""
    return Transformer.from_crs(crs, 4326, always_xy=True).transform(*(transform * (column + 0.5, row + 0.5)))


def write_product(path: Path, x: np.ndarray, dtype: str = "float32", pca: int | None = None) -> Reduction:
    """Writes a map as `terrafm embed` does."""
    height, width, dims = x.shape
    parts = MapParts(path.with_suffix(".parts"), "scene", UTM, tuple(PLACE)[:6], height, width, dims, 16, about=ABOUT)
    parts.begin()
    for row in range(parts.grid[0]):
        for column in range(parts.grid[1]):
            parts.write(row, column, x[parts.slices(row, column)])
    reduction = Reduction.fit_maps([parts], dtype, pca)
    (write_store if path.suffix == ".zarr" else write_map)(parts, path, reduction)
    shutil.rmtree(parts.folder)
    return reduction

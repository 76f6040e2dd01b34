"""Tiny GeoTIFFs, as the tests' data sets need them."""

from pathlib import Path
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin


def write_geotiff(
    path: Path,
    image: NDArray,
    *,
    resolution: float = 10,
    epsg: int = 32633,
    corner: tuple[float, float] = (400_000, 5_300_000),
    **profile: Any,
) -> Path:
    """Writes `image` (C, H, W) or (H, W) in its own type, its upper left corner at `corner`; returns the path."""
    image = image if image.ndim == 3 else image[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    grid = {"crs": f"EPSG:{epsg}", "transform": from_origin(*corner, resolution, resolution)}
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": image.dtype}
    with rasterio.open(path, "w", **grid | given | profile) as file:
        file.write(image)
    return path

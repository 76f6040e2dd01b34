"""Tiny GeoTIFFs, as the tests' data sets need them."""

from pathlib import Path

import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin


def write_geotiff(
    path: Path, image: NDArray, *, resolution: float = 10, epsg: int = 32633, corner: tuple[int, int] = (0, 0)
) -> None:
    """Writes `image` (C, H, W) or (H, W) in its own type; `corner`: metres from 400,000 E, 5,300,000 N."""
    image = image if image.ndim == 3 else image[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    left, top = 400_000 + corner[0], 5_300_000 + corner[1]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=image.shape[0],
        height=image.shape[1],
        width=image.shape[2],
        dtype=image.dtype,
        crs=f"EPSG:{epsg}",
        transform=from_origin(left, top, resolution, resolution),
    ) as file:
        file.write(image)

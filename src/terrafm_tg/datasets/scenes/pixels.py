"""What a scene shows of a Major-TOM cell: its pixels on the cell's picture grid, copied where the grids agree."""

import math
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window, from_bounds

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.cell import GridCell
from terrafm_tg.datasets.tiles.tiff import native_pixels
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality

#: Metres that a picture's corner is a multiple of: Sentinel-2's 10 and 20 m pixels end there in each zone.
STEP = 20.0
_SAME = 1e-3  # of a pixel, and metres of its size
_TELLING = 100  # pixels that tell their unit


def cells_under(path: Path) -> list[GridCell]:
    """The cells that the box around a file in latitude and longitude meets, from the south west."""
    with rasterio.open(path) as src:
        if src.crs is None or src.transform.is_identity:
            raise TerraFMError(
                f"{path} is not geocoded (radar in slant or ground range): correct it for terrain first, such as with "
                "ASF HyP3 or SNAP."
            )
        west, south, east, north = transform_bounds(src.crs, 4326, *src.bounds, densify_pts=21)
    east += 360 * (east < west)  # across the date line
    cells: dict[tuple[int, int], None] = {}
    for row in range(int(grid.cells_at(south, 0)[0]), int(grid.cells_at(north, 0)[0]) + 1):
        width = 360 / int(grid.columns(row))
        edges = np.arange(math.ceil(west / width), math.floor(east / width) + 1) * width
        lons = np.sort([west, *edges, *([180.0] if west < 180 <= east else [])])
        rows, columns = grid.cells_at(np.full(len(lons), row * 180 / grid.ROWS), lons)
        cells |= dict.fromkeys(zip(rows.tolist(), columns.tolist(), strict=True))
    return [GridCell(*cell) for cell in cells]


def picture_grid(cell: GridCell, size: int, metres: int = 10) -> Affine:
    """The grid of a cell's picture: Major-TOM's, its corner moved to the nearest multiple of 20 m.

    So Sentinel-2's pixels of 10 and 20 m, which end on such multiples, and radar on the same raster are copied as
    they are, at most 10 m from where Major-TOM cuts. Major-TOM's own corners lie between pixels.
    """
    exact = cell.transform(size)
    return Affine(metres, 0.0, round(exact.c / STEP) * STEP, 0.0, -metres, round(exact.f / STEP) * STEP)


def cell_pixels(
    path: Path, modality: Modality, unit: str, epsg: int, transform: Affine, side: int
) -> np.ndarray:
    """One band of a scene over a cell's picture.

    Pixels are copied where the file lies in the cell's zone and its pixels end where the picture's do. Otherwise
    (another zone, 60 m bands, radar on another raster) they are interpolated linearly over what is not missing, or
    averaged where they are finer; radar as power.

    Args:
        path: The band's file.
        modality: Whose it is.
        unit: ``DN``, ``linear``, ``dB`` or ``amplitude``.
        epsg: Zone of the picture.
        transform: Its grid.
        side: Its pixels along each side.

    Returns:
        (side, side) uint16, 0 where missing, or float32 linear power, -32768 where missing.

    Raises:
        rasterio.errors.RasterioError: If the file cannot be read.
    """
    crs = CRS.from_epsg(epsg)
    dtype = np.uint16 if unit == "DN" else np.float32
    picture = np.full((side, side), modality.nodata, dtype=dtype)
    with rasterio.open(path) as src:
        window = _window(src, crs, array_bounds(side, side, transform))
        if window is None:
            return picture
        pixels = _native(path, src.read(1, window=window), modality, unit, src.nodata)
        origin, source = src.window_transform(window), src.crs
    column, row = (transform.c - origin.c) / origin.a, (transform.f - origin.f) / origin.e
    apart = (
        abs(column - round(column)),
        abs(row - round(row)),
        abs(origin.a - transform.a),
        abs(origin.e - transform.e),
    )
    if source == crs and origin.b == origin.d == 0 and max(apart) < _SAME:
        _copy(pixels, picture, round(row), round(column))
        return picture
    finer = max(window.width, window.height) > 1.5 * side
    reproject(
        pixels, picture, src_transform=origin, src_crs=source, dst_transform=transform, dst_crs=crs,
        src_nodata=modality.nodata, dst_nodata=modality.nodata,
        resampling=Resampling.average if finer else Resampling.bilinear, tolerance=0.01,
    )  # fmt: skip
    return picture


def _window(src: DatasetReader, crs: CRS, bounds: tuple[float, float, float, float]) -> Window | None:
    """The pixels of a file that a box needs, with two beyond for interpolation; None where it has none."""
    there = bounds if src.crs == crs else transform_bounds(crs, src.crs, *bounds, densify_pts=21)
    needed = from_bounds(*there, transform=src.transform)
    ranges = []
    for (low, high), size in zip(needed.toranges(), src.shape, strict=True):
        start, stop = max(math.floor(low) - 2, 0), min(math.ceil(high) + 2, size)
        if start >= stop:
            return None
        ranges.append((start, stop))
    return Window.from_slices(*ranges)


def _native(
    path: Path, pixels: np.ndarray, modality: Modality, unit: str, nodata: float | None
) -> np.ndarray:
    """Stored values as digital numbers or linear power; also NaN, and 0 in radar of any unit, is missing."""
    if unit == "DN":
        return native_pixels(np.nan_to_num(pixels), modality, nodata)
    missing = np.isnan(pixels) | (pixels == 0) | (pixels == modality.nodata)
    if nodata is not None:
        missing |= pixels == nodata
    negative = (pixels[~missing] < 0).mean() if (~missing).sum() >= _TELLING else 0.5
    if (negative > 0.5) if unit != "dB" else (negative == 0):
        other, what = ("dB", "mostly") if unit != "dB" else ("linear", "no")
        raise TerraFMError(
            f"{path.name} holds {what} negative numbers, as {other} data: set `radar_unit` to {other!r}, got {unit!r}."
        )
    pixels = np.where(
        missing, np.float32(modality.nodata), pixels * pixels if unit == "amplitude" else pixels
    )
    return native_pixels(pixels, modality, None, unit="dB" if unit == "dB" else "linear")


def _copy(pixels: np.ndarray, picture: np.ndarray, row: int, column: int) -> None:
    """Copy what a picture shows of pixels, whose corner lies at (row, column) of them."""
    ranges = []
    for start, size, side in zip((row, column), pixels.shape, picture.shape, strict=True):
        low, high = max(start, 0), min(start + side, size)
        if low >= high:
            return
        ranges.append((slice(low, high), slice(low - start, high - start)))
    (rows, down), (columns, across) = ranges
    picture[down, across] = pixels[rows, columns]

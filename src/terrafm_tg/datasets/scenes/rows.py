"""One scene to rows of Major-TOM's tables, one per cell that it covers."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terrafm_tg.datasets.majortom.cell import GridCell
from terrafm_tg.datasets.majortom.files import Row, geotiff, optical_thumbnail, radar_thumbnail
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import OFFSET, offsets_by_name

from .find import Scene
from .pixels import cell_pixels, cells_under, picture_grid

_EXTRA = 60  # metres of B10, the one band of a product that the encoder does not read


def scene_rows(scene: Scene, min_valid: float, size: int) -> Iterator[Row]:
    """The rows of one scene, from the south west.

    Args:
        scene: Which.
        min_valid: Least share of a cell's picture that its first 10 m band must cover.
        size: Pixels of 10 m across a cell's picture.

    Raises:
        DamagedTileError: If a file of the scene cannot be read.
        TerraFMError: If it is not geocoded, or its pixels are not of its unit.
    """
    modality, files = MODALITIES[scene.modality], dict(scene.files)
    radar, first = scene.unit != "DN", modality.native[10][0]
    native = dict(zip(modality.bands, modality.resolutions, strict=True))
    native |= {band: _EXTRA for band in modality.extra if band in files}

    def read(cell: GridCell, band: str) -> NDArray[Any]:
        grid, side = picture_grid(cell, size, native[band]), size * 10 // native[band]
        return cell_pixels(files[band], modality, scene.unit, cell.epsg, grid, side)

    try:
        for cell in cells_under(files[first]):
            pixels = {first: read(cell, first)}
            valid = float((pixels[first] > 0).mean())
            if valid < min_valid:
                continue
            pixels |= {band: read(cell, band) for band in native if band != first}
            tiffs = {}
            for band, res in sorted(native.items()):
                grid = picture_grid(cell, size, res)
                nodata = modality.nodata if radar else None
                tiffs[band.lower() if radar else band] = geotiff(pixels[band], cell.epsg, grid, nodata)
            yield _row(scene, cell, size, tiffs, _thumbnail(scene, pixels), 100 * (1 - valid))
    except RasterioError as error:
        raise DamagedTileError(f"{scene.product} {scene.modality}", str(error).rstrip(".")) from error


def _thumbnail(scene: Scene, pixels: dict[str, NDArray[Any]]) -> bytes:
    if scene.unit != "DN":
        return radar_thumbnail(pixels["VV"], pixels["VH"], pixels["VV"] <= 0)
    offset = OFFSET if offsets_by_name(pd.Series([scene.product]))[0] else 0
    return optical_thumbnail(pixels["B04"], pixels["B03"], pixels["B02"], offset, pixels["B02"] == 0)


def _row(
    scene: Scene, cell: GridCell, size: int, tiffs: dict[str, bytes], thumbnail: bytes, nodata: float
) -> Row:
    """A row of the tables, as Major-TOM has them."""
    (lon, lat), *corners = cell.lonlat(size, [(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
    lons, lats = zip(*corners, strict=True)
    names = {"product_id": scene.product, "grid_cell": cell.name}
    image = names | {"product_datetime": f"{scene.time:%Y-%m-%d %H:%M:%S}", "thumbnail": thumbnail, **tiffs}
    known = {"orbit_state": None} if scene.unit != "DN" else {"cloud_cover": scene.cloud_cover}
    metadata = {
        "grid_cell": cell.name,
        "grid_row_u": cell.row,
        "grid_col_r": cell.col,
        "product_id": scene.product,
        "timestamp": scene.time.isoformat(),
        **known,
        "nodata": nodata,
        "centre_lat": lat,
        "centre_lon": lon,
        "crs": f"EPSG:{cell.epsg}",
        "box": (min(lons), min(lats), max(lons), max(lats)),
    }
    return Row(image, metadata)

"""Small cities as OSCD and own radar lie on disk: two dates, native resolutions, degrees, VV in hundredths of dB."""

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter, zoom

from terrafm_tg.modalities import S2L2A

BANDS = dict(zip(S2L2A.bands, S2L2A.resolutions, strict=True)) | {"B10": 60}
_DEGREE = 1e-4
#: Dates that `dates.txt` says; the name of the first is of reprocessing.
DATES = "20150704", "20180211"
NAMES = "S2A_OPER_MSI_L1C_TL_EPA__20160809T015434_A000162_T32TPP_{}", "T32TPP_20180211T102141_{}"


def _write(path: Path, image: NDArray, corner: tuple[float, float], step: float, **profile: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"crs": "EPSG:4326", "transform": from_origin(*corner, step, step)}
    height, width = image.shape
    with rasterio.open(path, "w", driver="GTiff", count=1, height=height, width=width, dtype=image.dtype,
                       **grid | profile) as file:  # fmt: skip
        file.write(image, 1)


def write_city(root: Path, name: str, number: int, side: int = 204, radar: bool = True, rect: bool = True) -> NDArray:
    """Writes one city, `number` degrees east; what the second date adds is brighter in both sensors.

    Returns:
        Its surface before the change, (side, side) in [0, 1]: radar and optical imagery are functions of it.
    """
    rng = np.random.default_rng(number)
    surface = gaussian_filter(rng.normal(size=(side, side)), 6)
    surface = (surface - surface.min()) / np.ptp(surface)
    corner, changed = (10.0 + number, 45.0), np.zeros((side, side), np.uint8)
    changed[32:96, 48:112] = 1
    for date, pattern in enumerate(NAMES):
        now = surface + 0.8 * changed * date
        folder = root / f"images/{name}/imgs_{date + 1}"
        for place, (band, res) in enumerate(BANDS.items()):
            factor = res // 10
            level = 12 if band == "B10" else 900 + 100 * place
            x = zoom(now, 1 / factor, order=1, grid_mode=True, mode="nearest")
            x = (level * (0.5 + x) * rng.normal(1, 0.02, x.shape)).clip(1).astype(np.uint16)
            _write(folder / f"{pattern.format(band)}.tif", x, corner, side / x.shape[0] * _DEGREE)
            if rect:
                rects = root / f"images/{name}/imgs_{date + 1}_rect"
                rects.mkdir(exist_ok=True)
                with rasterio.open(rects / f"{band}.tif", "w", driver="GTiff", count=1, height=side, width=side,
                                   dtype="uint16") as file:  # fmt: skip
                    file.write(np.full((side, side), 7777, np.uint16), 1)
        if radar:
            db = -18 + 14 * now + rng.normal(0, 0.7, now.shape)
            file = root / f"radar/{name}/{name}_orbit15_t{date + 1}_VV.tif"
            _write(file, np.rint(100 * db).astype(np.int16), corner, _DEGREE, nodata=-32768)
            with rasterio.open(file, "r+") as dataset:
                dataset.scales = (0.01,)
    (root / f"images/{name}/dates.txt").write_text(f"date_1: {DATES[0]}\ndate_2: {DATES[1]}\n")
    labels = root / f"labels/{name}-cm.tif"
    labels.parent.mkdir(exist_ok=True)
    with rasterio.open(labels, "w", driver="GTiff", count=1, height=side, width=side, dtype="uint8") as dataset:
        dataset.write(changed + 1, 1)
    return surface

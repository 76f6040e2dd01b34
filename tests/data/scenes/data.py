"""Sentinel scenes as agencies name and lay them out, some kilometres wide."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import Sentinel2

from data.geotiff import write_geotiff

EPSG, X, Y = 32632, 499_980, 5_376_600  # upper left corner, a multiple of 60 m
TILE, DATE = "T32UMU", "20220306T102021"
L2A = f"S2B_MSIL2A_{DATE}_N0400_R065_{TILE}_20220306T130000"
L1C = f"S2B_MSIL1C_{DATE}_N0400_R065_{TILE}_20220306T120000"
RTC = "S1A_IW_20220307T053431_DVP_RTC10_G_gpunem_4E2A"
GRD = "S1A_IW_GRDH_1SDV_20220307T053431_20220307T053456_042213_0507E1_4E2A"
METADATA = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
  <n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-{level}_User_Product>
"""


def optics(band: str, side: int) -> np.ndarray:
    """Digital numbers of a band of a scene of ``side`` 10 m pixels."""
    metres = int(Sentinel2.resolutions[band][:2])
    return np.random.default_rng([*band.encode()]).integers(1001, 6000, (side * 10 // metres,) * 2).astype(np.uint16)


def radar(band: str, side: int) -> np.ndarray:
    """Linear power."""
    return np.random.default_rng([*band.encode()]).gamma(4, 0.02, (side, side)).astype(np.float32) + np.float32(1e-3)


def safe(root: Path, level: str, side: int) -> Path:
    """A SAFE folder with JPEG 2000 files, L2A in a folder per resolution."""
    folder = root / f"{L2A if level == 'L2A' else L1C}.SAFE"
    images = folder / "GRANULE" / f"{level}_{TILE}_A026107_20220306T102051" / "IMG_DATA"
    for band, resolution in Sentinel2.resolutions.items():
        name = f"{TILE}_{DATE}_{band}" if level == "L1C" else f"R{resolution}/{TILE}_{DATE}_{band}_{resolution}"
        if level == "L1C" or band != "B10":
            write(images / f"{name}.jp2", optics(band, side), int(resolution[:2]))
    (folder / f"MTD_MSI{level}.xml").write_text(METADATA.format(level=level[1:]))
    return folder


def cogs(root: Path, side: int) -> None:
    """L2A as cloud-optimised GeoTIFFs in one folder, which does not say the baseline."""
    for band, resolution in Sentinel2.resolutions.items():
        if band != "B10":
            write(root / "cogs" / f"{TILE}_{DATE}_{band}_{resolution}.tif", optics(band, side), int(resolution[:2]))


def rtc(root: Path, side: int, name: str = RTC, unit: str = "linear", **grid: float) -> None:
    """Radar as ASF delivers it, or with another name."""
    for band in ("VV", "VH"):
        power = radar(band, side)
        stored = {"linear": power, "dB": 10 * np.log10(power), "amplitude": np.sqrt(power)}[unit]
        write(root / name / f"{name}_{band}.tif", stored.astype(np.float32), **({"res": 10} | grid))


def write(
    path: Path, pixels: np.ndarray, res: float, x: float | None = None, y: float | None = None, epsg: int | None = None
) -> None:
    """A GeoTIFF or JPEG 2000, at the scenes' corner where no other is given."""
    picture = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
    kind = picture if path.suffix == ".jp2" else {"driver": "COG"}
    corner = (X if x is None else x, Y if y is None else y)
    write_geotiff(path, pixels, resolution=res, epsg=epsg or EPSG, corner=corner, **kind)

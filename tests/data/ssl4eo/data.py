"""SSL4EO-S12 as it is on disk: per sensor, site and image a folder with a GeoTIFF per band at its native size."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import SSL4EOS12

from data.geotiff import write_geotiff

#: Images of a site by split; the dates of the sensors differ.
IMAGES = {
    "s1": ("S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457",
           "S1A_IW_GRDH_1SDV_20200903T131212_20200903T131237_034195_03F8F5_AC1C"),
    "s2c": ("20200604T054639_20200604T054831_T43RCP", "20200823T054639_20200823T055618_T43RCP"),
    "s2a": ("20200604T054639_20200604T054831_T43RCP", "20200813T054639_20200813T054952_T43RCP"),
}  # fmt: skip
COARSE = {"B1": 60, "B9": 60, "B10": 60} | dict.fromkeys(("B5", "B6", "B7", "B8A", "B11", "B12"), 20)


def create(root: Path, sites: tuple[int, ...] = (200,), images: dict[str, tuple[str, ...]] | None = None) -> None:
    """Writes sites some 30 km apart, with images of random numbers that differ by site, image and band."""
    for number, site in enumerate(sites):
        for split, names in (images or IMAGES).items():
            for name in names:
                folder = root / split / f"{site:07}" / name
                for band in SSL4EOS12.metadata[split]["bands"]:
                    _write(folder / f"{band}.tif", split, 73.3 + 0.3 * number, pixels(split, site, name, band))


def pixels(split: str, site: int, image: str, band: str) -> np.ndarray:
    """What a band's file holds: dB as float32, or digital numbers as uint16."""
    side = SSL4EOS12.size * 10 // COARSE.get(band, 10)
    random = np.random.default_rng([site, *f"{split}{image}{band}".encode()])
    if split == "s1":
        return random.normal(-13, 3, (side, side)).astype(np.float32)
    return random.integers(100, 4000, (side, side)).astype(np.uint16)


def _write(path: Path, split: str, west: float, image: np.ndarray) -> None:
    """As the published files: the same box cut into that many pixels, and moved by half of one."""
    res = 1.014e-4 * SSL4EOS12.size / len(image) if split != "s1" else 1.0217e-4
    write_geotiff(path, image, resolution=res, epsg=4326, corner=(west - res / 2, 30.4756 + res / 2))

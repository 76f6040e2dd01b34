"""Real tiles of Sentinel-1 and 2, whose offset is known, cut to a size."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import rasterio

TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
THIRTEEN = (*TWELVE[:10], "B10", *TWELVE[10:])
#: TerraMesh's L1C of these sites, and L2A of one, hold +1000.
WITH_OFFSET = {("s2l1c", "282D"), ("s2l1c", "433D"), ("s2l1c", "609U"), ("s2l2a", "433D")}


class Tile(NamedTuple):
    """Digital numbers without an offset (0 missing), or dB (NaN missing), by band."""

    modality: str
    name: str
    bands: dict[str, np.ndarray]


def _tile(modality: str, name: str, bands: dict[str, np.ndarray], offset: int, side: int) -> Tile:
    coarse = max(len(x) for x in bands.values())
    parts = {}
    for band, x in bands.items():
        cut = min(side, coarse) * len(x) // coarse
        start = (len(x) - cut) // 2
        part = x[start : start + cut, start : start + cut].astype(np.int32)
        parts[band] = np.where(part > 0, np.maximum(part - offset, 1), 0)
    return Tile(modality, name, parts)


def _stack(path: Path, bands: tuple[str, ...]) -> dict[str, np.ndarray]:
    with rasterio.open(path) as src:
        names = src.descriptions if {*src.descriptions} == {*bands} else bands
        return dict(zip(names, src.read(), strict=True))


def _files(files: Iterator[Path]) -> dict[str, np.ndarray]:
    found = {}
    for path in files:
        band = path.stem.rsplit("_", 1)[-1]
        name = f"B0{band[1]}" if len(band) == 2 and band[0] == "B" else band
        if name in THIRTEEN or name in ("VV", "VH"):
            with rasterio.open(path) as src:
                found[name] = src.read(1)
    return found


@cache
def optical_tiles(root: Path, side: int, all_of_them: bool = False) -> tuple[Tile, ...]:
    """Tiles of both levels: clear, cloudy, snow, sea, desert; of five collections, or of three."""
    tiles = []
    for modality, folder, bands in (("s2l1c", "S2L1C", THIRTEEN), ("s2l2a", "S2L2A", TWELVE)):
        for path in sorted((root / "terramesh" / folder).glob("*.tif")):
            offset = 1000 * ((modality, path.name.split("_")[0]) in WITH_OFFSET)
            tiles.append(_tile(modality, path.stem, _stack(path, bands), offset, side))
    for row in pq.read_table(root / "major_tom/Core-S2L2A/images/part_00001.parquet").to_pylist():
        images = {band: rasterio.MemoryFile(row[band]).open().read(1) for band in TWELVE}
        tiles.append(_tile("s2l2a", row["product_id"], images, 1000 * ("N0400" in row["product_id"]), side))
    paths = sorted((root / "bigearthnet_v2/S2").glob("*.tif"))
    for path in paths if all_of_them else paths[2:8:2]:
        tiles.append(_tile("s2l2a", path.stem, _stack(path, TWELVE), 0, side))
    if all_of_them:
        for modality, pattern in (
            ("s2l1c", "ssl4eo_s12/s2c/*/*"), ("s2l2a", "ssl4eo_s12/s2a/*/*"), ("s2l2a", "bigearthnet/S2/*"),
            ("s2l1c", "oscd/images/*/imgs_?"),
        ):  # fmt: skip
            for folder in sorted(path for path in root.glob(pattern) if path.is_dir()):
                tiles.append(_tile(modality, folder.name, _files(folder.glob("*.tif")), 0, side))
    return tuple(tiles)


@cache
def radar_tiles(root: Path, side: int) -> tuple[Tile, ...]:
    """Tiles of Sentinel-1 in dB."""
    images = [(path.stem, _stack(path, ("VV", "VH"))) for path in sorted((root / "terramesh/S1RTC").glob("*.tif"))]
    for pattern in ("ssl4eo_s12/s1/*/*", "bigearthnet/S1/*"):
        images += [(path.name, _files(path.glob("*.tif"))) for path in sorted(root.glob(pattern)) if path.is_dir()]
    return tuple(Tile("s1rtc", name, {b: x[:side, :side] for b, x in bands.items()}) for name, bands in images)


def stack(tile: Tile) -> dict[str, np.ndarray]:
    """All bands at 10 m, and those that are none."""
    side = len(tile.bands["B02"])
    bands = {b: np.kron(x, np.ones((side // len(x),) * 2, int)).astype(np.uint16) for b, x in tile.bands.items()}
    classes = np.random.default_rng(0).choice([4, 5, 6, 7], (side, side)).astype(np.uint16)
    return bands | {"SCL": classes, "alpha": np.full((side, side), 255, np.uint16)}

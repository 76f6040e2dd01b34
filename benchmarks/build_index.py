"""Measures `terrafm index` on made-up input: memory per cell, and tiles per second under ESA WorldCover.

    python -m benchmarks.build_index FOLDER --cells 50000 200000

Memory is that of a process which does nothing else; seconds are of the processor, which a busy machine disturbs less.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.transform import from_origin

CELLS = 2_245_886  # of Major-TOM Core
FILES = 2651  # of ESA WorldCover


def write_metadata(root: Path, cells: int) -> None:
    """Metadata of three products of neighboring cells around the globe, and their files, which are empty."""
    from terrafm_tg.datasets.majortom import grid
    from terrafm_tg.datasets.majortom.rows import FOLDERS

    rows = np.repeat(np.arange(-600, 800), grid.cells_per_row(np.arange(-600, 800)))
    rows = np.sort(np.random.default_rng(0).choice(rows, cells, replace=False))
    first = np.r_[0, np.flatnonzero(np.diff(rows)) + 1]
    place = np.arange(cells) - np.repeat(first, np.diff(np.r_[first, cells]))
    cols = place - grid.cells_per_row(rows) // 2
    lat, lon = grid.corners(rows, cols)
    zone = np.where(lat < 0, 32700, 32600) + np.clip((lon + 180) // 6, 0, 59).astype(int) + 1
    names = grid.names(rows, cols)
    kinds = {"s1rtc": "S1A_IW_GRDH", "s2l1c": "S2A_MSIL1C", "s2l2a": "S2A_MSIL2A"}
    for name, folder in FOLDERS.items():
        (root / folder / "images").mkdir(parents=True)
        parts = [f"part_{number // 420 + 1:05}.parquet" for number in range(cells)]
        for part in sorted(set(parts)):
            (root / folder / "images" / part).touch()
        frame = pd.DataFrame(
            {
                "grid_cell": names,
                "product_id": [
                    f"{kinds[name]}_20200101T101031_N0400_R022_T33UUP_20220101T{n:06}" for n in range(cells)
                ],
                "timestamp": pd.Timestamp("2020-01-01T10:10:31"),
                "cloud_cover": np.random.default_rng(1).uniform(0, 100, cells),
                "nodata": 0.0,
                "crs": [f"EPSG:{code}" for code in zone],
                "parquet_url": [f"https://host/resolve/main/images/{part}" for part in parts],
                "parquet_row": np.arange(cells) % 420,
            }
        )
        frame.to_parquet(root / folder / "metadata.parquet")


def write_map(path: Path, west: float, north: float, size: tuple[int, int], seed: int = 0) -> None:
    """A part of a file of the map, in its resolution and blocks: patches of all sizes, as land has."""
    random = np.random.default_rng(seed)
    codes = np.array([10, 20, 30, 40, 50, 60, 80, 90], np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=1, height=size[0], width=size[1], crs="EPSG:4326", nodata=0,
        transform=from_origin(west, north, 1 / 12_000, 1 / 12_000), tiled=True, blockxsize=1024, blockysize=1024,
        compress="deflate",
    ) as file:  # fmt: skip
        for top in range(0, size[0], 1024):
            height = min(1024, size[0] - top)
            strip = np.zeros((height, size[1]), np.uint8)
            for scale in (256, 32, 8):
                grid = random.choice(codes, (-(-height // scale), -(-size[1] // scale)))
                patch = np.kron(grid, np.ones((scale, scale), np.uint8))[:height, : size[1]]
                chosen = random.random((-(-height // scale), -(-size[1] // scale))) < (1 if scale == 256 else 0.2)
                mask = np.kron(chosen, np.ones((scale, scale), bool))[:height, : size[1]]
                strip[mask] = patch[mask]
            file.write(strip, 1, window=((top, top + height), (0, size[1])))


def build(root: Path) -> dict[str, float]:
    """Index one root in this process; what it took."""
    from terrafm_tg.datasets import build_index
    from terrafm_tg.datasets.index import layers

    assert layers  # all imports are done
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, time.process_time()
    rows = build_index(root, root.parent / "map", tile_size=534, workers=0, progress=False)
    return {
        "tiles": len(rows),
        "imports_gb": before[0],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "cpu_seconds": time.process_time() - before[1],
        "file_mb": (root / "index.parquet").stat().st_size / 1e6,
    }


def count(folder: Path) -> dict[str, float]:
    """Seconds per tile under a part of the map that is as wide as a whole file."""
    from terrafm_tg.datasets import ESAWorldCover
    from terrafm_tg.datasets.index.build import count_unit

    path = folder / "strip" / "ESA_WorldCover_10m_2021_v200_N48E012_Map.tif"
    if not path.exists():
        write_map(path, 12, 48.5, (6000, 36_000))
    start = time.process_time()
    with rasterio.open(path) as src:
        for top in range(0, src.height, 1024):
            src.read(1, window=((top, min(top + 1024, src.height)), (0, src.width)))
        pixels = src.height * src.width
    once = time.process_time() - start
    x, y = np.meshgrid(np.arange(278_000, 496_000, 5340.0), np.arange(5_363_000, 5_325_000, -5340.0))
    grid = pd.DataFrame({"epsg": 32633, "x": x.ravel(), "y": y.ravel()})
    worldcover = ESAWorldCover(path.parent)
    start = time.process_time()
    counts = count_unit(grid, 534, worldcover)
    seconds = time.process_time() - start
    return {
        "tiles": len(grid),
        "ms_per_tile": 1000 * seconds / len(grid),
        "decoding_share": once * counts.sum() / pixels / seconds,
        "mpx_per_tile": counts.sum() / len(grid) / 1e6,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(options.one)))
        return
    if not (options.folder / "map").exists():
        write_map(options.folder / "map" / "ESA_WorldCover_10m_2021_v200_N00W180_Map.tif", -180, 3, (1024, 1024))
    results = {}
    for cells in sorted(options.cells):
        root = options.folder / f"cells_{cells}"
        if not root.exists():
            write_metadata(root, cells)
        (root / "index.parquet").unlink(missing_ok=True)
        command = [sys.executable, __file__, str(options.folder), "--one", str(root)]
        results[cells] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{cells:>9,} cells: " + ", ".join(f"{key} {value:.4g}" for key, value in results[cells].items()))
    if len(results) > 1:
        (few, less), *_, (many, more) = results.items()
        grown = {key: more[key] + (more[key] - less[key]) * (CELLS - many) / (many - few) for key in more}
        print(f"{CELLS:>9,} cells: " + ", ".join(f"{key} {value:.4g}" for key, value in grown.items()) + " (on a line)")
    rate = count(options.folder)
    print("WorldCover: " + ", ".join(f"{key} {value:.4g}" for key, value in rate.items()))
    print(f"{4 * CELLS:>9,} tiles: {rate['ms_per_tile'] * 4 * CELLS / 3.6e6:.3g} core hours")


if __name__ == "__main__":
    main()

"""A tile index of tiles that do not exist, as large as one likes: to measure what grows with their number."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from terrafm_tg.datasets.index.build import lists
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.tiles.index_file import write_index
from terrafm_tg.datasets.tiles.outlines import boxes, to_zones
from terrafm_tg.datasets.tiles.table import times
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import OCEAN

_TILE = 534
_PATCH = 40  # cells along a patch of neighbors
_ROWS = np.arange(-620, 840)  # of the grid: 56 degrees south to 75 north
_CELLS = 1 << 16  # cells made at once: a row group of tiles
_KINDS = {"s1rtc": "S1A_IW_GRDH", "s2l1c": "S2A_MSIL1C", "s2l2a": "S2A_MSIL2A"}


def write_synthetic_index(path: str | os.PathLike[str], tiles: int, seed: int = 0) -> None:
    """Write an index with the columns of a Major-TOM root's, every cell with a product of its own per modality.

    Cells lie in patches of 40 x 40 neighbors; land cover, climate and region are as uneven as on Earth and go
    together in a patch. Three of ten cells lack Sentinel-1.

    Args:
        path: The file; only some hundred thousand rows of it are in memory at once.
        tiles: Rows, a multiple of 4.
        seed: Of everything.

    Raises:
        TerraFMError: If there are no such tiles.
    """
    rows, cols, patches = _cells(tiles // 4, seed)
    if tiles < 4 or tiles % 4 or len(rows) < tiles // 4:
        raise TerraFMError(f"`tiles` is {tiles:,}: give a multiple of 4, at most {4 * len(rows):,}.")
    parts = (slice(start, start + _CELLS) for start in range(0, len(rows), _CELLS))
    tables = (
        _tiles(rows[part], cols[part], patches[part], np.random.default_rng([seed, part.start])) for part in parts
    )
    write_index(tables, Path(path), {"tile_size": _TILE, "remote": False, "state": "synthetic"})


def _cells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and patch of cells in whole patches but the last, in the order of the grid."""
    widths = grid.cells_per_row(_ROWS)
    rows = np.repeat(_ROWS, widths)
    cols = np.arange(len(rows)) - np.repeat(np.cumsum(widths) - widths + widths // 2, widths)
    patches = (rows - _ROWS[0]) // _PATCH * 110 + (cols + 2200) // _PATCH
    order = np.random.default_rng([seed, 1]).permutation(patches.max() + 1)
    chosen = np.sort(np.argsort(order[patches], kind="stable")[:count])
    return rows[chosen], cols[chosen], patches[chosen]


def _tiles(rows: np.ndarray, cols: np.ndarray, patches: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The tile table of some cells."""
    count, names = len(rows), grid.names(rows, cols)
    lat, lon = grid.corners(rows, cols)
    epsg = np.where(lat < 0, 32701, 32601) + ((lon + 180) // 6).astype(int).clip(0, 59)
    dates = {
        name: np.datetime64("2017-01-01", "us") + rng.integers(0, 7 * 365 * 86_400, count).astype("m8[s]")
        for name in _KINDS
    }
    columns = {"cell": pd.Categorical(names), "epsg": epsg.astype(np.int32)}
    for name, kind in _KINDS.items():
        has = rng.random(count) < (0.7 if name == "s1rtc" else 1)
        products = [
            f"{kind}_{date}_N0400_R{cell}"
            for date, cell in zip(np.datetime_as_string(dates[name], "s"), names, strict=True)
        ]
        columns |= {
            f"has_{name}": has,
            f"product_{name}": pd.Categorical(np.where(has, products, None)),
            f"date_{name}": np.where(has, dates[name], np.datetime64("NaT")),
            f"offset_{name}": np.where(has & (name != "s1rtc"), 1000, 0).astype(np.int16),
            f"baseline_{name}": np.where(has & (name != "s1rtc"), 400, -1).astype(np.int16),
            f"cloud_{name}": rng.uniform(0, 100, count).astype(np.float32),
            f"nodata_{name}": np.where(has, np.float32(0), np.float32(np.nan)),
            f"part_{name}": pd.Categorical(
                np.where(has, [f"Core/{name}/part_{place:05}.parquet" for place in patches // 4], None)
            ),
            f"group_{name}": np.where(has, rng.integers(0, 500, count), -1).astype(np.int32),
        }
    table = pd.DataFrame(columns)
    table = table.assign(**times(*(table.filter(like="date_").agg(side, axis=1) for side in ("min", "max"))))
    tiles = table.iloc[np.repeat(np.arange(count), 4)].reset_index(drop=True)
    tiles.insert(1, "quadrant", np.tile(np.arange(4, dtype=np.int8), count))
    tiles["x"], tiles["y"] = _corners(lat, lon, epsg)
    return tiles.assign(**boxes(tiles, _TILE), **_surface(np.repeat(patches, 4), np.repeat(lon, 4), rng))


def _corners(lat: np.ndarray, lon: np.ndarray, epsg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = to_zones(lon, lat, epsg)
    step = _TILE * 10.0
    return (x[:, None] + [-step, 0, -step, 0]).ravel(), (y[:, None] + [step, step, 0, 0]).ravel()


def _surface(patches: np.ndarray, lon: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
    """Land cover, climate and region: most of a patch is of one class, and a few classes hold most of the tiles."""
    common = 0.6 ** np.arange(12)[[0, 4, 1, 2, 7, 3, 8, 6, 9, 11, 5, 2]]  # tree cover, bare, ocean, grass, crops, ...
    own = np.random.default_rng(7).choice(12, 5000, p=common / common.sum())[patches]
    cover = np.where(rng.random(len(patches)) < 0.7, own, rng.choice(12, len(patches), p=common / common.sum()))
    share = rng.dirichlet(np.full(11, 0.2), len(patches)).astype(np.float32)
    zones = 0.85 ** np.arange(30)
    climate = np.random.default_rng(8).choice(30, 5000, p=zones / zones.sum())[patches]
    return {
        "land_cover": cover.astype(np.int8),
        "land_cover_share": lists(share),
        "ocean": cover == OCEAN,
        "climate": climate.astype(np.int16),
        "region": ((lon + 180) // 45).astype(np.int16),
    }

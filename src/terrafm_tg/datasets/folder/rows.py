"""Products of several sensors to one row per tile: joined by place and date, cut to tiles."""

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.tiles.footprints import outlines
from terrafm_tg.datasets.tiles.table import intervals
from terrafm_tg.radiometry import UNKNOWN

from .files import FOLDERS

#: Share of the union of two outlines that they must have in common to show the same place.
OVERLAP = 0.5


def tile_rows(products: GeoDataFrame, tile_size: int, max_days: float | None = None) -> GeoDataFrame:
    """The tile index of a folder.

    Each product is joined, per other modality, with the product of that modality that shows the same place
    (the outlines share half of their union, in the same CRS) on the nearest date. L2A goes first, then L1C
    and S1 products that no other has taken: each product is in at least one row. Pixels follow the grid of
    the row's first product.

    Args:
        products: As from :func:`~.folder_files.find_products`.
        tile_size: Images larger than this are cut into tiles of this size from the upper left corner, without
            overlap (what is left at the edges is not used); smaller ones are used whole.
        max_days: Do not join products that are further apart in time.

    Returns:
        The index: offsets are -1 where a product is optical, to be settled.
    """
    joined = _join(products.sort_values(["date", "path"], ignore_index=True), max_days)
    tiles = _cut(joined, tile_size)
    tiles = GeoDataFrame(tiles, geometry=outlines(tiles), crs=4326)
    west, south, east, north = tiles.geometry.bounds.to_numpy().T
    tiles.insert(0, "cell", grid.names(*grid.cells_at((south + north) / 2, (west + east) / 2)))
    tiles.insert(1, "quadrant", np.zeros(len(tiles), dtype=np.int8))
    for name in FOLDERS:
        if f"path_{name}" not in tiles:
            continue
        shared = shapely.intersection(tiles.geometry.array, tiles.pop(f"geometry_{name}").to_numpy())
        beside = ~(shapely.area(shared) >= OVERLAP * shapely.area(tiles.geometry.array))  # or there is none
        tiles.loc[beside, [f"path_{name}", f"product_{name}", f"date_{name}"]] = None
        tiles[f"has_{name}"] = tiles[f"path_{name}"].notna()
        optical = tiles[f"has_{name}"] & (name != "s1rtc")
        tiles[f"offset_{name}"] = np.where(optical, UNKNOWN, 0).astype(np.int16)
        for column in (f"product_{name}", f"path_{name}"):
            tiles[column] = tiles[column].astype("category")
    dates = tiles.filter(like="date_")
    return tiles.set_index(intervals(dates.min(axis=1), dates.max(axis=1)))


def _join(products: GeoDataFrame, max_days: float | None) -> pd.DataFrame:
    """One row per joined set of products: the first one's grid; path, name, date and outline of each."""
    by_modality = {name: part for name in FOLDERS if len(part := products[products.modality == name])}
    used: set[int] = set()
    sets = []
    for name, part in by_modality.items():
        anchors = part[~part.index.isin(used)]
        row = anchors[["epsg", "x", "y", "xres", "yres", "height", "width"]].copy()
        for other, candidates in by_modality.items():
            partner = anchors.index.to_series() if other == name else _nearest(anchors, candidates, max_days)
            used.update(partner)
            for column in ("path", "product", "date", "geometry"):
                row[f"{column}_{other}"] = partner.map(products[column])
        sets.append(row)
    return pd.concat(sets, ignore_index=True)


def _nearest(anchors: GeoDataFrame, candidates: GeoDataFrame, max_days: float | None) -> pd.Series:
    """Per product that has one: the candidate of the same place on the nearest date, by its label."""
    left, right = candidates.sindex.query(anchors.geometry, predicate="intersects")
    a, b = anchors.iloc[left], candidates.iloc[right]
    shared = shapely.area(shapely.intersection(a.geometry.array, b.geometry.array))
    overlap = shared / (shapely.area(a.geometry.array) + shapely.area(b.geometry.array) - shared)
    days = np.abs(a.date.to_numpy() - b.date.to_numpy()) / np.timedelta64(1, "D")
    pairs = pd.DataFrame({"a": a.index, "b": b.index, "days": days, "apart": 1 - overlap})
    same = (overlap >= OVERLAP) & (a.epsg.to_numpy() == b.epsg.to_numpy())
    if max_days is not None:
        same &= ~(days > max_days)
    pairs = pairs[same].sort_values(["a", "days", "apart", "b"])
    return pairs.drop_duplicates("a").set_index("a")["b"]


def _cut(joined: pd.DataFrame, tile_size: int) -> pd.DataFrame:
    """Each joined row once per tile; its grid becomes the tile's."""
    down, across = (np.maximum(joined[side].to_numpy() // tile_size, 1) for side in ("height", "width"))
    repeats = np.repeat(np.arange(len(joined)), down * across)
    number = np.arange(len(repeats)) - np.repeat(np.cumsum(down * across) - down * across, down * across)
    tiles = joined.iloc[repeats].reset_index(drop=True)
    tiles["x"] += number % across[repeats] * tile_size * tiles.xres
    tiles["y"] -= number // across[repeats] * tile_size * tiles.yres
    for side in ("height", "width"):
        tiles[side] = np.minimum(tiles[side], tile_size).astype(np.int32)
    return tiles.astype({"epsg": np.int32})

"""The join of scenes of several sensors to tiles."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.scenes.scene import Scene, files_to_columns
from terrafm_tg.datasets.tiles.bands import band_text
from terrafm_tg.datasets.tiles.outlines import BOX, outlines
from terrafm_tg.datasets.tiles.table import times
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import Verdict

#: Modalities in the order in which they give a tile its grid.
ANCHORS = ("s2l2a", "s2l1c", "s1rtc")
#: Columns of a scene that its tiles have by modality.
HELD = ("path", "files", "bands", "verdict", "offset", "product", "date")


def products_table(scenes: Sequence[tuple[Scene, Verdict]]) -> GeoDataFrame:
    """Lists judged scenes, one a row: those of :data:`HELD`, the grid of the finest band, the outline in EPSG:4326."""
    rows = []
    for scene, verdict in scenes:
        pattern, files = files_to_columns(scene)
        assert scene.transform is not None
        modality, t = MODALITIES[verdict.modality], scene.transform
        rows.append({
            "modality": modality.name, "path": pattern, "files": files, "bands": band_text(modality, scene.bands),
            "verdict": verdict.to_json(), "offset": verdict.offset, "product": scene.product, "date": scene.time,
            "epsg": scene.epsg, "x": t.c, "y": t.f, "xres": t.a, "yres": -t.e, "height": scene.height,
            "width": scene.width,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table["date"] = pd.to_datetime(table["date"]).astype("datetime64[us]")
    return GeoDataFrame(table, geometry=outlines(table), crs=4326)


#: Share of the union of two outlines that they must have in common to show the same place.
OVERLAP = 0.5


def join_products(products: GeoDataFrame, tile_size: int, max_days: float | None = None) -> pd.DataFrame:
    """Joins the products of several sensors to one row per tile.

    Each product is joined, per other modality, with the product of that modality that shows the same place
    (the outlines share half of their union, in the same CRS) on the nearest date. L2A goes first, then L1C
    and S1 products that no other has taken: each product is in at least one row. Pixels follow the grid of
    the row's first product.

    Args:
        products: As from :func:`products_table`.
        tile_size: Images larger than this are cut into tiles of this size from the upper left corner, without
            overlap (what is left at the edges is not used); smaller ones are used whole.
        max_days: Do not join products that are further apart in time.

    Returns:
        The tile table.
    """
    joined = _join(products.sort_values(["date", "path"], ignore_index=True), max_days)
    tiles = _cut(joined, tile_size)
    shapes = outlines(tiles)
    west, south, east, north = shapely.bounds(shapes).T
    cells = grid.names(*grid.cells_at((south + north) / 2, (west + east) / 2))
    tiles.insert(0, "cell", pd.Categorical(cells))
    tiles.insert(1, "quadrant", np.zeros(len(tiles), dtype=np.int8))
    for name in ANCHORS:
        if f"path_{name}" not in tiles:
            continue
        shared = shapely.area(shapely.intersection(shapes, tiles.pop(f"geometry_{name}").to_numpy()))
        elsewhere = ~(shared >= OVERLAP * shapely.area(shapes))  # or there is none
        tiles.loc[elsewhere, [f"{column}_{name}" for column in HELD]] = None
        tiles[f"has_{name}"] = tiles[f"path_{name}"].notna()
        tiles[f"offset_{name}"] = tiles[f"offset_{name}"].fillna(0).astype(np.int16)
        for column in (x for x in HELD if x not in ("offset", "date")):
            tiles[f"{column}_{name}"] = tiles[f"{column}_{name}"].astype("category")
        if not len(tiles[f"bands_{name}"].cat.categories):
            tiles = tiles.drop(columns=f"bands_{name}")  # all tiles have all
    dates = tiles.filter(like="date_")
    return tiles.assign(
        **dict(zip(BOX, (west, south, east, north), strict=True)), **times(dates.min(axis=1), dates.max(axis=1))
    )


def _join(products: GeoDataFrame, max_days: float | None) -> pd.DataFrame:
    """Makes one row per joined set of products: the first one's grid; path, name, date and outline of each."""
    by_modality = {name: part for name in ANCHORS if len(part := products[products.modality == name])}
    used: set[int] = set()
    sets = []
    for name, part in by_modality.items():
        anchors = part[~part.index.isin(used)]
        row = anchors[["epsg", "x", "y", "xres", "yres", "height", "width"]].copy()
        for other, candidates in by_modality.items():
            partner = anchors.index.to_series() if other == name else _nearest(anchors, candidates, max_days)
            used.update(partner)
            for column in (*HELD, "geometry"):
                row[f"{column}_{other}"] = partner.map(products[column])
        sets.append(row)
    return pd.concat(sets, ignore_index=True)


def _nearest(anchors: GeoDataFrame, candidates: GeoDataFrame, max_days: float | None) -> pd.Series:
    """Finds for each product the candidate of the same place on the nearest date, by its label."""
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
    """Repeats each joined row once per tile, whose grid it gets."""
    down, across = (np.maximum(joined[side].to_numpy() // tile_size, 1) for side in ("height", "width"))
    repeats = np.repeat(np.arange(len(joined)), down * across)
    number = np.arange(len(repeats)) - np.repeat(np.cumsum(down * across) - down * across, down * across)
    tiles = joined.iloc[repeats].reset_index(drop=True)
    tiles["x"] += number % across[repeats] * tile_size * tiles.xres
    tiles["y"] -= number // across[repeats] * tile_size * tiles.yres
    for side in ("height", "width"):
        tiles[side] = np.minimum(tiles[side], tile_size).astype(np.int32)
    return tiles.astype({"epsg": np.int32})

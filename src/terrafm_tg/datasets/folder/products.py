"""Products in a folder, each one image of one modality in one file or in one file per band, and their join to tiles."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from geopandas import GeoDataFrame
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.tiles.outlines import BOX, outlines
from terrafm_tg.datasets.tiles.table import times
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, canonical, get_modality
from terrafm_tg.radiometry import UNKNOWN
from terrafm_tg.utils.trust import open_image

#: Names by which a modality's folder is found when none is given, in any case; the first found counts.
FOLDERS = {
    "s2l2a": ("s2l2a", "s2_l2a", "l2a", "s2a", "s2"),
    "s2l1c": ("s2l1c", "s2_l1c", "l1c", "s2c"),
    "s1rtc": ("s1rtc", "s1_rtc", "s1grd", "s1_grd", "s1"),
}
_BAND = re.compile(r"(?P<stem>.*?)(?P<band>VV|VH|B(?:0?\d|1[0-2]|8A))", re.IGNORECASE)
_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2}-?[01]\d-?[0-3]\d)(?:[T_ ]?([0-2]\d:?[0-5]\d:?[0-5]\d)(?!\d))?")
#: Bands of files that do not name them, by how many they hold.
_ORDERS = {
    2: ("VV", "VH"),
    12: MODALITIES["s2l2a"].bands,
    13: (*MODALITIES["s2l2a"].bands[:10], "B10", *MODALITIES["s2l2a"].bands[10:]),
}


def find_folders(root: Path, folders: Mapping[str, str] | None) -> dict[str, Path]:
    """Finds the folder of each modality.

    Raises:
        TerraFMError: If the root, or a folder that was named, is missing, or none is found.
    """
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with a folder of GeoTIFFs per modality.")
    if folders is not None:
        for name, folder in folders.items():
            if not (root / folder).is_dir():
                raise TerraFMError(f"{root / folder} is no folder: correct `folders` for {get_modality(name).name}.")
        return {name: root / folder for name, folder in folders.items()}
    held = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    found = {m: next((held[n] for n in names if n in held), None) for m, names in FOLDERS.items()}
    if not any(found.values()):
        raise TerraFMError(
            f"{root} has no folder that names a modality (such as S1RTC, S2L1C, S2L2A), it has "
            f"{', '.join(held) or 'no folder'}: set `folders`, such as {{'s2l2a': 'optical'}}."
        )
    return {name: path for name, path in found.items() if path is not None}


def image_files(folder: Path) -> Iterator[Path]:
    """Yields the GeoTIFFs at any depth below a folder, in order."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(base, file) for file in sorted(files) if file.lower().endswith((".tif", ".tiff")))


def find_products(
    root: Path, folders: Mapping[str, Path], bands: Mapping[str, Sequence[str]] | None = None
) -> GeoDataFrame:
    """Finds all usable products below the folders of the modalities.

    A file whose name ends in a band's (``B02``, ``B2``, ``VV``) is one band of a product, with the files that
    differ from it in that only; any other file is a product with its bands in the order of their
    descriptions, or else of ``bands``, or of the modality (13 bands: B10 before B11). Products that lack a
    band, or that no place is known of, are left out with a warning.

    Returns:
        One row per product: ``modality``, ``product`` (its name), ``path`` (below the root; ``{}`` stands for
        the band), ``date``, ``epsg``, the grid of its first 10 m band (``x``, ``y``, ``xres``, ``yres``,
        ``height``, ``width``) and its outline in EPSG:4326.

    Raises:
        TerraFMError: If there is none.
    """
    rows, problems = [], []
    for name, folder in folders.items():
        groups = _group(root, folder)
        with ThreadPoolExecutor(8) as pool:  # opening waits for the disk
            describe = partial(_describe, root, name, (bands or {}).get(name))
            results = pool.map(describe, groups, groups.values())
        for path, result in zip(groups, results, strict=True):
            if isinstance(result, str):
                problems.append(f"{path}: {result}")
            else:
                rows.append(result)
    if not rows:
        reason = f"; first {problems[0]}" if problems else ""
        raise TerraFMError(f"No usable GeoTIFF of any modality below {root}{reason}.")
    if problems:
        warnings.warn(f"{len(problems):,} images below {root} are left out, first {problems[0]}.", stacklevel=4)
    table = pd.DataFrame(rows)
    table["date"] = pd.to_datetime(table["date"]).astype("datetime64[us]")
    return GeoDataFrame(table, geometry=outlines(table), crs=4326)


def band_order(src: DatasetReader, given: Sequence[str] | None) -> list[str]:
    """Returns the names of a file's bands, ``B02`` for ``B2``; empty where they are not known."""
    named = [_BAND.fullmatch(text or "") for text in src.descriptions]
    if all(match and not match["stem"] for match in named):
        return [canonical(text) for text in src.descriptions]
    order = given or _ORDERS.get(src.count, ())
    return [canonical(band) for band in order] if len(order) == src.count else []


def band_file(root: Path, pattern: str, band: str) -> Path | None:
    """Finds the file of a band, in whatever way its name spells it; None where there is none."""
    short = band.replace("B0", "B")
    names = dict.fromkeys([band, short, band.lower(), short.lower()])
    return next((path for name in names if (path := root / pattern.replace("{}", name)).is_file()), None)


def _group(root: Path, folder: Path) -> dict[str, list[str]]:
    """Maps the path pattern of each product to the bands that have a file; to none for a file with all bands."""
    groups: dict[str, list[str]] = {}
    for file in image_files(folder):
        path = file.relative_to(root)
        match = _BAND.fullmatch(file.stem)
        if match and not match["stem"][-1:].isalnum():
            pattern = path.with_name(f"{match['stem']}{{}}{file.suffix}").as_posix()
            groups.setdefault(pattern, []).append(canonical(match["band"]))
        else:
            groups[path.as_posix()] = []
    return groups


def _describe(
    root: Path, modality: str, order: Sequence[str] | None, pattern: str, held: list[str]
) -> dict[str, Any] | str:
    """Returns the row of one product, or the reason why it cannot be used."""
    needed = MODALITIES[modality]
    first = needed.native[10][0]
    path = band_file(root, pattern, first) if held else root / pattern
    if path is None:
        return f"band {first} has no file"
    try:
        with open_image(path) as src:
            bands = held or band_order(src, order)
            if not bands:
                return f"its {src.count} bands have no names and are not in a known order; set `bands`"
            if missing := [band for band in needed.bands if band not in bands]:
                return f"{modality} needs {', '.join(missing)} too"
            epsg = src.crs.to_epsg() if src.crs else None
            if epsg is None or src.transform.b or src.transform.d or src.transform.e >= 0:
                return "it has no EPSG code, or is not north-up"
            t = src.transform
            grid = {"x": t.c, "y": t.f, "xres": t.a, "yres": -t.e, "height": src.height, "width": src.width}
            date = _date(src.tags().get("datetime", "")) or _date(path.name) or _date(path.parent.name)
    except RasterioError as error:
        return str(error)
    name = path.parent.name if Path(pattern).stem == "{}" else Path(pattern).stem.replace("{}", "").rstrip("_-.")
    return {"modality": modality, "product": name, "path": pattern, "date": date, "epsg": epsg} | grid


def _date(text: str) -> pd.Timestamp | None:
    """Finds the first date in a text, with its time where a valid one follows."""
    match = _DATE.search(text)
    if match is None:
        return None
    for parts in (match.groups(""), (match[1],)):
        stamp = pd.to_datetime("".join(parts).replace("-", "").replace(":", ""), errors="coerce")
        if not pd.isna(stamp):
            return stamp
    return None


#: Share of the union of two outlines that they must have in common to show the same place.
OVERLAP = 0.5


def join_products(products: GeoDataFrame, tile_size: int, max_days: float | None = None) -> pd.DataFrame:
    """Joins the products of several sensors to one row per tile.

    Each product is joined, per other modality, with the product of that modality that shows the same place
    (the outlines share half of their union, in the same CRS) on the nearest date. L2A goes first, then L1C
    and S1 products that no other has taken: each product is in at least one row. Pixels follow the grid of
    the row's first product.

    Args:
        products: As from :func:`find_products`.
        tile_size: Images larger than this are cut into tiles of this size from the upper left corner, without
            overlap (what is left at the edges is not used); smaller ones are used whole.
        max_days: Do not join products that are further apart in time.

    Returns:
        The tile table: offsets are -1 where a product is optical, to be found out.
    """
    joined = _join(products.sort_values(["date", "path"], ignore_index=True), max_days)
    tiles = _cut(joined, tile_size)
    shapes = outlines(tiles)
    west, south, east, north = shapely.bounds(shapes).T
    cells = grid.names(*grid.cells_at((south + north) / 2, (west + east) / 2))
    tiles.insert(0, "cell", pd.Categorical(cells))
    tiles.insert(1, "quadrant", np.zeros(len(tiles), dtype=np.int8))
    for name in FOLDERS:
        if f"path_{name}" not in tiles:
            continue
        shared = shapely.area(shapely.intersection(shapes, tiles.pop(f"geometry_{name}").to_numpy()))
        elsewhere = ~(shared >= OVERLAP * shapely.area(shapes))  # or there is none
        tiles.loc[elsewhere, [f"path_{name}", f"product_{name}", f"date_{name}"]] = None
        tiles[f"has_{name}"] = tiles[f"path_{name}"].notna()
        optical = tiles[f"has_{name}"] & (name != "s1rtc")
        tiles[f"offset_{name}"] = np.where(optical, UNKNOWN, 0).astype(np.int16)
        for column in (f"product_{name}", f"path_{name}"):
            tiles[column] = tiles[column].astype("category")
    dates = tiles.filter(like="date_")
    return tiles.assign(
        **dict(zip(BOX, (west, south, east, north), strict=True)), **times(dates.min(axis=1), dates.max(axis=1))
    )


def _join(products: GeoDataFrame, max_days: float | None) -> pd.DataFrame:
    """Makes one row per joined set of products: the first one's grid; path, name, date and outline of each."""
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

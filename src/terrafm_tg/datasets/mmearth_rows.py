"""MMEarth's files to one row per place and orbit of the radar."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
from rich.progress import track
from torchgeo.datasets import DatasetNotFoundError, MMEarth
from torchgeo.datasets.mmearth import TileInfo
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASSES, majority

from .majortom import grid
from .tiles.footprints import boxes
from .tiles.table import times

_CODES = [c.code for c in CLASSES]


def data_file(root: Path, subset: str) -> Path:
    """The HDF5 file of a subset."""
    folder = MMEarth.filenames[subset]
    return root / folder / f"{folder}.h5"


def find_subset(root: Path, subset: str | None) -> str:
    """The subset asked for, else the one that lies there.

    Raises:
        TerraFMError: If it is unknown, there is none, or there are several.
    """
    if subset is not None and subset not in MMEarth.subsets:
        raise TerraFMError(f"`subset` must be one of {', '.join(MMEarth.subsets)}, got {subset!r}.")
    held = [name for name in MMEarth.subsets if data_file(root, name).is_file()]
    if not held or (subset or held[0]) not in held:
        expected = data_file(root, subset or "MMEarth100k")
        raise TerraFMError(
            f"{root} holds no {subset or 'MMEarth'}: expected files such as {expected}; correct the root, or download "
            "it as https://github.com/vishalned/MMEarth-data says (TorchGeo cannot)."
        )
    if subset is None and len(held) > 1:
        raise TerraFMError(f"{root} holds {' and '.join(held)}: set `subset` to one of them.")
    return subset or held[0]


def picture_size(path: Path) -> int:
    """Pixels along a place."""
    with lazy_import("h5py").File(path, "r") as file:
        return int(file["sentinel2"].shape[-1])


def tile_rows(root: Path, subset: str) -> pd.DataFrame:
    """The tile table of MMEarth, from what TorchGeo's class reads beside the pixels.

    Args:
        root: Folder that holds the subset's.
        subset: Which.

    Returns:
        One row per place and orbit whose image has VV and VH; one per place without such an image. ``place`` is
        MMEarth's number, ``group`` the row of the file, ``quadrant`` counts the rows of a cell.

    Raises:
        TerraFMError: If files are missing, or do not belong together.
    """
    try:
        source = MMEarth(root, subset, modalities=("sentinel1_asc", "sentinel1_desc", "sentinel2"))
    except DatasetNotFoundError as error:
        beside = ", ".join(
            f"{MMEarth.filenames[subset]}_{kind}.json" for kind in ("band_stats", "splits", "tile_info")
        )
        raise TerraFMError(
            f"{data_file(root, subset).parent} is not complete: it needs {beside}, too."
        ) from error
    path = data_file(root, subset)
    with lazy_import("h5py").File(path, "r") as file:
        named = file["metadata"][:]
    side = picture_size(path)
    names = [row[0].decode() for row in named]
    if missing := [names[i] for i in source.indices if names[i] not in source.tile_info]:
        raise TerraFMError(
            f"{source.tile_info_filename} lacks {len(missing):,} places of {path}, first {missing[0]}."
        )
    rows = [row for i in source.indices for row in _place_rows(names[i], i, source.tile_info[names[i]])]
    table = pd.DataFrame(rows)
    table = table.assign(
        **_corner(table, side), xres=10.0, yres=10.0, height=np.int32(side), width=np.int32(side)
    )
    table.insert(0, "cell", pd.Categorical(grid.names(*grid.cells_at(table.pop("lat"), table.pop("lon")))))
    table.insert(1, "quadrant", table.groupby("cell", observed=True).cumcount().astype(np.int16))
    date = pd.to_datetime(table.pop("date")).astype("datetime64[us]")
    part = path.relative_to(root).as_posix()
    for name in ("s2l2a", "s2l1c", "s1rtc"):
        has = table[f"has_{name}"]
        table[f"product_{name}"] = table["place"].where(has).astype("category")
        table[f"date_{name}"] = pd.NaT if name == "s1rtc" else date.where(has)
        table[f"part_{name}"] = pd.Categorical.from_codes(np.where(has, 0, -1), [part])
        table[f"group_{name}"] = table["group"].where(has, -1).astype(np.int32)
        table[f"offset_{name}"] = np.int16(0)
    table["date_s1rtc"] = table["date_s1rtc"].astype("datetime64[us]")
    table["orbit"] = table["orbit"].astype("category")
    return table.assign(**boxes(table), **times(date, date + pd.Timedelta(1, "D") - pd.Timedelta(1, "us")))


def _place_rows(place: str, group: int, info: TileInfo) -> list[dict[str, Any]]:
    """One row per orbit of the radar."""
    row = {
        "place": place,
        "group": np.int32(group),
        "date": info["S2_DATE"],
        "lat": info["lat"],
        "lon": info["lon"],
    }
    row |= {"epsg": np.int32(info["CRS"].rsplit(":", 1)[-1])}
    row |= {f"has_s2{level}": info["S2_type"] == level for level in ("l2a", "l1c")}
    held = {
        "ascending": info["BANDS"].get("sentinel1_asc"),
        "descending": info["BANDS"].get("sentinel1_desc"),
    }
    orbits = [orbit for orbit, bands in held.items() if bands and {"VV", "VH"} <= set(bands)]
    return [row | {"has_s1rtc": orbit != "none", "orbit": orbit} for orbit in orbits or ["none"]]


def _corner(table: pd.DataFrame, side: int) -> dict[str, np.ndarray]:
    """Upper left corners: half a tile from its middle, on the 10 m grid that Sentinel-2 has."""
    x, y = np.empty(len(table)), np.empty(len(table))
    for epsg in table["epsg"].unique():
        here = (table["epsg"] == epsg).to_numpy()
        to_zone = pyproj.Transformer.from_crs(4326, int(epsg), always_xy=True)
        x[here], y[here] = to_zone.transform(table["lon"].to_numpy()[here], table["lat"].to_numpy()[here])
    return {"x": np.rint(x / 10 - side / 2) * 10, "y": np.rint(y / 10 + side / 2) * 10}


def land_cover(path: Path, table: pd.DataFrame, progress: bool = True) -> dict[str, Any]:
    """Land cover of each tile from the map that the file holds (ESA WorldCover 2020).

    Args:
        path: The HDF5 file.
        table: Its tile table.
        progress: Show a bar.

    Returns:
        ``land_cover``, int8 (n,), the majority class, and ``land_cover_share``, n times float32 (11,).

    Raises:
        TerraFMError: If the file lacks the map, or it cannot be read.
    """
    counts = np.zeros((len(table), len(CLASSES) + 1), dtype=np.int64)
    groups, latitude = table["group"].to_numpy(), ((table["ymin"] + table["ymax"]) / 2).to_numpy()
    try:
        with lazy_import("h5py").File(path, "r") as file:
            stored = file["esa_worldcover"]
            for i in track(range(len(groups)), "Land cover", disable=not progress):
                codes = np.bincount(stored[groups[i]].ravel(), minlength=256)
                counts[i, :-1] = codes[_CODES]
                counts[i, -1] = codes.sum() - counts[i, :-1].sum()
    except (OSError, KeyError) as error:
        raise TerraFMError(f"The land cover in {path} cannot be read ({error}).") from error
    share = (counts[:, :-1] / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    cover = [majority(histogram, lat) for histogram, lat in zip(counts, latitude, strict=True)]
    return {"land_cover": np.array(cover, dtype=np.int8), "land_cover_share": list(share)}

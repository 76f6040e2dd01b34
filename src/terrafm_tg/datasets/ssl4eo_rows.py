"""Folders of SSL4EO-S12 to one row per site and date: images of all sensors, nearest in time."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import rasterio
from rasterio.errors import RasterioError
from torchgeo.datasets import SSL4EOS12, DatasetNotFoundError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modalities

from .majortom import grid
from .tiles.footprints import boxes
from .tiles.table import times

#: TorchGeo's split of each modality, in the order in which images look for partners.
SPLITS: dict[str, Literal["s1", "s2c", "s2a"]] = {"s2l2a": "s2a", "s2l1c": "s2c", "s1rtc": "s1"}


class Split(SSL4EOS12):
    """TorchGeo's class for one sensor, which also takes a part of the sites: it looks for sites 0 to 99 itself."""

    def _verify(self) -> None:
        folder = Path(self.root, self.split)
        if next(folder.glob(f"{'[0-9]' * 7}/*/*.tif"), None) is None:
            super()._verify()


def find_splits(
    root: Path, modalities: Sequence[str] | None = None, download: bool = False, checksum: bool = True
) -> dict[str, Split]:
    """TorchGeo's dataset of each sensor.

    Args:
        root: Folder with ``s1``, ``s2c``, ``s2a``.
        modalities: Those that must be there; any that are where None (all, where they may be downloaded).
        download: Let TorchGeo download what is missing.
        checksum: Let it check what it downloads.

    Returns:
        By modality.

    Raises:
        TerraFMError: If one is missing.
    """
    asked = {modality.name for modality in get_modalities(modalities)}
    found, missing = {}, []
    for name in (name for name in SPLITS if name in asked):
        try:
            found[name] = Split(root, SPLITS[name], download=download, checksum=checksum)
        except DatasetNotFoundError:
            missing.append(name)
    if missing and (modalities is not None or not found):
        raise TerraFMError(
            f"{root} holds no site of SSL4EO-S12 for {', '.join(missing)}: expected files such as "
            f"{root / SPLITS[missing[0]] / '0000200' / '<image>' / ('VV.tif' if missing[0] == 's1rtc' else 'B2.tif')}; "
            "correct the root, or set `download` to get them (0.5 TB per sensor)."
        )
    return found


def tile_rows(root: Path, splits: Mapping[str, Split]) -> pd.DataFrame:
    """The tile table of SSL4EO-S12.

    Args:
        root: Its folder.
        splits: From :func:`find_splits`.

    Returns:
        One row per L2A image and, beside, per image that no other row has: with the images of the other sensors
        of the same site that are nearest in time. ``quadrant`` counts the rows of a cell.

    Raises:
        TerraFMError: If no site has an image that can be opened.
    """
    sites = sorted(
        {entry for s in splits.values() for entry in os.listdir(root / s.split) if entry.isdecimal()}
    )
    with ThreadPoolExecutor(8) as pool:  # opening waits for the disk
        parts = list(pool.map(partial(_site_rows, root, splits), sites))
    rows = [row for part in parts for row in part]
    if not rows:
        raise TerraFMError(f"No site of SSL4EO-S12 below {root} has an image that can be opened.")
    table = pd.DataFrame(rows)
    table = table.assign(epsg=np.int32(4326), height=np.int32(SSL4EOS12.size), width=np.int32(SSL4EOS12.size))
    table = table.assign(**boxes(table))
    middle = (table.ymin + table.ymax) / 2, (table.xmin + table.xmax) / 2
    table.insert(0, "cell", pd.Categorical(grid.names(*grid.cells_at(*middle))))
    table.insert(1, "quadrant", table.groupby("cell", observed=True).cumcount().astype(np.int16))
    for name in splits:
        table[f"has_{name}"] = table[f"path_{name}"].notna()
        table[f"offset_{name}"] = np.int16(0)
        table[f"date_{name}"] = table[f"date_{name}"].astype("datetime64[us]")
        for column in (f"path_{name}", f"product_{name}"):
            table[column] = table[column].astype("category")
    dates = table.filter(like="date_")
    return table.assign(**times(dates.min(axis=1), dates.max(axis=1)))


def _site_rows(root: Path, splits: Mapping[str, Split], site: str) -> list[dict[str, Any]]:
    """The rows of one site; none where it has no image that can be opened."""
    images = {name: sorted(_images(root, split, site)) for name, split in splits.items()}
    place = _place(root, splits, site, images)
    used: set[tuple[str, str | None]] = set()
    rows = []
    for name, own in images.items() if place else ():
        for date, image in own:
            if (name, image) in used:
                continue
            row: dict[str, Any] = {"site": site, **place}
            for other, candidates in images.items():
                among = [(date, image)] if other == name else candidates
                day, nearest = min(among, key=lambda c: (abs(c[0] - date), c[0]), default=(pd.NaT, None))
                path = None if nearest is None else f"{splits[other].split}/{site}/{nearest}/{{}}.tif"
                row |= {f"date_{other}": day, f"product_{other}": nearest, f"path_{other}": path}
                used.add((other, nearest))
            rows.append(row)
    return rows


def _images(root: Path, split: Split, site: str) -> Iterator[tuple[pd.Timestamp, str]]:
    """Date and folder of a site's images of one sensor."""
    folder, pattern = root / split.split / site, split.metadata[split.split]["filename_regex"]
    for image in os.listdir(folder) if folder.is_dir() else ():
        if match := re.match(pattern, image):
            yield pd.to_datetime(match["date"]), image


def _place(
    root: Path,
    splits: Mapping[str, Split],
    site: str,
    images: Mapping[str, Sequence[tuple[pd.Timestamp, str]]],
) -> dict[str, float]:
    """The grid of the first 10 m band of a site that opens; empty where none does."""
    for name, own in images.items():
        for _, image in own:
            band = "VV" if name == "s1rtc" else "B2"
            try:
                with rasterio.open(root / splits[name].split / site / image / f"{band}.tif") as src:
                    t = src.transform
                    return {"x": t.c, "y": t.f, "xres": t.a, "yres": -t.e}
            except RasterioError:
                continue
    return {}

"""Major-TOM's ``metadata.parquet`` files to one row per tile: three products joined by grid cell."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import pyarrow as pa

from terrafm_tg.datasets.tiles.bands import band_text
from terrafm_tg.datasets.tiles.outlines import boxes, to_zones
from terrafm_tg.datasets.tiles.table import times
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import baselines_by_name, offsets_by_name
from terrafm_tg.utils.parquet import read_schema, read_table
from terrafm_tg.utils.trust import check_address, check_names, is_safe

from . import grid

#: Folder of each modality below the root, as Major-TOM calls them; the first that a cell has gives its zone.
#: Address of the published archive.
PUBLISHED = "https://huggingface.co/datasets/Major-TOM"
FOLDERS = {"s2l2a": "Core-S2L2A", "s2l1c": "Core-S2L1C", "s1rtc": "Core-S1RTC"}
_NEEDED = ["grid_cell", "product_id", "crs", "parquet_url", "parquet_row"]
_HELPFUL = ["timestamp", "cloud_cover", "nodata"]
_UTM = r"(32[67](?:0[1-9]|[1-5]\d|60))$"  # also of "EPSG:EPSG:32633"


def scan_tiles(root: Path, tile_size: int, remote: bool | str = False, limit: int | None = None) -> pd.DataFrame:
    """Makes the tile table of a Major-TOM root, from its metadata alone.

    A cell has a product where a row of the metadata names it and the Parquet file of that row is on disk. Of
    several rows the one with the least nodata counts, then the least cloud, then the latest, then the first
    by name. A band without a column in its file is one that the product lacks. A product in another UTM zone than
    the cell's is left out, with a warning: its pixels lie on another grid.

    Args:
        root: Folder with ``Core-S2L2A``, ``Core-S2L1C``, ``Core-S1RTC``, any of them.
        tile_size: Edge of a tile in 10 m pixels; a cell is 2 x 2 tiles.
        remote: Also take rows whose file is not on disk, to be read from their URL: True where it lies below the
            published source, or the address that it lies below.
        limit: Take only so many rows of each product, to look at them.

    Returns:
        Four rows per cell, in the order of the grid and then NW, NE, SW, SE.

    Raises:
        TerraFMError: If the root or its metadata are missing or unusable, or no Parquet file is on disk.
    """
    products = {name: _product(root, path, remote, limit) for name, path in find_metadata(root).items()}
    cells = pd.concat([frame["epsg"].rename(name) for name, frame in products.items()], axis=1)
    if cells.empty:
        raise TerraFMError(
            f"None of the Parquet files that the metadata in {root} name is on disk: download some into the "
            "images folder of their product, or set `remote` to read them from their URLs."
        )
    epsg = cells.bfill(axis=1).iloc[:, 0].astype(np.int32)
    rows, cols = grid.parse(epsg.index)
    order = np.lexsort((cols, rows))
    epsg = epsg.iloc[order]
    columns: dict[str, Any] = {"cell": pd.Categorical(epsg.index), "epsg": epsg.to_numpy()}
    for name, frame in products.items():
        columns |= _columns(name, frame.reindex(epsg.index), epsg)
        columns |= _subsets(root, name, columns[f"part_{name}"])
    table = pd.DataFrame(columns)
    dates = table.filter(like="date_")
    table = table.assign(**times(dates.min(axis=1), dates.max(axis=1)))
    tiles = table.iloc[np.repeat(np.arange(len(table)), 4)].reset_index(drop=True)
    tiles.insert(1, "quadrant", np.tile(np.arange(4, dtype=np.int8), len(table)))
    tiles["x"], tiles["y"] = tile_corners(rows[order], cols[order], columns["epsg"], tile_size)
    return tiles.assign(**boxes(tiles, tile_size))


def find_metadata(root: Path) -> dict[str, Path]:
    """Finds ``metadata.parquet`` of each product that lies below the root.

    Raises:
        TerraFMError: If the root is missing, or holds none.
    """
    expected = f"metadata.parquet in {', '.join(FOLDERS.values())}"
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give a Major-TOM root, with {expected}.")
    paths = {name: root / folder / "metadata.parquet" for name, folder in FOLDERS.items()}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not found:
        raise TerraFMError(f"{root} is no Major-TOM root: it has no {expected}.")
    return found


def read_metadata(path: Path) -> pd.DataFrame:
    """Reads the columns of a product's ``metadata.parquet`` that tell its rows apart.

    Returns:
        ``grid_cell``, ``product_id``, ``epsg`` (NaN outside of UTM), ``parquet_url`` (categorical), ``parquet_row``,
        ``timestamp``, ``cloud_cover`` and ``nodata`` (missing where the table has none).

    Raises:
        TerraFMError: If it is not Major-TOM's metadata.
    """
    try:
        held = read_schema(path).names
        if missing := [name for name in _NEEDED if name not in held]:
            raise TerraFMError(f"{path} lacks {', '.join(missing)}: it is not Major-TOM's metadata.")
        frame = read_table(path, _NEEDED + [name for name in _HELPFUL if name in held]).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, TerraFMError):
            raise
        raise TerraFMError(f"{path} cannot be read ({error}): download it again into its place.") from error
    frame = frame.reindex(columns=_NEEDED + _HELPFUL)
    crs = pd.Categorical(frame.pop("crs").astype("str"))  # few, of millions of rows
    zones = pd.to_numeric(crs.categories.to_series().str.extract(_UTM, expand=False)).to_numpy(np.float64)
    return frame.assign(
        epsg=np.append(zones, np.nan)[crs.codes],
        parquet_url=pd.Categorical(frame["parquet_url"]),  # long, and of three products at once
        timestamp=pd.to_datetime(frame["timestamp"]).astype("datetime64[us]"),
        cloud_cover=frame["cloud_cover"].astype(float),
        nodata=frame["nodata"].astype(float),
    )


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows of :func:`read_metadata`: the least nodata, then cloud, then the latest, then the first by name."""
    order = {"nodata": True, "cloud_cover": True, "timestamp": False, "product_id": True}
    return rows.sort_values(list(order), ascending=list(order.values()), kind="stable")


def _product(root: Path, metadata: Path, remote: bool | str, limit: int | None) -> pd.DataFrame:
    """Reads one row per cell of a product, indexed by cell, with its ``part``."""
    frame = read_metadata(metadata)
    urls = frame.pop("parquet_url").array
    parts = [_part(root, metadata, url, sources_of(remote)) for url in urls.categories]
    frame["part"] = np.array([*parts, None], dtype=object)[urls.codes]
    frame = frame[frame["part"].notna()].head(len(frame) if limit is None else limit)
    return best_first(frame[frame["epsg"].notna()]).drop_duplicates("grid_cell").set_index("grid_cell")


def sources_of(remote: bool | str | Sequence[str]) -> tuple[str, ...]:
    """Returns the addresses below which image files may be read: the published one, the user's own, or none.

    Raises:
        TerraFMError: If the user's is none that can be read.
    """
    if remote is False:
        return ()
    named = [PUBLISHED] if remote is True else [remote] if isinstance(remote, str) else remote
    return tuple(f"{check_address(name).rstrip('/')}/" for name in named)


def _part(root: Path, metadata: Path, url: str, sources: tuple[str, ...]) -> str | None:
    """Finds a Parquet file: its path below the root, else its URL where that may be read, else None."""
    folder, name = metadata.parent, urlparse(url).path.lstrip("/")
    for candidate in (f"images/{PurePosixPath(name).name}", name):
        if is_safe(candidate) and (folder / candidate).is_file():
            return (folder / candidate).relative_to(root).as_posix()
    if sources and "://" in url:
        if not url.startswith(sources):
            raise TerraFMError(
                f"{metadata} names {url[:200]!r}, which is not below {sources[0]}: give the address of a source that "
                "you trust as `remote`."
            )
        check_names([url], str(metadata), sources)
        return url
    return None


def _columns(name: str, frame: pd.DataFrame, epsg: pd.Series) -> dict[str, Any]:
    """The columns of one product for all cells."""
    has = frame["part"].notna().to_numpy()
    elsewhere = has & (frame["epsg"] != epsg).to_numpy()
    if elsewhere.any():
        warnings.warn(
            f"{name} is left out in {elsewhere.sum():,} of {has.sum():,} cells, where it lies in another "
            "UTM zone than the cell's other products.",
            stacklevel=4,
        )
        frame, has = frame[~elsewhere].reindex(frame.index), has & ~elsewhere
    product = frame["product_id"]
    offset = offsets_by_name(product) if name != "s1rtc" else np.zeros(len(frame), dtype=np.int16)
    return {
        f"has_{name}": has,
        f"product_{name}": pd.Categorical(product),
        f"date_{name}": frame["timestamp"].to_numpy(),
        f"offset_{name}": np.where(has, offset, 0).astype(np.int16),
        f"baseline_{name}": baselines_by_name(product),
        f"cloud_{name}": np.where(has, frame["cloud_cover"], np.nan).astype(np.float32),
        f"nodata_{name}": np.where(has, frame["nodata"], np.nan).astype(np.float32),
        f"part_{name}": pd.Categorical(frame["part"]),
        f"group_{name}": frame["parquet_row"].fillna(-1).to_numpy(np.int32),
    }


def _subsets(root: Path, name: str, parts: pd.Categorical) -> dict[str, pd.Categorical]:
    """Finds the bands that the files on disk have by the names of their columns; nothing where all have all."""

    def of(part: str) -> str | None:
        try:
            held = {column.lower() for column in read_schema(root / part).names} if "://" not in part else set()
            return band_text(MODALITIES[name], [band for band in MODALITIES[name].bands if band.lower() in held])
        except (pa.ArrowException, OSError, ValueError):  # reading it says what is wrong
            return None

    with ThreadPoolExecutor(8) as pool:
        texts = np.array([*pool.map(of, parts.categories), None], dtype=object)
    return {f"bands_{name}": pd.Categorical(texts[parts.codes])} if texts.any() else {}


def tile_corners(rows: np.ndarray, cols: np.ndarray, epsg: np.ndarray, tile_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The upper left corners of the four tiles of each cell in meters of its UTM zone, (4 n,) each.

    The picture's middle lies 5 km north and east of the cell's corner: exactly so in the published files,
    whose corners this reproduces to a micrometer.
    """
    lat, lon = grid.corners(rows, cols)
    x, y = to_zones(lon, lat, epsg)
    middle, step = grid.CELL_SIZE * 500, tile_size * 10.0
    west, north = np.array([-step, 0, -step, 0]), np.array([step, step, 0, 0])  # NW, NE, SW, SE
    return (x[:, None] + middle + west).ravel(), (y[:, None] + middle + north).ravel()

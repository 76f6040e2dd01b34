"""Builds the tile index of a dataset once: modalities, dates, offsets, land cover, climate, region."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import rasterio
from rich.table import Column, Table

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, set_lakes
from terrafm_tg.datasets.majortom.dataset import MajorTOM
from terrafm_tg.datasets.majortom.settled import settle_offsets
from terrafm_tg.datasets.mmearth import MMEarthTiles
from terrafm_tg.datasets.source import find_kind
from terrafm_tg.datasets.tiles.dataset import check_tile_size
from terrafm_tg.datasets.tiles.index_file import NAME, read_index, read_made_for, write_index
from terrafm_tg.datasets.tiles.outlines import BOX, GRID, outlines
from terrafm_tg.datasets.tiles.table import as_table
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, OCEAN, majorities
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import OFFSET, UNKNOWN
from terrafm_tg.utils.arguments import NOT_NEGATIVE, checked
from terrafm_tg.utils.files import atomic_write, content
from terrafm_tg.utils.parallel import run_units

from .layers import SIMULATED, climate_zone, koppen_geiger, places, region

_UNIT = 4096  # tiles of a unit; about as many of Major-TOM's lie over a file of the map
_MOST_SUBSETS = 8  # of bands, that a summary lists
_CACHE = 256  # MB of decoded blocks: some rows of blocks across a file of the map


def describe_map(worldcover: ESAWorldCover) -> dict[str, Any]:
    """Describes the map by all that decides the land cover of an index besides its tiles; JSON can hold it."""
    files = sorted(Path(path) for path in worldcover.index.filepath)
    return {
        "year": worldcover.year,
        "missing": worldcover.missing,
        "files": {file.name: content(file, 1 << 20) for file in files},
    }


def count_unit(tiles: pd.DataFrame, tile_size: int, worldcover: ESAWorldCover) -> np.ndarray:
    """Counts the map's pixels under each tile: int32 (n, 12), by class, then those without data."""
    with rasterio.Env(GDAL_CACHEMAX=_CACHE):
        counts = [worldcover.histogram(outline) for outline in outlines(tiles, tile_size)]
    return np.stack(counts).astype(np.int32)


def cover_counts(
    table: pd.DataFrame,
    tile_size: int,
    worldcover: ESAWorldCover,
    rows: np.ndarray,
    work: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Counts the pixels of each class under the tiles of a table, by :meth:`ESAWorldCover.histogram`.

    Args:
        table: A tile table.
        tile_size: Edge in 10 m pixels of tiles that the table gives no size of.
        worldcover: The map.
        rows: bool (n,), the rows to count.
        work: Folder with the counts of a stopped run, a file per unit, to which this one adds its own.
        workers: As for :func:`~terrafm_tg.utils.parallel.run_units`.
        scheduler: Likewise; its machines see the map's files under the same paths.
        progress: Show a bar.

    Returns:
        int32 (n, 12), 0 in other rows.

    Raises:
        TerraFMError: If the map covers none of the table's tiles, or a file of it cannot be read.
    """
    grid, settings = table[[name for name in GRID if name in table]], f"{tile_size} {describe_map(worldcover)}"
    # file by file of the map, which are 3 degrees wide, and from north to south, as the blocks of a file lie
    order = np.lexsort((-table["ymax"], table["xmin"] // 3, table["ymin"] // 3))
    order = order[rows[order]]
    counts = np.zeros((len(table), len(CLASSES) + 1), dtype=np.int32)
    waiting, names = [], []
    for unit in np.split(order, range(_UNIT, len(order), _UNIT)) if len(order) else ():
        places = b"".join(grid[column].to_numpy()[unit].tobytes() for column in grid)
        name = f"{sha256(settings.encode() + places).hexdigest()}.npy"
        try:
            counts[unit] = np.load(work / name)
        except (OSError, ValueError, EOFError):  # not kept, or damaged
            waiting.append(unit)
            names.append(name)
    count = partial(count_unit, tile_size=tile_size, worldcover=worldcover)
    jobs = [grid.iloc[unit] for unit in waiting]
    for number, values in run_units(
        count, jobs, workers=workers, scheduler=scheduler, title="Land cover", progress=progress
    ):
        counts[waiting[number]] = values
        with atomic_write(work / names[number], sole_writer=True) as part, part.open("wb") as file:
            np.save(file, values)
    if rows.all() and not counts.any():
        shutil.rmtree(work, ignore_errors=True)
        here = table[BOX[0]].min(), table[BOX[1]].min(), table[BOX[2]].max(), table[BOX[3]].max()
        box, tiles = (", ".join(f"{limit:.1f}" for limit in box) for box in (worldcover.index.total_bounds, here))
        raise TerraFMError(
            f"The {len(worldcover.index)} files of ESA WorldCover (within {box} degrees) cover none of the "
            f"{len(table):,} tiles (within {tiles}): give the folder with the map's files for these places."
        )
    return counts


def known_cover(
    table: pd.DataFrame, path: Path, worldcover: dict[str, Any], cover: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Fills in the land cover of tiles that an earlier index of the same map knows.

    Args:
        table: A tile table.
        path: The index that is there, or may not be.
        worldcover: The map, as :func:`describe_map` has it.
        cover: int8 (n,), changed.
        share: float32 (n, 11), changed.

    Returns:
        bool (n,), the rows that are filled in.
    """
    if read_made_for(path).get("worldcover") != worldcover:
        return np.zeros(len(table), dtype=bool)
    columns, cover_columns = [name for name in GRID if name in table], ["land_cover", "land_cover_share"]
    try:
        held = read_index(path, needs=[*columns, *cover_columns], only=[*columns, *cover_columns])[0]
    except TerraFMError:  # damaged, or of another kind
        return np.zeros(len(table), dtype=bool)
    keys = pd.Index(_keys(held[columns]))
    rows = pd.Series(np.arange(len(keys)), keys)[~keys.duplicated()].reindex(_keys(table[columns]), fill_value=-1)
    known, old = (rows >= 0).to_numpy(), rows[rows >= 0].to_numpy()
    cover[known] = held["land_cover"].to_numpy()[old]
    shares = pa.table({"share": held["land_cover_share"]})["share"].combine_chunks()
    share[known] = shares.flatten().to_numpy().reshape(-1, share.shape[1])[old]
    return known


def lists(values: np.ndarray) -> pd.Series:
    """Makes a column of lists from (n, k) float32, without an object per row."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([column])))


def in_ocean_cells(cells: pd.Series, cover: np.ndarray) -> np.ndarray:
    """Returns bool (n,): more than half of the tiles of its cell whose land cover is known are ocean.

    These are the tiles that :class:`~terrafm_tg.samplers.LandCoverSampler` thins, cell by cell.
    """
    codes = pd.factorize(cells)[0]
    return (2 * np.bincount(codes, cover == OCEAN) > np.bincount(codes, cover >= 0))[codes]


def _keys(grid: pd.DataFrame) -> np.ndarray:
    """Hashes each row's place, to a centimeter: uint64 (n,)."""
    places = {
        name: np.rint(values.to_numpy() * 100).astype(np.int64) if values.dtype.kind == "f" else values
        for name, values in grid.items()
    }
    return pd.util.hash_pandas_object(pd.DataFrame(places), index=False).to_numpy()


@checked(workers=NOT_NEGATIVE)
def build_index(
    root: str | os.PathLike[str],
    worldcover: str | os.PathLike[str] | ESAWorldCover | None = None,
    climate: str | os.PathLike[str] | None = None,
    regions: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    watch: Callable[[pd.DataFrame], None] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Builds the tile index of any dataset of tiles, and writes it as GeoParquet.

    The file is written atomically. Datasets find it in their root and use it from then on; they refuse
    it once the files there have changed. A run that was stopped resumes when it is started again, from a folder
    beside the file with the counts so far. Tiles of an index that is there already keep their land cover; only
    others are looked up. The same input gives the same bytes, however
    often it was stopped and whatever the number of processes.

    Args:
        root: A Major-TOM root (:class:`~terrafm_tg.datasets.MajorTOM`), or a folder of scenes
            (:class:`~terrafm_tg.datasets.SentinelFolder`); or that of SSL4EO-S12 or MMEarth.
        worldcover: ESA WorldCover, or the folder of its files; by default ``WorldCover`` below the root, or the
            land cover that MMEarth holds.
        climate: GeoTIFF of climate zone codes; by default ``climate.tif`` below the root, or else the
            Köppen-Geiger zones that come with the package.
        regions: Vector file of regions; by default ``regions.geojson`` below the root, or else the continents.
        out: The file to write instead of ``root/index.parquet``.
        workers: Number of processes that read the map; 0 reads in this one. By default one per core where
            there is much to do.
        scheduler: Address of a Dask cluster, instead of local processes.
        progress: Show a bar.
        watch: Called with the tile table as soon as the files are understood, before maps are read.
        **settings: Of the dataset's ``scan``: ``tile_size`` (half a cell, or 534, where not given),
            ``remote``; ``folders``, ``bands``, ``unit``, ``scale``, ``offset``, ``nodata``, ``max_days``,
            ``join``, ``small_images``.

    Returns:
        The index as a tile table (:mod:`~terrafm_tg.datasets.tiles.table`), with the columns that
        ``docs/index_format.md`` lists.

    Raises:
        TerraFMError: If there is nothing to index, a map cannot be read, or WorldCover covers no tile.
    """
    if settings.get("tile_size") is not None:
        check_tile_size(settings["tile_size"])
    root = Path(root)
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give a Major-TOM root, or a folder of scenes.")
    worldcover = _below(root, "WorldCover") if worldcover is None else worldcover
    climate = _below(root, "climate.tif") if climate is None else Path(climate)
    regions = _below(root, "regions.geojson") if regions is None else Path(regions)
    out = root / NAME if out is None else Path(out)
    if not os.access(out.parent, os.W_OK):
        raise TerraFMError(
            f"{out} cannot be written, as its folder is missing or read-only: name another file with `out`."
        )
    if out != root / NAME and out.exists() and not read_made_for(out):
        raise TerraFMError(f"{out} is there already and is no tile index: name another file with `out`.")
    kind = find_kind(root)
    if kind is MMEarthTiles and worldcover is None:
        settings["cover"] = True  # it holds the map of its places itself
    if settings.get("tile_size") is None:
        settings["tile_size"] = kind.find_tile_size(root)
    for name in settings:
        if name not in signature(kind.scan).parameters:
            raise TerraFMError(f"`{name}` is no setting for {root}, which holds {kind.__name__}: leave it out.")
    made_for = {name: settings.get(name, default) for name, default in kind.SETTINGS.items()}
    made_for |= {"tile_size": settings["tile_size"], "state": kind.state(root)}
    table = as_table(kind.scan(root, **settings))
    if kind is MajorTOM:
        table = settle_offsets(table, root, workers, scheduler, progress)
    if watch is not None:
        watch(table)
    cover, share = np.full(len(table), UNKNOWN, np.int8), np.zeros((len(table), len(CLASSES)), np.float32)
    if "land_cover" in table:
        cover, share = table["land_cover"].to_numpy(), np.stack(table["land_cover_share"].to_list())
    placed = table["placed"].to_numpy() if "placed" in table else np.ones(len(table), bool)  # chips lie nowhere
    work = out.with_name(f"{out.name}.work")
    if worldcover is not None:
        source = worldcover if isinstance(worldcover, ESAWorldCover) else ESAWorldCover(worldcover)
        made_for["worldcover"] = described = describe_map(source)
        known = known_cover(table, out, described, cover, share)
        counts = cover_counts(table, settings["tile_size"], source, ~known & placed, work, workers, scheduler, progress)
        lon, lat = places(table)
        cover = np.where(known, cover, majorities(counts, lat))
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)  # no data counts to the whole
        np.divide(counts[:, : len(CLASSES)], total, out=share, where=~known[:, None], casting="unsafe")
        if not (root / SIMULATED).is_file():
            cover = set_lakes(cover, share, lon, lat)  # also those that an older index took for ocean
    zones = koppen_geiger(table) if climate is None else climate_zone(table, climate)
    region_of, made_for["regions"] = region(table, regions)
    cover, zones, region_of = (np.where(placed, x, UNKNOWN).astype(x.dtype) for x in (cover, zones, region_of))
    table = table.assign(
        land_cover=cover,
        land_cover_share=lists(share),
        ocean=in_ocean_cells(table["cell"], cover),
        climate=zones,
        region=region_of,
    )
    write_index(table, out, made_for)
    shutil.rmtree(work, ignore_errors=True)
    return table


def region_names(path: Path) -> list[str]:
    """Returns the names of the regions whose numbers an index file holds in ``region``; none where it names none."""
    names = read_made_for(path).get("regions", [])
    return [str(name) for name in names] if isinstance(names, list) else []


def _below(root: Path, name: str) -> Path | None:
    return root / name if (root / name).exists() else None


def index_summary(index: pd.DataFrame) -> Table:
    """Summarizes a tile index for people: modalities, offsets, land cover, and what is not known."""
    cover = index["land_cover"]
    labels = {}
    for modality in MODALITIES.values():
        if f"has_{modality.name}" not in index:
            continue
        has, offset = index[f"has_{modality.name}"], index[f"offset_{modality.name}"]
        labels[modality.title] = has
        if (bands := index.get(f"bands_{modality.name}")) is not None:
            subsets = bands.dropna().unique()[:_MOST_SUBSETS]
            labels |= {f"  {modality.title} with {text} only": has & (bands == text) for text in subsets}
        if modality.unit == "DN":
            labels[f"  {modality.title} with the +1000 DN of baseline 04.00"] = has & (offset == OFFSET)
        if (has & (offset == UNKNOWN)).any():
            labels[f"  {modality.title} not known whether with it"] = has & (offset == UNKNOWN)
    if (cover != UNKNOWN).any():
        labels |= {name: cover == number for number, name in enumerate(CLASS_NAMES)}
    labels["No land cover, as ESA WorldCover is not at hand"] = cover == UNKNOWN
    table = Table("", Column("tiles", justify="right"), Column("share", justify="right"), min_width=60)
    for label, rows in labels.items():
        table.add_row(label, f"{rows.sum():,}", f"{rows.mean():.1%}")
    return table

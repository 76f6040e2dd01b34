"""The cells and products of Major-TOM to take: by box, name, land cover, cloud, modality, random share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from geopandas import GeoDataFrame

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, map_file
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.rows import FOLDERS, best_first, tile_corners
from terrafm_tg.datasets.tiles.table import outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, UNKNOWN, majority
from terrafm_tg.modalities import get_modalities
from terrafm_tg.utils.parallel import run_units

#: Land cover of cells: the classes 0 to 11 of each cell's tiles, as booleans (cells, 12).
LandCoverOf = Callable[[pd.Series], np.ndarray]
_TILE = 534  # 10 m pixels across a tile
_UNIT = 256  # tiles that one process looks at before it reports


@dataclass(frozen=True)
class Selection:
    """Conditions that a cell must all meet; those not given hold for every cell.

    Args:
        bbox: West, south, east, north in degrees: cells that reach into the box. West may exceed east: the box then
            crosses the antimeridian.
        cells: Names such as ``897U_171L``.
        land_cover: Classes of ESA WorldCover, by name or code, or ``Ocean``: cells of which a tile (a quarter) has one
            of them as its most frequent class.
        share: Share of the cells that meet all other conditions, chosen by a hash of seed and cell; a larger
            share contains a smaller one.
        seed: Seed of the share.
        modalities: Products to take.
        require: ``"all"`` takes cells that have every product asked for, as the paper does; ``"any"`` those with at
            least one.
        max_cloud: Leaves out Sentinel-2 products with more cloud than this, in percent.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    bbox: tuple[float, float, float, float] | None = None
    cells: tuple[str, ...] | None = None
    land_cover: tuple[str, ...] = ()
    share: float = 1.0
    seed: int = 0
    modalities: tuple[str, ...] | None = None
    require: str = "all"
    max_cloud: float = 100.0

    def __post_init__(self) -> None:
        _ = self.products, self.classes  # refuses unknown names
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90) or west == east:
                raise TerraFMError(
                    f"`bbox` [{west:g},{south:g},{east:g},{north:g}] is empty or not on the globe: give west, south, "
                    "east, north in degrees, south below north."
                )
        if self.cells is not None:
            grid.parse(self.cells)
        if not 0 < self.share <= 1:
            raise TerraFMError(f"`share` is {self.share:g}: give a number above 0 and at most 1.")
        if self.require not in ("all", "any"):
            raise TerraFMError(f"`require` is {self.require!r}: give 'all' or 'any'.")
        if not 0 <= self.max_cloud <= 100:
            raise TerraFMError(f"`max_cloud` is {self.max_cloud:g}: give percent, 0 to 100.")

    @cached_property
    def products(self) -> tuple[str, ...]:
        """The modalities to take, by name."""
        return tuple(modality.name for modality in get_modalities(self.modalities))

    @cached_property
    def classes(self) -> list[int]:
        """The classes to take, by index."""
        return [_class(name) for name in self.land_cover]

    def choose(self, products: pd.DataFrame, land_cover: LandCoverOf) -> pd.DataFrame:
        """Chooses the rows of products to take.

        As in the tile index, of several rows of a cell the one with the least nodata, then cloud, then the latest
        counts, and a product in another UTM zone than the cell's first is none of it.

        Args:
            products: Columns ``modality``, ``cell``, ``epsg``, ``nodata``, ``cloud_cover``,
                ``timestamp``, ``product_id``.
            land_cover: Gives the classes of cells (their zones, indexed by name); asked last, for those that
                meet every other condition.

        Raises:
            TerraFMError: If no cell meets them all; it says after which condition none was left.
        """
        codes, names = pd.factorize(products["cell"])
        names = pd.Index(names)
        keep = _narrow(np.ones(len(names), dtype=bool), self._in_box(names), "lies in `bbox`")
        if self.cells is not None:
            keep = _narrow(keep, names.isin(self.cells), "is one of `cells`")
        if self.share < 1:
            keep = _narrow(keep, self._drawn(names), f"is among the share of {self.share:g}")
        cloudy = products["cloud_cover"] > self.max_cloud
        taken = keep[codes] & products["modality"].isin(self.products) & ~cloudy
        rows = _one_per_cell(products[taken].assign(code=codes[taken]), len(names))
        if self.require == "all":
            complete = np.bincount(rows["code"], minlength=len(names)) == len(self.products)
            rows = rows[complete[rows["code"]]]
        wanted = ", ".join(self.products)
        _check_some(len(rows), f"has {self.require} of {wanted} with at most {self.max_cloud:g} % cloud")
        if self.classes:
            zones = rows.drop_duplicates("code").set_index("cell")["epsg"]
            covered = land_cover(zones)[:, self.classes].any(axis=1)
            wanted = " or ".join(CLASS_NAMES[c] for c in self.classes)
            _check_some(int(covered.sum()), f"has a tile of {wanted}")
            rows = rows[rows["cell"].isin(zones.index[covered])]
        return rows.drop(columns="code")

    def _in_box(self, names: pd.Index) -> np.ndarray:
        if self.bbox is None:
            return np.ones(len(names), dtype=bool)
        west, south, east, north = self.bbox
        rows, cols = grid.parse(names)
        bottom, left = grid.corners(rows, cols)
        width, height = 360 / grid.cells_per_row(rows), 180 / grid.ROWS
        extent = (east - west) % 360 or 360
        ahead = (left - west) % 360  # how far the cell's left edge lies east of the box's
        return (bottom < north) & (bottom + height > south) & ((ahead < extent) | (ahead + width > 360))

    def _drawn(self, names: pd.Index) -> np.ndarray:
        # SipHash keyed by the seed: the same on every machine
        hashes = pd.util.hash_array(names.to_numpy(dtype=object), hash_key=f"{self.seed % 2**64:016x}")
        return hashes / 2.0**64 < self.share


def read_cells(cells: list[str] | str | Path | None) -> tuple[str, ...] | None:
    """Reads cells given by name, or as a text file with one name per line; a comma or a space ends it.

    Raises:
        TerraFMError: If there is no such file, or it names none.
    """
    if cells is None or isinstance(cells, list):
        return None if cells is None else tuple(cells)
    path = Path(cells)
    if not path.is_file():
        if "_" in str(cells) and "." not in str(cells) and "/" not in str(cells):
            return tuple(str(cells).replace(",", " ").split())
        raise TerraFMError(f"There is no file {path}: `cells` takes cells by name or a file with one per line.")
    words = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(line[0] for line in words if line and line[0] not in ("grid_cell", "cell"))
    if not names:
        raise TerraFMError(f"{path} names no cell: write one per line, such as 897U_171L.")
    return names


def _class(name: str) -> int:
    """The index of a class by name or code."""
    known = {c.lower(): i for i, c in enumerate(CLASS_NAMES)}
    known |= {str(c.code): i for i, c in enumerate(CLASSES)}
    if str(name).lower() not in known:
        raise TerraFMError(f"Land cover {name!r} is unknown: use {', '.join(CLASS_NAMES)}, or WorldCover's codes.")
    return known[str(name).lower()]


def _one_per_cell(rows: pd.DataFrame, cells: int) -> pd.DataFrame:
    """The best row of each product and cell, in the zone of the cell's first product."""
    rank, code = rows["modality"].map({name: i for i, name in enumerate(FOLDERS)}), rows["code"]
    several = (rank * cells + code).duplicated(keep=False)
    if several.any():
        best = best_first(rows[several]).drop_duplicates(["modality", "code"])
        rows = pd.concat([rows[~several], best])
    zone = np.zeros(cells)
    for name in reversed(FOLDERS):
        of = rows[rows["modality"] == name]
        zone[of["code"]] = of["epsg"]
    return rows[rows["epsg"].to_numpy() == zone[rows["code"]]]


def _narrow(keep: np.ndarray, condition: np.ndarray, words: str) -> np.ndarray:
    keep = keep & condition
    _check_some(int(np.count_nonzero(keep)), words)
    return keep


def _check_some(count: int, condition: str) -> None:
    if not count:
        raise TerraFMError(f"No cell of those left {condition}: nothing to download, loosen that condition.")


def cell_tiles(zones: pd.Series) -> GeoDataFrame:
    """The four tiles of each cell, four rows each, as the tile index has them.

    Args:
        zones: EPSG code of each cell's zone, indexed by the cell's name.
    """
    epsg = zones.to_numpy(dtype=np.int64)
    x, y = tile_corners(*grid.parse(zones.index), epsg, _TILE)
    table = pd.DataFrame({"epsg": np.repeat(epsg, 4), "x": x, "y": y})
    return GeoDataFrame(geometry=outlines(table, _TILE), crs=4326)


def map_files(tiles: GeoDataFrame) -> list[str]:
    """Names the map's files (3 x 3 degrees) that tiles reach into."""
    west, south, east, north = shapely.bounds(tiles.geometry.array).T
    corners = [(x, y) for x in (west, east) for y in (south, north)]
    lon, lat = (np.floor(np.concatenate(v) / 3).astype(int) * 3 for v in zip(*corners, strict=True))
    lon = (lon + 180) % 360 - 180
    places = set(zip(lat.tolist(), lon.tolist(), strict=True))
    return sorted(map_file(south, west) for south, west in places if -60 <= south < 84)


def cover_from(path: Path, prepare: Callable[[list[str]], None] | None = None, progress: bool = True) -> LandCoverOf:
    """Makes a function that tells the land cover of cells.

    Args:
        path: A tile index, or a folder of the map's files.
        prepare: Called with the names of the files that are needed, to fetch them; without it a place
            without a file is unknown, unless the folder holds the complete map.
        progress: Show a bar.

    Raises:
        TerraFMError: If there is neither.
    """
    if path.is_dir() or prepare is not None:
        return partial(_from_map, path, prepare, progress)
    if not path.is_file():
        raise TerraFMError(f"{path} does not exist: give a tile index (`terrafm index`) or a folder of ESA WorldCover.")
    return partial(_from_index, path)


def _from_map(
    folder: Path, prepare: Callable[[list[str]], None] | None, progress: bool, zones: pd.Series
) -> np.ndarray:
    tiles = cell_tiles(zones)
    if prepare is not None:
        prepare(map_files(tiles))
    polygons, missing = np.asarray(tiles.geometry.array), "ocean" if prepare else None
    units = [(folder, missing, polygons[i : i + _UNIT]) for i in range(0, len(polygons), _UNIT)]
    parts = dict(run_units(_majorities, units, title="Land cover", progress=progress))
    cover = np.concatenate([parts[i] for i in range(len(units))])
    return _classes(np.repeat(np.arange(len(zones)), 4), cover, len(zones))


@cache
def _map(folder: Path, missing: str | None) -> ESAWorldCover:
    return ESAWorldCover(folder, missing=missing)


def _majorities(unit: tuple[Path, str | None, np.ndarray]) -> np.ndarray:
    """Finds the most frequent class of each of some tiles."""
    folder, missing, outlines = unit
    held = _map(folder, missing)
    return np.array([majority(held.histogram(tile), tile.centroid.y) for tile in outlines], dtype=np.int64)


def _from_index(path: Path, zones: pd.Series) -> np.ndarray:
    try:
        table = pq.read_table(path, columns=["cell", "land_cover"]).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(f"{path} is no tile index with land cover ({error}): run `terrafm index`.") from error
    cells = zones.index.get_indexer(pd.Index(table["cell"].astype(str)))
    return _classes(cells[cells >= 0], table["land_cover"].to_numpy()[cells >= 0], len(zones))


def _classes(cells: np.ndarray, cover: np.ndarray, count: int) -> np.ndarray:
    """Marks the classes that occur among the tiles of each cell, as booleans (count, 12)."""
    found = np.zeros((count, len(CLASS_NAMES)), dtype=bool)
    known = cover != UNKNOWN
    found[cells[known], cover[known]] = True
    return found

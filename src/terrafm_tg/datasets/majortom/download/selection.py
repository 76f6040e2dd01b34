"""The cells and products of Major-TOM to take: by box, name, land cover, cloud, modality, random share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from geopandas import GeoDataFrame

from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, map_file, set_lakes
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.rows import FOLDERS, best_first, tile_corners
from terrafm_tg.datasets.scenes.stac.search import check_bbox
from terrafm_tg.datasets.tiles.outlines import outlines
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, majorities
from terrafm_tg.modalities import get_modalities
from terrafm_tg.utils.arguments import NOT_NEGATIVE, SOME_SHARE, checked
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.parquet import read_table

#: Finds the land cover of the tiles of cells (their zones, indexed by name): columns ``cell`` and ``land_cover``.
LandCoverOf = Callable[[pd.Series], pd.DataFrame]
_TILE = 534  # 10 m pixels across a tile
_UNIT = 256  # tiles that one process looks at before it reports


@checked(share=SOME_SHARE, seed=NOT_NEGATIVE, max_cloud=(0, 100))
@dataclass(frozen=True)
class Selection:
    """Conditions that a cell must all meet; those not given hold for every cell.

    Args:
        bbox: West, south, east, north in degrees, such as ``[5.9,45.8,10.5,47.8]``: cells that reach into the box.
            West may exceed east: the box then crosses the antimeridian.
        cells: Names such as ``[897U_171L,897U_172L]``, or a text file with one per line; a comma or a space ends it.
        land_cover: Classes of ESA WorldCover, by name or code, or ``Ocean``: cells of which a tile (a quarter) has one
            of them as its most frequent class.
        share: Share of the cells that meet all other conditions, chosen by a hash of seed and cell; a larger
            share contains a smaller one.
        seed: Seed of the share.
        modalities: Products to take, any of s1rtc, s2l1c, s2l2a; all by default.
        require: ``"all"`` takes cells that have every product asked for, as the paper does; ``"any"`` those with at
            least one.
        max_cloud: Leaves out Sentinel-2 products with more cloud than this, in percent.

    Raises:
        TerraFMError: If a setting is impossible, or ``cells`` is a file that is missing or names none.
    """

    bbox: list[float] | None = None
    cells: list[str] | str | Path | None = None
    land_cover: list[str | int] | str | int | None = None
    share: float = 1.0
    seed: int = 0
    modalities: list[str] | str | None = None
    require: str = "all"
    max_cloud: float = 100.0

    def __post_init__(self) -> None:
        _ = self.products, self.classes, self.names  # refuses unknown ones
        if self.bbox is not None:
            check_bbox(self.bbox)
        if self.require not in ("all", "any"):
            raise TerraFMError(f"`require` is {self.require!r}: give 'all' or 'any'.")

    @cached_property
    def products(self) -> list[str]:
        """The modalities to take, by name."""
        names = [self.modalities] if isinstance(self.modalities, str) else self.modalities
        return [modality.name for modality in get_modalities(names or None)]

    @cached_property
    def classes(self) -> list[int]:
        """The classes to take, by index."""
        wanted = [self.land_cover] if isinstance(self.land_cover, str | int) else self.land_cover or []
        known = {c.lower(): i for i, c in enumerate(CLASS_NAMES)} | {str(c.code): i for i, c in enumerate(CLASSES)}
        if unknown := [name for name in wanted if str(name).lower() not in known]:
            raise TerraFMError(
                f"Land cover {unknown[0]!r} is unknown: use {', '.join(CLASS_NAMES)}, or WorldCover's codes."
            )
        return [known[str(name).lower()] for name in wanted]

    @cached_property
    def names(self) -> list[str] | None:
        """The cells to take, by name; None for all."""
        if self.cells is None:
            return None
        names = self.cells
        if isinstance(names, str | Path):
            if not Path(names).is_file():
                raise TerraFMError(
                    f"There is no file {names}: `cells` takes a list of names or a file with one per line."
                )
            lines = Path(names).read_text(encoding="utf-8").replace(",", " ").splitlines()
            names = [line.split()[0] for line in lines if line.split()]
            names = [name for name in names if name not in ("grid_cell", "cell")]
        if not names:
            raise TerraFMError(f"{self.cells} names no cell: write one per line, such as 897U_171L.")
        grid.parse(names)
        return names

    def choose(self, table: pd.DataFrame, land_cover: LandCoverOf) -> pd.DataFrame:
        """Chooses the rows of products to take.

        As in the tile index, of several rows of a cell the one with the least nodata, then cloud, then the latest
        counts, and a product in another UTM zone than the cell's first is none of it.

        Args:
            table: Columns ``modality``, ``cell``, ``epsg``, ``nodata``, ``cloud_cover``, ``timestamp``,
                ``product_id``; a row's label is its own.
            land_cover: Asked last, for the cells that meet every other condition.

        Raises:
            TerraFMError: If no cell meets them all; it says after which condition none was left.
        """
        rows = _some("modalities", table[table["modality"].isin(self.products)])
        if self.bbox is not None:
            rows = _some("bbox", rows[rows["cell"].isin(self._in_box(rows["cell"].unique()))])
        if self.names is not None:
            rows = _some("cells", rows[rows["cell"].isin(self.names)])
        if self.share < 1:
            # SipHash keyed by the seed: the same on every machine
            hashes = pd.util.hash_array(rows["cell"].to_numpy(dtype=object), hash_key=f"{self.seed % 2**64:016x}")
            rows = _some("share", rows[hashes / 2.0**64 < self.share])
        rows = _some("max_cloud", rows[~(rows["cloud_cover"] > self.max_cloud)])
        several = rows.duplicated(["modality", "cell"], keep=False)  # few: to sort all takes minutes
        best = best_first(rows[several]).drop_duplicates(["modality", "cell"])
        rows = pd.concat([rows[~several], best])
        rows = rows.sort_values("modality", key=lambda names: names.map(list(FOLDERS).index), kind="stable")
        rows = rows[rows["epsg"] == rows.groupby("cell")["epsg"].transform("first")]
        if self.require == "all":
            complete = rows.groupby("cell")["modality"].transform("size") == len(self.products)
            rows = _some("require", rows[complete])
        if self.classes:
            tiles = land_cover(rows.drop_duplicates("cell").set_index("cell")["epsg"])
            covered = tiles["cell"][tiles["land_cover"].isin(self.classes)]
            rows = _some("land_cover", rows[rows["cell"].isin(covered)])
        return rows

    def _in_box(self, names: np.ndarray) -> np.ndarray:
        west, south, east, north = self.bbox or (-180, -90, 180, 90)
        rows, cols = grid.parse(names)
        bottom, left = grid.corners(rows, cols)
        width, height = 360 / grid.cells_per_row(rows), 180 / grid.ROWS
        extent = (east - west) % 360 or 360
        ahead = (left - west) % 360  # how far the cell's left edge lies east of the box's
        inside = (bottom < north) & (bottom + height > south) & ((ahead < extent) | (ahead + width > 360))
        return names[inside]


def _some(condition: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that a condition left, of which there must be some."""
    if rows.empty:
        raise TerraFMError(f"No cell is left after `{condition}`: nothing to download, loosen that condition.")
    return rows


def cell_tiles(zones: pd.Series) -> GeoDataFrame:
    """The four tiles of each cell, four rows each, as the tile index has them.

    Args:
        zones: EPSG code of each cell's zone, indexed by the cell's name.
    """
    epsg = zones.to_numpy(dtype=np.int64)
    x, y = tile_corners(*grid.parse(zones.index), epsg, _TILE)
    table = pd.DataFrame({"epsg": np.repeat(epsg, 4), "x": x, "y": y})
    return GeoDataFrame({"cell": np.repeat(zones.index, 4)}, geometry=outlines(table, _TILE), crs=4326)


def map_files(tiles: GeoDataFrame) -> list[str]:
    """Names the map's files (3 x 3 degrees) that tiles reach into."""
    west, south, east, north = shapely.bounds(tiles.geometry.array).T
    corners = [(x, y) for x in (west, east) for y in (south, north)]
    lon, lat = (np.floor(np.concatenate(v) / 3).astype(int) * 3 for v in zip(*corners, strict=True))
    lon = (lon + 180) % 360 - 180
    places = set(zip(lat.tolist(), lon.tolist(), strict=True))
    return sorted(map_file(south, west) for south, west in places if -60 <= south < 84)


def cover_of_index(path: Path) -> pd.DataFrame:
    """Reads the land cover of cells in a tile index, as :data:`LandCoverOf` gives it.

    Raises:
        TerraFMError: If it is none.
    """
    try:
        return read_table(path, ["cell", "land_cover"]).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(f"{path} is no tile index with land cover ({error}): run `terrafm index`.") from error


def cover_of_map(folder: Path, prepare: Callable[[list[str]], None], progress: bool, zones: pd.Series) -> pd.DataFrame:
    """Looks up the land cover of cells in the map, as :data:`LandCoverOf` says; a place without a file is open sea.

    Args:
        folder: Of the map's files.
        prepare: Called with the names of the files that are needed, to fetch them.
        progress: Show a bar.
        zones: Of the cells.
    """
    tiles = cell_tiles(zones)
    prepare(map_files(tiles))
    units = np.array_split(np.asarray(tiles.geometry.array), -(-len(tiles) // _UNIT))
    look_up = partial(_majorities, ESAWorldCover(folder, missing="ocean"))
    found = dict(run_units(look_up, units, title="Land cover", progress=progress))
    return pd.DataFrame({"cell": tiles["cell"], "land_cover": np.concatenate([found[i] for i in range(len(units))])})


def _majorities(worldcover: ESAWorldCover, outlines: np.ndarray) -> np.ndarray:
    """Finds the most frequent class of each of some tiles."""
    counts = np.stack([worldcover.histogram(outline) for outline in outlines])
    lon, lat = shapely.get_coordinates(shapely.centroid(outlines)).T
    share = counts[:, :-1] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return set_lakes(majorities(counts, lat), share, lon, lat)

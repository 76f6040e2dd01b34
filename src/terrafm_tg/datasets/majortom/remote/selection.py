"""Which cells and products of Major-TOM to take: box, cells by name, land cover, cloud, modalities, random share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES
from terrafm_tg.modalities import get_modalities

#: Land cover of cells: the classes 0 to 11 of each cell's tiles, as booleans (cells, 12).
LandCoverOf = Callable[[pd.Series], np.ndarray]


@dataclass(frozen=True)
class Selection:
    """Conditions that a cell must all meet; those not given hold for every cell.

    Args:
        bbox: West, south, east, north in degrees: cells that reach into the box. West may exceed east: the box then
            crosses the antimeridian.
        cells: Names such as ``897U_171L``.
        land_cover: Classes of ESA WorldCover, by name or code, or ``Ocean``: cells of which a tile (a quarter) has one
            of them as its most frequent class.
        share: Of the cells that remain, by a hash of (seed, cell): a larger share contains a smaller one.
        seed: Of the share.
        modalities: Products to take.
        require: ``"all"`` takes cells that have every one of them (as the paper's), ``"any"`` those that have one.
        max_cloud: Products of Sentinel-2 with more cloud, in percent, do not count.

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
        object.__setattr__(self, "modalities", tuple(m.name for m in get_modalities(self.modalities)))
        object.__setattr__(self, "classes", tuple(_class(name) for name in self.land_cover))
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if (
                not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90)
                or west == east
            ):
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

    def choose(self, products: pd.DataFrame, land_cover: LandCoverOf) -> pd.DataFrame:
        """The rows of products to take.

        As in the tile index, of several rows of a cell the one with the least nodata, then cloud, then the latest
        counts, and a product in another UTM zone than the cell's first is none of it.

        Args:
            products: Columns ``modality``, ``cell``, ``epsg``, ``nodata``, ``cloud``, ``time``, ``product_id``.
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
        taken = (
            keep[codes] & products["modality"].isin(self.modalities) & ~(products["cloud"] > self.max_cloud)
        )
        rows = _one_per_cell(products[taken].assign(code=codes[taken]), len(names))
        if self.require == "all":
            complete = np.bincount(rows["code"], minlength=len(names)) == len(self.modalities)
            rows = rows[complete[rows["code"]]]
        wanted = ", ".join(self.modalities)
        _check_some(len(rows), f"has {self.require} of {wanted} with at most {self.max_cloud:g} % cloud")
        if self.classes:
            zones = rows.drop_duplicates("code").set_index("cell")["epsg"]
            covered = land_cover(zones)[:, list(self.classes)].any(axis=1)
            _check_some(covered.sum(), f"has a tile of {' or '.join(CLASS_NAMES[c] for c in self.classes)}")
            rows = rows[rows["cell"].isin(zones.index[covered])]
        return rows.drop(columns="code")

    def _in_box(self, names: pd.Index) -> np.ndarray:
        if self.bbox is None:
            return np.ones(len(names), dtype=bool)
        west, south, east, north = self.bbox
        rows, cols = grid.parse(names)
        bottom, left = grid.corners(rows, cols)
        width, height = 360 / grid.columns(rows), 180 / grid.ROWS
        extent = (east - west) % 360 or 360
        ahead = (left - west) % 360  # how far the cell's left edge lies east of the box's
        return (bottom < north) & (bottom + height > south) & ((ahead < extent) | (ahead + width > 360))

    def _drawn(self, names: pd.Index) -> np.ndarray:
        # SipHash keyed by the seed: the same on every machine
        hashes = pd.util.hash_array(names.to_numpy(dtype=object), hash_key=f"{self.seed % 2**64:016x}")
        return hashes / 2.0**64 < self.share


def read_cells(cells: list[str] | str | Path | None) -> tuple[str, ...] | None:
    """Cells given by name, or as a text file with one name per line (what follows a comma or a space is not read).

    Raises:
        TerraFMError: If there is no such file, or it names none.
    """
    if cells is None or isinstance(cells, list):
        return None if cells is None else tuple(cells)
    path = Path(cells)
    if not path.is_file():
        if "_" in str(cells) and "." not in str(cells) and "/" not in str(cells):
            return tuple(str(cells).replace(",", " ").split())
        raise TerraFMError(
            f"There is no file {path}: `cells` takes cells by name or a file with one per line."
        )
    words = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(line[0] for line in words if line and line[0] not in ("grid_cell", "cell"))
    if not names:
        raise TerraFMError(f"{path} names no cell: write one per line, such as 897U_171L.")
    return names


def _class(name: str) -> int:
    """Index of a class by name or code."""
    known = {c.lower(): i for i, c in enumerate(CLASS_NAMES)} | {
        str(c.code): i for i, c in enumerate(CLASSES)
    }
    if str(name).lower() not in known:
        raise TerraFMError(
            f"Land cover {name!r} is unknown: use {', '.join(CLASS_NAMES)}, or WorldCover's codes."
        )
    return known[str(name).lower()]


def _one_per_cell(rows: pd.DataFrame, cells: int) -> pd.DataFrame:
    """The best row of each product and cell, in the zone of the cell's first product."""
    rank, code = rows["modality"].map({name: i for i, name in enumerate(FOLDERS)}), rows["code"]
    several = (rank * cells + code).duplicated(keep=False)
    if several.any():
        best = rows[several].sort_values(
            ["nodata", "cloud", "time", "product_id"], ascending=[True, True, False, True], kind="stable"
        )
        rows = pd.concat([rows[~several], best.drop_duplicates(["modality", "code"])])
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

"""A folder of Sentinel scenes, as tiles."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.scenes.fetched import judge_catalog
from terrafm_tg.datasets.scenes.find import state_files
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pairs import ANCHORS, JOINS, SMALL, join_products, products_table
from terrafm_tg.datasets.scenes.pixels import read_tile
from terrafm_tg.datasets.scenes.scene import Scene, files_from_columns
from terrafm_tg.datasets.scenes.stac.catalog import ITEMS, image_sources, read_items
from terrafm_tg.datasets.scenes.stac.search import boxes_meet
from terrafm_tg.datasets.tiles.bands import at_own_resolution
from terrafm_tg.datasets.tiles.dataset import TileDataset, check_tile_size
from terrafm_tg.datasets.tiles.index_file import open_index
from terrafm_tg.datasets.tiles.outlines import BOX, GRID, edges, from_zones
from terrafm_tg.datasets.tiles.table import resolve_offsets
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import Settings, Verdict
from terrafm_tg.utils.arguments import NOT_NEGATIVE, checked
from terrafm_tg.utils.files import fingerprint

from .chips import EPSG, place_chips


@checked(max_days=NOT_NEGATIVE)
class SentinelFolder(TileDataset):
    """Scenes of Sentinel-1 and Sentinel-2 below a folder, as providers lay them out.

    Takes SAFE folders, zipped or not, files per band, stacks, NetCDF and Zarr cubes, EOPF products, at any depth, and
    chips without a place: see :func:`~terrafm_tg.datasets.scenes.find.find_scenes` and ``docs/your_data.md``. Unit,
    scale, offset and missing values of each scene are concluded from its metadata and its pixels
    (:func:`~terrafm_tg.radiometry.judge`). Scenes are joined by place and date, not by name: see
    :func:`~terrafm_tg.datasets.scenes.pairs.join_products`.

    Tiles keep the CRS of their files, UTM or not (``epsg``). Bands of 20 and 60 m come at the size in which
    they are stored, also in ``native=True`` samples: often 10 m.

    A GeoTIFF carries no checksum: a damaged file that does not decode is named and costs its tiles, one that
    decodes to other numbers is not noticed. ``terrafm pack`` records a checksum per tile.

    Args:
        root: The folder.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that are found where None.
        native: Return the stored pixels instead of float32 at 10 m.
        tile_size: Images are cut into tiles of this many pixels; where all are smaller and of one size, they are used
            whole.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        folders: Folder below the root by modality; where None, all are looked through, and usual names
            (``S1RTC``, ``s2a``, ...) tell the modality of files that do not.
        bands: Bands of files in their order, for all modalities or by modality; it decides where names of bands say
            something else.
        unit: ``"dB"``, ``"linear"`` or ``"amplitude"`` (radar), ``"DN"`` or ``"reflectance"`` (optics), for all or by
            modality; where None, as files and pixels tell.
        scale: Digital numbers, or radar's unit, per stored number, for all or by modality; likewise.
        offset: The +1000 DN of baseline 04.00 in optical files: 0, 1000 or ``"detect"``, for all or by modality.
        nodata: Stored value that is missing, for all or by modality, besides what files declare and usual ones.
        ambiguous_offset: Decides where the offset could not be found out: ``"error"``, ``"present"``,
            ``"absent"``, ``"drop"``.
        harmonize: Take the offset off; False keeps the numbers as they are stored.
        max_days: Do not join images that are further apart in time.
        join: S1 images within that time that a tile is joined with: ``"nearest"``, or ``"all"``, a sample each; None
            is the first.
        small_images: Images smaller than a tile where others are not are left out (``"drop"``), or filled up with
            missing pixels (``"pad"``); None is the first.
        mask_clouds: Count pixels as missing that the product's own mask (SCL, QA60, ...) calls cloud or its shadow.
        remote: Addresses below which the images may lie that ``root/stac_items.json`` names (what a STAC search found;
            ``terrafm index --stac`` writes it): one or several, ``"planetary-computer"`` or ``"earth-search"``, or True
            for these two. Only the blocks that a tile needs are read.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If the root is missing or holds no usable image, its index is out of date or made with other
            settings, an offset is unknown, evidence contradicts itself, or a setting is wrong.
    """

    root: Path
    filename_glob = "*.tif*"

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        tile_size: int = 534,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        folders: Mapping[str, str] | None = None,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        unit: str | Mapping[str, str] | None = None,
        scale: float | Mapping[str, float] | None = None,
        offset: int | str | Mapping[str, int | str] | None = None,
        nodata: float | Mapping[str, float] | None = None,
        ambiguous_offset: str = "error",
        harmonize: bool = True,
        max_days: float | None = None,
        join: str | None = None,
        small_images: str | None = None,
        mask_clouds: bool = False,
        remote: bool | str | Sequence[str] = False,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        check_tile_size(tile_size)
        self.root = self.paths = Path(root)
        self.harmonize, self.mask_clouds = harmonize, mask_clouds
        given = {
            "folders": folders, "bands": bands, "unit": unit, "scale": scale, "offset": offset, "nodata": nodata,
            "max_days": max_days, "join": join, "small_images": small_images,
        }  # fmt: skip
        told = {name: _plain(value) for name, value in given.items() if value is not None}
        self._sources = image_sources(remote)
        table, _ = open_index(
            index, self.root, self.scan, self.state, {"remote": remote}, self._sources,
            ("path_", "files_", "verdict_", "offset_", *GRID), tile_size=tile_size, **told,
        )  # fmt: skip
        if harmonize:
            table = resolve_offsets(table, modalities, ambiguous_offset)
        super().__init__(table, modalities, native, tile_size, transforms)

    #: Settings of :meth:`scan` that an index on disk must have been made with, where the dataset has them.
    SETTINGS: ClassVar = dict.fromkeys(
        ("folders", "bands", "unit", "scale", "offset", "nodata", "max_days", "join", "small_images")
    )

    @staticmethod
    def scan(
        root: Path,
        tile_size: int,
        folders: Mapping[str, str] | None = None,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        unit: str | Mapping[str, str] | None = None,
        scale: float | Mapping[str, float] | None = None,
        offset: int | str | Mapping[str, int | str] | None = None,
        nodata: float | Mapping[str, float] | None = None,
        max_days: float | None = None,
        join: str | None = None,
        small_images: str | None = None,
        remote: bool | str | Sequence[str] = False,
    ) -> pd.DataFrame:
        """Makes the tile table from files and a part of their pixels; arguments as for the class."""
        settings = Settings(unit, scale, "detect" if offset is None else offset, nodata, bands)
        catalog = read_items(root / ITEMS, image_sources(remote)) if (root / ITEMS).is_file() else None
        judged = judge_catalog(catalog, settings) if catalog else find_judged(root, settings, folders)[1]
        return tile_scenes(judged, tile_size, max_days, join, small_images, catalog.bbox if catalog else None)

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Returns the tile size to index with when none is given: the paper's."""
        return 534

    @staticmethod
    def state(root: Path) -> str:
        """Returns a name for the files below the root: an index made for another set is out of date."""
        items = [root / ITEMS] if (root / ITEMS).is_file() else []
        return fingerprint([*state_files(root), *items], root)

    def name(self, row: int) -> str:
        """Returns the tile's name in logs: the path of its first image."""
        paths = (self.table[f"path_{m}"].iat[row] for m in ANCHORS if f"path_{m}" in self.table)
        return next(path for path in paths if isinstance(path, str)).replace("{}", "*")

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        path, files, text = (self._arrays[f"{column}_{modality.name}"][row] for column in ("path", "files", "verdict"))
        name, transform = f"{self.name(row)} {modality.name}", self._transform(row)
        size = int(self.table["height"].iat[row]), int(self.table["width"].iat[row])
        try:
            scene, verdict = _scene(modality.name, path, files, self._sources), _verdict(text)
            verdict = replace(verdict, offset=int(self.table[f"offset_{modality.name}"].iat[row]))
            crs = CRS.from_epsg(int(self._arrays["epsg"][row]))
            groups = read_tile(self.root, scene, verdict, crs, transform, size, self.harmonize, self.mask_clouds)
        except (RasterioError, ValueError, ArithmeticError, OSError) as error:
            if isinstance(error, DamagedTileError):
                raise
            raise DamagedTileError(name, str(error)) from error
        groups = self._fill_absent(row, modality, groups)
        return at_own_resolution(groups) if f"steps_{modality.name}" in self._arrays else groups


@lru_cache(256)
def _scene(modality: str, pattern: str, files: str, sources: tuple[str, ...]) -> Scene:
    return files_from_columns(modality, pattern, files, sources)


@lru_cache(256)
def _verdict(text: str) -> Verdict:
    return Verdict.from_json(text)


def _plain(setting: Any) -> Any:
    """Returns a setting as JSON has it, with which the index keeps it."""
    return json.loads(json.dumps(setting, default=list))


def tile_scenes(
    judged: Sequence[tuple[Scene, Verdict]],
    tile_size: int,
    max_days: float | None = None,
    join: str | None = None,
    small_images: str | None = None,
    bbox: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Makes the tile table of judged scenes, joined and cut as :class:`SentinelFolder` says.

    Args:
        judged: The scenes.
        tile_size: As for the class, like the next three.
        max_days: Likewise.
        join: Likewise.
        small_images: Likewise.
        bbox: Only tiles that meet this box of degrees; all where None.
    """
    judged, said = place_chips(judged)
    for sentence in said:
        warnings.warn(sentence, stacklevel=6)
    table = join_products(products_table(judged), tile_size, max_days, join or JOINS[0], small_images or SMALL[0])
    left, top, right, bottom = edges(table, None)
    lon, lat = from_zones((left + right) / 2, (top + bottom) / 2, table["epsg"].to_numpy())
    table.insert(0, "cell", pd.Categorical(grid.names(*grid.cells_at(lat, lon))))
    table.insert(1, "quadrant", np.zeros(len(table), dtype=np.int8))
    if bbox is not None:
        inside = [boxes_meet(box, list(bbox)) for box in table[list(BOX)].itertuples(index=False)]
        table = table[inside].reset_index(drop=True)
    return table.assign(placed=table["epsg"] != EPSG) if said else table

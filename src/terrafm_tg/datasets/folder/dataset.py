"""A folder of GeoTIFFs per modality, as tiles."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.windows import Window
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.tiles.dataset import TileDataset, check_tile_size
from terrafm_tg.datasets.tiles.index_file import open_index
from terrafm_tg.datasets.tiles.outlines import GRID
from terrafm_tg.datasets.tiles.pixels import RADAR_UNITS, native_pixels
from terrafm_tg.datasets.tiles.table import resolve_offsets
from terrafm_tg.datasets.tiles.warp import needed_window, warp
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.arguments import NOT_NEGATIVE, POSITIVE, checked
from terrafm_tg.utils.files import fingerprint
from terrafm_tg.utils.trust import open_image

from .offsets import Offsets, find_offsets
from .products import FOLDERS, band_file, band_order, find_folders, find_products, image_files, join_products

_MOST_PIXELS = 1 << 15  # along a side of a tile: a damaged header must not ask for endless work


@checked(optical_scale=POSITIVE, max_days=NOT_NEGATIVE)
class SentinelFolder(TileDataset):
    """Co-registered GeoTIFFs: a folder per modality, at any depth multi-band files or a file per band.

    Reads layouts such as TerraMesh's (``S1RTC/<tile>.tif``, ``S2L1C/``, ``S2L2A/``), SSL4EO-S12's
    (``s1/<site>/<product>/VV.tif``, ``s2c/``, ``s2a/``) and BigEarthNet's (``S1/<patch>/<patch>_VV.tif``,
    ``S2/``). Files are joined by place and date, not by name: see :func:`~.products.join_products`. A sensor
    whose grid differs from the tile's (same CRS) is interpolated to it, radar as linear power.

    Tiles keep the CRS of their files, UTM or not (``epsg``). Bands of 20 and 60 m come at the size in which
    they are stored, also in ``native=True`` samples: often 10 m.

    A GeoTIFF carries no checksum: a damaged file that does not decode is named and costs its tiles, one that
    decodes to other numbers is not noticed. ``terrafm pack`` records a checksum per tile.

    Args:
        root: The folder.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that are found where None.
        native: Return the stored pixels instead of float32 at 10 m.
        tile_size: Larger images are cut into tiles of this many pixels; smaller ones are used whole.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        folders: Folder below the root by modality; where None, usual names are looked for (``S1RTC``,
            ``s2a``, ...).
        bands: Band order by modality, for files that do not name their bands and are not in the usual order.
        radar_unit: ``"dB"`` or ``"linear"`` power, as the files hold it.
        optical_scale: Digital numbers per stored unit: 1, or 10,000 where the files hold reflectance from 0
            to 1.
        offsets: The +1000 DN of baseline 04.00 in optical files: 0, 1000 or ``"detect"`` (by name, else by pixels),
            for all or by modality: see :func:`~.offsets.find_offsets`. None: as ``index.parquet`` has it, else
            ``"detect"``.
        ambiguous_offset: Decides where it could not be found out: ``"error"``, ``"present"``,
            ``"absent"``, ``"drop"``.
        harmonize: Take the offset off; False keeps the numbers as they are stored.
        max_days: Do not join images that are further apart in time.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If the root is missing or holds no usable image, its index is out of date, an offset is
            unknown, the unit is another, or a setting is wrong.
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
        bands: Mapping[str, Sequence[str]] | None = None,
        radar_unit: str = "dB",
        optical_scale: float = 1.0,
        offsets: Offsets | None = None,
        ambiguous_offset: str = "error",
        harmonize: bool = True,
        max_days: float | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        check_tile_size(tile_size)
        if radar_unit not in RADAR_UNITS:
            raise TerraFMError(f"`radar_unit` must be {' or '.join(map(repr, RADAR_UNITS))}, got {radar_unit!r}.")
        self.root = self.paths = Path(root)
        self.bands, self.harmonize = bands, harmonize
        self.radar_unit, self.optical_scale = radar_unit, optical_scale
        made_here = {"folders": folders, "bands": bands, "offsets": "detect" if offsets is None else offsets}
        table, opened = open_index(
            index, self.root, self.scan, self.state, made_here, needs=("path_", "offset_", *GRID),
            tile_size=tile_size, max_days=max_days,
        )  # fmt: skip
        if opened and offsets is not None:
            table = find_offsets(table, self.root, offsets, bands)
        if harmonize:
            table = resolve_offsets(table, modalities, ambiguous_offset)
        super().__init__(table, modalities, native, tile_size, transforms)
        self._check_units()

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar = {"max_days": None}

    @staticmethod
    def scan(
        root: Path,
        tile_size: int,
        max_days: float | None = None,
        folders: Mapping[str, str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        offsets: Offsets = "detect",
    ) -> pd.DataFrame:
        """Makes the tile table from the files' headers; arguments as for the class."""
        products = find_products(root, find_folders(root, folders), bands)
        return find_offsets(join_products(products, tile_size, max_days), root, offsets, bands)

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Returns the tile size to index with when none is given: the paper's."""
        return 534

    @staticmethod
    def state(root: Path) -> str:
        """Returns a name for the files below the root: an index made for another set is out of date."""
        return fingerprint(image_files(root), root)

    def name(self, row: int) -> str:
        """Returns the tile's name in logs: the path of its first image."""
        paths = (self.table[f"path_{m}"].iat[row] for m in FOLDERS if f"path_{m}" in self.table)
        return next(path for path in paths if isinstance(path, str)).replace("{}", "*")

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        pattern = self._arrays[f"path_{modality.name}"][row]
        if "{}" not in pattern:
            image = self._pixels(row, modality, self.root / pattern, modality.bands)
            return {r: image[modality.band_indices(bands)] for r, bands in modality.native.items()}
        return {
            resolution: np.concatenate(
                [self._pixels(row, modality, band_file(self.root, pattern, band), [band]) for band in bands]
            )
            for resolution, bands in modality.native.items()
        }

    def _pixels(self, row: int, modality: Modality, path: Path | None, bands: Sequence[str]) -> np.ndarray:
        """Reads some bands of one file over a tile: native pixels (C, h, w).

        Raises:
            DamagedTileError: If they cannot be read.
        """
        name = f"{self.name(row)} {modality.name}"
        if path is None:
            raise DamagedTileError(name, f"band {bands[0]} has no file")
        offset = int(self.table[f"offset_{modality.name}"].iat[row]) if self.harmonize else 0
        transform, crs = self._transform(row), CRS.from_epsg(int(self._arrays["epsg"][row]))
        size = int(self.table["height"].iat[row]), int(self.table["width"].iat[row])
        extent = array_bounds(*size, transform)
        try:
            with open_image(path) as src:
                order = bands if src.count == 1 else band_order(src, (self.bands or {}).get(modality.name))
                if missing := [band for band in bands if band not in order]:
                    raise ValueError(f"band {', '.join(missing)} is missing")
                pixels_across = (size[1] * transform.a / src.transform.a, size[0] * transform.e / src.transform.e)
                if not all(0.5 < count < _MOST_PIXELS for count in pixels_across):
                    raise ValueError(f"its pixels are not of a size for its tile ({src.transform.a:g} wide)")
                if (window := needed_window(src, src.crs, extent)) is None:
                    raise ValueError("it lies elsewhere than its tile")
                stored = src.read([order.index(band) + 1 for band in bands], window=window)
                factor = max(round(src.transform.a / transform.a), 1)
                origin = src.window_transform(window)
                pixels = native_pixels(stored, modality, src.nodata, offset, self.radar_unit, self.optical_scale)
        except (RasterioError, ValueError, ArithmeticError) as error:
            raise DamagedTileError(name, f"{path.name}: {error}") from error
        height, width = (-(-side // factor) for side in size)
        grid = from_bounds(*extent, width, height)
        return warp(pixels, origin, crs, grid, crs, (height, width), modality.nodata, average=False)

    def _check_units(self) -> None:
        """Refuses a unit that the first image of a modality cannot have."""
        for modality in self.modalities:
            row = int(self.table[f"has_{modality.name}"].argmax())
            pattern, band = self._arrays[f"path_{modality.name}"][row], modality.native[10][0]
            path = band_file(self.root, pattern, band) if "{}" in pattern else self.root / pattern
            with contextlib.suppress(RasterioError), open_image(path or "") as src:
                middle = (slice(max(side // 2 - 1024, 0), min(side // 2 + 1024, side)) for side in src.shape)
                pixels = src.read(1, window=Window.from_slices(*middle))
                pixels = pixels[np.isfinite(pixels) & (pixels != modality.nodata) & (pixels != src.nodata)]
                if not pixels.size:
                    continue
                if modality.unit == "DN" and self.optical_scale == 1 and pixels.max() < 10:
                    raise TerraFMError(
                        f"{pattern} holds numbers up to {pixels.max():g}, which are no digital numbers: set "
                        "`optical_scale` to 10000 if they are reflectance."
                    )
                stored = "dB" if pixels.min() < 0 else "linear"
                if modality.unit == "dB" and stored != self.radar_unit:
                    raise TerraFMError(
                        f"{pattern} holds {'' if stored == 'dB' else 'no '}negative numbers, as {stored} data: set "
                        f"`radar_unit` to {stored!r}, got {self.radar_unit!r}."
                    )

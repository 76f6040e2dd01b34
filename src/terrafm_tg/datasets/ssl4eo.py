"""SSL4EO-S12 as tiles: sites that Sentinel-1 and both levels of Sentinel-2 saw in four seasons."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.errors import RasterioError
from torchgeo.datasets import SSL4EOS12
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.files import fingerprint

from .folder.files import band_file
from .index.file import open_index
from .ssl4eo_rows import SPLITS, find_splits, tile_rows
from .tiles.dataset import TileDataset
from .tiles.tiff import native_pixels


class SSL4EOS12Tiles(TileDataset):
    """`SSL4EO-S12 <https://github.com/zhu-xlab/SSL4EO-S12>`_ (CC-BY-4.0), found through TorchGeo's class.

    251,079 sites of 264 x 264 pixels of 10 m: Sentinel-1 GRD in dB (``s1``), Sentinel-2 L1C (``s2c``) and L2A
    (``s2a``), at up to four dates each. :class:`torchgeo.datasets.SSL4EOS12` finds, downloads, checks and unpacks
    them; a part of the sites is enough. Its own samples draw dates with the process' random state and stretch each
    band to 264 pixels. Here bands stay as they are stored (10, 20, 60 m), and every date is a tile of its own: each
    L2A image with the images of the other sensors that are nearest in time, then images that are left over. An
    epoch shows all seasons of a site, in the sampler's order.

    The sensors' arrays are laid upon each other as they are, as TorchGeo and the published code do. Their
    geotransforms do not say how they lie: they are of the sampling box, not of the pixels, and differ by sensor and
    resolution. By correlation on one site, arrays laid upon each other are off by nothing (20 m bands against 10 m
    bands), 15 m (radar against optics) and 40 m (60 m bands); placed by their geotransforms, by 5, 65 and 65 m.
    Positions are good to some 50 m.

    The images are from before processing baseline 04.00: digital numbers have no offset.

    Args:
        root: Folder with ``s1``, ``s2c``, ``s2a``, any of them.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that are found where None.
        native: Hand out the stored pixels instead of float32 at 10 m.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        download: Let TorchGeo download what is missing (1.5 TB for all three sensors).
        checksum: Let it check what it downloads.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If a modality is not there, or the index is out of date.
    """

    filename_glob = "*.tif"

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        download: bool = False,
        checksum: bool = True,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.root: Path = Path(root)
        self.paths = self.root
        find_splits(self.root, modalities, download, checksum)
        size = SSL4EOS12.size
        table, _ = open_index(index, self.root, self.scan, self.state, {}, tile_size=size)
        super().__init__(table, modalities, native, size, transforms)

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def lies_in(root: Path) -> bool:
        """Whether a folder holds sites of any split."""
        return any(SSL4EOS12Tiles._sites(root))

    @staticmethod
    def scan(root: Path, tile_size: int = SSL4EOS12.size) -> pd.DataFrame:
        """The tile table, from the names of folders and one file's header per site."""
        return tile_rows(root, find_splits(root))

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """264."""
        return SSL4EOS12.size

    @staticmethod
    def state(root: Path) -> str:
        """A name for the sites that lie there; not for each of their files, which are some 27 million."""
        return fingerprint(SSL4EOS12Tiles._sites(root), root)

    @staticmethod
    def _sites(root: Path) -> list[Path]:
        return [site for split in SPLITS.values() for site in sorted((root / split).glob("[0-9]" * 7))]

    def name(self, row: int) -> str:
        """What a log calls the tile: the folder of its first image."""
        paths = (self.table[f"path_{m}"].iat[row] for m in SPLITS if f"path_{m}" in self.table)
        return os.path.dirname(next(path for path in paths if isinstance(path, str)))

    def _transform(self, row: int) -> Affine:
        x, y, xres, yres = (self._grids[name][row] for name in ("x", "y", "xres", "yres"))
        return Affine(xres, 0.0, x, 0.0, -yres, y)

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        pattern = self.table[f"path_{modality.name}"].iat[row]
        return {
            resolution: np.stack([self._band(row, modality, pattern, band, resolution) for band in bands])
            for resolution, bands in modality.native.items()
        }

    def _band(self, row: int, modality: Modality, pattern: str, band: str, resolution: int) -> np.ndarray:
        """One band (h, w) at its native size.

        Raises:
            DamagedTileError: If it cannot be read, or has another size.
        """
        name, side = f"{self.name(row)} {modality.name}", self.tile_size * 10 // resolution
        path = band_file(self.root, pattern, band)
        if path is None:
            raise DamagedTileError(name, f"band {band} has no file")
        try:
            with rasterio.open(path) as src:
                if src.shape != (side, side):
                    raise ValueError(f"it is {src.width} x {src.height} pixels, expected {side} x {side}")
                return native_pixels(src.read(1), modality, src.nodata, unit="dB")
        except (RasterioError, ValueError) as error:
            raise DamagedTileError(name, f"{path.name}: {error}") from error

    @cached_property
    def _grids(self) -> dict[str, np.ndarray]:
        return {name: self.table[name].to_numpy() for name in ("x", "y", "xres", "yres")}

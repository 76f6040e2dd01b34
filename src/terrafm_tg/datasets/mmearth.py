"""MMEarth as tiles: Sentinel-1 and one level of Sentinel-2 of a million places, in one HDF5 file."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from affine import Affine
from torchgeo.datasets import MMEarth
from torchgeo.datasets.utils import Sample, lazy_import

from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality, get_modalities
from terrafm_tg.utils.files import fingerprint

from .index.file import open_index
from .mmearth_rows import data_file, find_subset, land_cover, picture_size, tile_rows
from .tiles.dataset import TileDataset
from .tiles.tiff import native_pixels


class MMEarthTiles(TileDataset):
    """`MMEarth <https://github.com/vishalned/MMEarth-data>`_ (CC-BY-4.0), found through TorchGeo's class.

    Places of 128 x 128 pixels (64 x 64 in ``MMEarth64``) in one HDF5 file, which
    :class:`torchgeo.datasets.MMEarth` finds and describes: Sentinel-2 either L1C or L2A, of 2017 to 2020 and
    without an offset; Sentinel-1 GRD in dB, ascending and descending, of the nearest days. TorchGeo's own samples
    are normalised with MMEarth's statistics; here they are the stored numbers with this package's keys and bands
    (the file has B8A before B8). All bands are stored at 10 m, 20 and 60 m ones interpolated, and come at that
    size. A place with radar of both orbits is two tiles with the same optics, one tile where radar is not read.

    The files give the middle of a tile; corners that are computed from it are good to about a pixel.

    Args:
        root: Folder that holds ``data_1M_v001``, ``data_1M_v001_64`` or ``data_100k_v001``.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that are found where None.
        native: Hand out the stored pixels instead of float32 at 10 m.
        subset: ``"MMEarth"``, ``"MMEarth64"`` or ``"MMEarth100k"``; the one that lies there where None.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If the files or a modality are not there, several subsets are and none is named, or the
            index is out of date.
        torchgeo.datasets.errors.DependencyNotFoundError: If h5py is not installed.
    """

    filename_glob = "*.h5"

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        subset: str | None = None,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        get_modalities(modalities)
        self.root: Path = Path(root)
        self.paths = self.root
        self.subset = find_subset(self.root, subset)
        table, _ = open_index(index, self.root, self.scan, self.state, {}, subset=subset)
        if modalities is not None and "s1rtc" not in modalities:
            table = table[~table.duplicated("place")].reset_index(drop=True)
        super().__init__(table, modalities, native, transforms=transforms)

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar = {"subset": None}

    @staticmethod
    def lies_in(root: Path) -> bool:
        """Whether a folder holds any subset."""
        return any(data_file(root, subset).is_file() for subset in MMEarth.subsets)

    @staticmethod
    def scan(
        root: Path, tile_size: int | None = None, subset: str | None = None, cover: bool = False
    ) -> pd.DataFrame:
        """The tile table, from the JSON files beside the HDF5 file.

        Args:
            root: Folder that holds the subset's.
            tile_size: Of no use: places are not cut.
            subset: Which; the one that lies there where None.
            cover: Add ``land_cover`` and ``land_cover_share`` from the map that the file holds, which reads it all.
        """
        subset = find_subset(root, subset)
        table = tile_rows(root, subset)
        return table.assign(**land_cover(data_file(root, subset), table)) if cover else table

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Pixels along a place of the first subset that lies there."""
        return picture_size(
            data_file(root, next(name for name in MMEarth.subsets if data_file(root, name).is_file()))
        )

    @staticmethod
    def state(root: Path) -> str:
        """A name for the files that lie there."""
        files = (data_file(root, subset) for subset in MMEarth.subsets)
        return fingerprint((file for file in files if file.is_file()), root)

    def name(self, row: int) -> str:
        """What a log calls the tile: the number of its place, and the orbit of its radar."""
        return f"{self.table['place'].iat[row]}/{self.table['orbit'].iat[row]}"

    def _transform(self, row: int) -> Affine:
        return Affine(10.0, 0.0, self._corners[0][row], 0.0, -10.0, self._corners[1][row])

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        """All at 10 m. The file is opened for each read, as TorchGeo does: HDF5 handles must not be shared."""
        name, place = f"{self.name(row)} {modality.name}", int(self.table["group"].iat[row])
        kind = "sentinel1" if modality.unit == "dB" else "sentinel2"
        try:
            with lazy_import("h5py").File(data_file(self.root, self.subset), "r") as file:
                stored = file[kind][place]
            pixels = native_pixels(stored[self._channels(row, modality)], modality, None, unit="dB")
        except (OSError, KeyError, ValueError) as error:
            raise DamagedTileError(name, f"{kind} of row {place}: {error}") from error
        return {r: pixels[modality.band_indices(bands)] for r, bands in modality.native.items()}

    def _channels(self, row: int, modality: Modality) -> list[int]:
        """Where the modality's bands lie in the file, in stem order."""
        if modality.unit == "dB":
            order = [f"{orbit} {band}" for orbit in ("ascending", "descending") for band in _RADAR]
            return [order.index(f"{self.table['orbit'].iat[row]} {band}") for band in modality.bands]
        return [_OPTICS.index(band.replace("B0", "B")) for band in modality.bands]

    @cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        return self.table["x"].to_numpy(), self.table["y"].to_numpy()


_OPTICS = MMEarth.all_modality_bands["sentinel2"]
_RADAR = MMEarth.all_modality_bands["sentinel1_asc"]

"""MMEarth as tiles: Sentinel-1 and one level of Sentinel-2 of a million places, in one HDF5 file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torchgeo.datasets import DatasetNotFoundError, MMEarth
from torchgeo.datasets.mmearth import TileInfo
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.land_cover import count_codes, majorities
from terrafm_tg.modalities import Modality, get_modalities
from terrafm_tg.radiometry import archive_verdict, native
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import fingerprint
from terrafm_tg.utils.progress import with_bar
from terrafm_tg.utils.trust import open_hdf5

from .esa_worldcover import set_lakes
from .majortom import grid
from .tiles.dataset import TileDataset
from .tiles.index_file import open_index
from .tiles.outlines import BOX, boxes, to_zones
from .tiles.table import times


@checked()
class MMEarthTiles(TileDataset):
    """`MMEarth <https://github.com/vishalned/MMEarth-data>`_ (CC-BY-4.0), found through TorchGeo's class.

    Places of 128 x 128 pixels (64 x 64 in ``MMEarth64``) in one HDF5 file, which
    :class:`torchgeo.datasets.MMEarth` finds and describes: Sentinel-2 either L1C or L2A, of 2017 to 2020 and
    without an offset; Sentinel-1 GRD in dB, ascending and descending, of the nearest days. TorchGeo's own samples
    are normalized with MMEarth's statistics; here they are the stored numbers with this package's keys and bands
    (the file has B8A before B8). All bands are stored at 10 m, 20 and 60 m ones interpolated, and come at that
    size. A place with radar of both orbits is two tiles with the same optics, one tile where radar is not read.

    The files give the middle of a tile; corners that are computed from it are good to about a pixel.

    Args:
        root: Folder that holds ``data_1M_v001``, ``data_1M_v001_64`` or ``data_100k_v001``.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that are found where None.
        native: Return the stored pixels instead of float32 at 10 m.
        subset: ``"MMEarth"``, ``"MMEarth64"`` or ``"MMEarth100k"``; the one that lies there where None.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If the files or a modality are not there, several subsets are and none is named, or the
            index is out of date.
        torchgeo.datasets.errors.DependencyNotFoundError: If h5py is not installed.
    """

    root: Path
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
        self.root = self.paths = Path(root)
        self.subset = find_subset(self.root, subset)
        table, _ = open_index(index, self.root, self.scan, self.state, {}, needs=_COLUMNS, subset=subset)
        if modalities is not None and "s1rtc" not in modalities:
            table = table[~table.duplicated("place")].reset_index(drop=True)
        super().__init__(table, modalities, native, transforms=transforms)

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar = {"subset": None}

    @staticmethod
    def lies_in(root: Path) -> bool:
        """Tells if a folder holds any subset."""
        return any(data_file(root, subset).is_file() for subset in MMEarth.subsets)

    @staticmethod
    def scan(root: Path, tile_size: int | None = None, subset: str | None = None, cover: bool = False) -> pd.DataFrame:
        """Makes the tile table from the JSON files beside the HDF5 file.

        Args:
            root: Folder that holds the subset's.
            tile_size: Of no use: places are not cut.
            subset: Its name; the one below the root where None.
            cover: Add ``land_cover`` and ``land_cover_share`` from the map that the file holds, which reads it all.

        Returns:
            One row per place and orbit whose image has VV and VH; one per place without such an image. ``place`` is
            MMEarth's number, ``group`` the row of the file, ``quadrant`` counts the rows of a cell.

        Raises:
            TerraFMError: If files are missing, or do not belong together.
        """
        subset = find_subset(root, subset)
        try:
            source = MMEarth(root, subset, modalities=("sentinel1_asc", "sentinel1_desc", "sentinel2"))
        except DatasetNotFoundError as error:
            beside = ", ".join(
                f"{MMEarth.filenames[subset]}_{kind}.json" for kind in ("band_stats", "splits", "tile_info")
            )
            raise TerraFMError(f"{data_file(root, subset).parent} is not complete: it needs {beside}, too.") from error
        path = data_file(root, subset)
        with open_hdf5(path) as file:
            named = file["metadata"][:]
        side = picture_size(path)
        names = [row[0].decode() for row in named]
        if missing := [names[i] for i in source.indices if names[i] not in source.tile_info]:
            raise TerraFMError(
                f"{source.tile_info_filename} lacks {len(missing):,} places of {path}, first {missing[0]}."
            )
        rows = [row for i in source.indices for row in _place_rows(names[i], i, source.tile_info[names[i]])]
        table = pd.DataFrame(rows)
        x, y = to_zones(table["lon"].to_numpy(), table["lat"].to_numpy(), table["epsg"].to_numpy())
        # half a tile from its middle, on the 10 m grid that Sentinel-2 has
        table = table.assign(x=np.rint(x / 10 - side / 2) * 10, y=np.rint(y / 10 + side / 2) * 10)
        table = table.assign(xres=10.0, yres=10.0, height=np.int32(side), width=np.int32(side))
        table.insert(0, "cell", pd.Categorical(grid.names(*grid.cells_at(table.pop("lat"), table.pop("lon")))))
        table.insert(1, "quadrant", table.groupby("cell", observed=True).cumcount().astype(np.int16))
        date = pd.to_datetime(table.pop("date")).astype("datetime64[us]")
        part = path.relative_to(root).as_posix()
        for name in ("s2l2a", "s2l1c", "s1rtc"):
            has = table[f"has_{name}"]
            table[f"product_{name}"] = table["place"].where(has).astype("category")
            table[f"date_{name}"] = pd.NaT if name == "s1rtc" else date.where(has)
            table[f"part_{name}"] = pd.Categorical.from_codes(np.where(has, 0, -1), [part])
            table[f"group_{name}"] = table["group"].where(has, -1).astype(np.int32)
            table[f"offset_{name}"] = np.int16(0)
        table["date_s1rtc"] = table["date_s1rtc"].astype("datetime64[us]")
        table["orbit"] = table["orbit"].astype("category")
        table = table.assign(**boxes(table), **times(date, date + pd.Timedelta(1, "D") - pd.Timedelta(1, "us")))
        return table.assign(**stored_land_cover(path, table)) if cover else table

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Returns the pixels along a place of the first subset below the root."""
        return picture_size(data_file(root, next(name for name in MMEarth.subsets if data_file(root, name).is_file())))

    @staticmethod
    def state(root: Path) -> str:
        """Returns a name for the files below the root."""
        files = (data_file(root, subset) for subset in MMEarth.subsets)
        return fingerprint((file for file in files if file.is_file()), root)

    def name(self, row: int) -> str:
        """Returns the tile's name in logs: the number of its place, and the orbit of its radar."""
        return f"{self.table['place'].iat[row]}/{self.table['orbit'].iat[row]}"

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        """Reads all at 10 m. The file is opened for each read, as TorchGeo does: HDF5 handles must not be shared."""
        name, place = f"{self.name(row)} {modality.name}", int(self.table["group"].iat[row])
        kind = "sentinel1" if modality.unit == "dB" else "sentinel2"
        try:
            with open_hdf5(data_file(self.root, self.subset)) as file:
                stored = file[kind][place]
            pixels = native(stored[self._channels(row, modality)], archive_verdict(modality.name, modality.unit))
        except (OSError, KeyError, ValueError) as error:
            raise DamagedTileError(name, f"{kind} of row {place}: {error}") from error
        return {r: pixels[modality.band_indices(bands)] for r, bands in modality.native.items()}

    def _channels(self, row: int, modality: Modality) -> list[int]:
        """Returns the positions of the modality's bands in the file, in stem order."""
        if modality.unit == "dB":
            order = [f"{orbit} {band}" for orbit in ("ascending", "descending") for band in _RADAR]
            return [order.index(f"{self.table['orbit'].iat[row]} {band}") for band in modality.bands]
        return [_OPTICS.index(band.replace("B0", "B")) for band in modality.bands]


_COLUMNS = ("place", "orbit", "group")  # of its index, besides those of all
_OPTICS = MMEarth.all_modality_bands["sentinel2"]
_RADAR = MMEarth.all_modality_bands["sentinel1_asc"]


def data_file(root: Path, subset: str) -> Path:
    """Returns the path of a subset's HDF5 file."""
    folder = MMEarth.filenames[subset]
    return root / folder / f"{folder}.h5"


def find_subset(root: Path, subset: str | None) -> str:
    """Returns the subset asked for, else the one below the root.

    Raises:
        TerraFMError: If it is unknown, there is none, or there are several.
    """
    if subset is not None and subset not in MMEarth.subsets:
        raise TerraFMError(f"`subset` must be one of {', '.join(MMEarth.subsets)}, got {subset!r}.")
    held = [name for name in MMEarth.subsets if data_file(root, name).is_file()]
    if not held or (subset or held[0]) not in held:
        expected = data_file(root, subset or "MMEarth100k")
        raise TerraFMError(
            f"{root} holds no {subset or 'MMEarth'}: expected files such as {expected}; correct the root, or download "
            "it as https://github.com/vishalned/MMEarth-data says (TorchGeo cannot)."
        )
    if subset is None and len(held) > 1:
        raise TerraFMError(f"{root} holds {' and '.join(held)}: set `subset` to one of them.")
    return subset or held[0]


def picture_size(path: Path) -> int:
    """Returns the pixels along a place."""
    with open_hdf5(path) as file:
        return int(file["sentinel2"].shape[-1])


def _place_rows(place: str, group: int, info: TileInfo) -> list[dict[str, Any]]:
    """Makes one row per orbit of the radar."""
    epsg = np.int32(info["CRS"].rsplit(":", 1)[-1])
    row = {"place": place, "group": np.int32(group), "date": info["S2_DATE"], "lat": info["lat"], "lon": info["lon"]}
    row |= {"epsg": epsg} | {f"has_s2{level}": info["S2_type"] == level for level in ("l2a", "l1c")}
    images = {"ascending": "sentinel1_asc", "descending": "sentinel1_desc"}
    orbits = [orbit for orbit, key in images.items() if {"VV", "VH"} <= {*(info["BANDS"].get(key) or ())}]
    return [row | {"has_s1rtc": orbit != "none", "orbit": orbit} for orbit in orbits or ["none"]]


def stored_land_cover(path: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Counts the land cover of each tile from the map that the file holds (ESA WorldCover 2020).

    Returns:
        ``land_cover``, int8 (n,), the majority class, and ``land_cover_share``, n times float32 (11,).

    Raises:
        TerraFMError: If the file lacks the map, or it cannot be read.
    """
    lon, lat = (table[list(axis)].mean(axis=1).to_numpy() for axis in (BOX[::2], BOX[1::2]))
    try:
        with open_hdf5(path) as file:
            stored = file["esa_worldcover"]
            counts = np.stack([count_codes(stored[group]) for group in with_bar(table["group"], "Land cover")])
    except (OSError, KeyError) as error:
        raise TerraFMError(f"The land cover in {path} cannot be read ({error}).") from error
    share = (counts[:, :-1] / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    cover = set_lakes(majorities(counts, lat), share, lon, lat)
    return {"land_cover": cover, "land_cover_share": list(share)}

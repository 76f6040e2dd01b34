"""SSL4EO-S12 as tiles: sites that Sentinel-1 and both levels of Sentinel-2 saw in four seasons."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from rasterio.errors import RasterioError
from torchgeo.datasets import SSL4EOS12
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality, get_modalities
from terrafm_tg.radiometry import Claims, archive_verdict, judge, native
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import fingerprint
from terrafm_tg.utils.trust import open_image

from .majortom import grid
from .tiles.dataset import TileDataset
from .tiles.index_file import open_index
from .tiles.outlines import boxes
from .tiles.table import times


@checked()
class SSL4EOS12Tiles(TileDataset):
    """`SSL4EO-S12 <https://github.com/zhu-xlab/SSL4EO-S12>`_ (CC-BY-4.0).

    251,079 sites of 264 x 264 pixels of 10 m: Sentinel-1 GRD in dB (``s1``), Sentinel-2 L1C (``s2c``) and L2A
    (``s2a``), at up to four dates each. :class:`torchgeo.datasets.SSL4EOS12` downloads, checks and unpacks them; a
    part of the sites is enough. Its own samples draw dates with the process' random state and stretch each band to
    264 pixels. Here bands stay as they are stored (10, 20, 60 m), and every date is a tile of its own: each
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
        native: Return the stored pixels instead of float32 at 10 m.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If a modality is not there, or the index is out of date.
    """

    root: Path
    filename_glob = "*.tif"

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.root = self.paths = Path(root)
        find_splits(self.root, modalities)
        size = SSL4EOS12.size
        table, _ = open_index(index, self.root, self.scan, self.state, {}, needs=("path_",), tile_size=size)
        super().__init__(table, modalities, native, size, transforms)

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def lies_in(root: Path) -> bool:
        """Tells if a folder holds sites of any split."""
        return any(_sites(root))

    @staticmethod
    def scan(root: Path, tile_size: int = SSL4EOS12.size) -> pd.DataFrame:
        """Makes the tile table from the names of folders and one file's header per site.

        Returns:
            One row per L2A image and, beside, per image that no other row has: with the images of the other sensors
            of the same site that are nearest in time. ``quadrant`` counts the rows of a cell.

        Raises:
            TerraFMError: If no site has an image that can be opened.
        """
        splits = find_splits(root)
        sites = sorted({site.name for site in _sites(root)})
        with ThreadPoolExecutor(8) as pool:  # opening waits for the disk
            parts = list(pool.map(partial(_site_rows, root, splits), sites))
        rows = [row for part in parts for row in part]
        if not rows:
            raise TerraFMError(f"No site of SSL4EO-S12 below {root} has an image that can be opened.")
        for name in splits:
            _check(root, name, next((row[f"path_{name}"] for row in rows if row[f"path_{name}"]), None))
        table = pd.DataFrame(rows)
        table = table.assign(epsg=np.int32(4326), height=np.int32(SSL4EOS12.size), width=np.int32(SSL4EOS12.size))
        table = table.assign(**boxes(table))
        middle = (table.ymin + table.ymax) / 2, (table.xmin + table.xmax) / 2
        table.insert(0, "cell", pd.Categorical(grid.names(*grid.cells_at(*middle))))
        table.insert(1, "quadrant", table.groupby("cell", observed=True).cumcount().astype(np.int16))
        for name in splits:
            table[f"has_{name}"] = table[f"path_{name}"].notna()
            table[f"offset_{name}"] = np.int16(0)
            table[f"date_{name}"] = table[f"date_{name}"].astype("datetime64[us]")
            for column in (f"path_{name}", f"product_{name}"):
                table[column] = table[column].astype("category")
        dates = table.filter(like="date_")
        return table.assign(**times(dates.min(axis=1), dates.max(axis=1)))

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Returns 264."""
        return SSL4EOS12.size

    @staticmethod
    def state(root: Path) -> str:
        """Returns a name for the sites below the root; not for each of their files, which are some 27 million."""
        return fingerprint(_sites(root), root)

    def name(self, row: int) -> str:
        """Returns the tile's name in logs: the folder of its first image."""
        paths = (self.table[f"path_{m}"].iat[row] for m in SPLITS if f"path_{m}" in self.table)
        return os.path.dirname(next(path for path in paths if isinstance(path, str)))

    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray]:
        pattern = self.table[f"path_{modality.name}"].iat[row]
        return {
            resolution: np.stack([self._band(row, modality, pattern, band, resolution) for band in bands])
            for resolution, bands in modality.native.items()
        }

    def _band(self, row: int, modality: Modality, pattern: str, band: str, resolution: int) -> np.ndarray:
        """Reads one band (h, w) at its native size.

        Raises:
            DamagedTileError: If it cannot be read, or has another size.
        """
        name, side = f"{self.name(row)} {modality.name}", self.tile_size * 10 // resolution
        path = _band_file(self.root, pattern, band)
        if path is None:
            raise DamagedTileError(name, f"band {band} has no file")
        try:
            with open_image(path) as src:
                if src.shape != (side, side):
                    raise ValueError(f"it is {src.width} x {src.height} pixels, expected {side} x {side}")
                return native(src.read(1), archive_verdict(modality.name, modality.unit, nodata=src.nodata))
        except (RasterioError, ValueError) as error:
            raise DamagedTileError(name, f"{path.name}: {error}") from error


#: TorchGeo's split of each modality, in the order in which images look for partners.
SPLITS = {"s2l2a": "s2a", "s2l1c": "s2c", "s1rtc": "s1"}


def _sites(root: Path) -> list[Path]:
    return [site for split in SPLITS.values() for site in sorted((root / split).glob("[0-9]" * 7))]


def find_splits(root: Path, modalities: Sequence[str] | None = None) -> dict[str, str]:
    """Finds the sensors of which there are images.

    Args:
        root: Folder with ``s1``, ``s2c``, ``s2a``.
        modalities: Those that must be there; any that are where None.

    Returns:
        The names of their folders, by modality.

    Raises:
        TerraFMError: If one is missing.
    """
    asked = {modality.name: SPLITS[modality.name] for modality in get_modalities(modalities)}
    held = {name for name, split in asked.items() if any((root / split).glob(f"{'[0-9]' * 7}/*/*.tif"))}
    missing = [name for name in SPLITS if name in asked and name not in held]
    if missing and (modalities is not None or not held):
        split = asked[missing[0]]
        raise TerraFMError(
            f"{root} holds no site of SSL4EO-S12 for {', '.join(missing)}: expected files such as "
            f"{root / split / '0000200' / '<image>' / ('VV.tif' if split == 's1' else 'B2.tif')}; correct the root, or "
            f"get them (0.5 TB per sensor) by torchgeo.datasets.SSL4EOS12(root, {split!r}, download=True)."
        )
    return {name: split for name, split in SPLITS.items() if name in held}


def _check(root: Path, name: str, pattern: str | None) -> None:
    """Refuses images that are not in the published unit, such as pictures of 8 bits, by a band of the first.

    Raises:
        TerraFMError: Saying what they hold.
    """
    pixels, band = {}, MODALITIES[name].bands[-1]
    with contextlib.suppress(RasterioError), open_image(_band_file(root, pattern or "", band) or "") as src:
        pixels[band] = src.read(1)
    source = dict.fromkeys(("unit", "offset_applied", "bands"), "SSL4EO-S12's description")
    claims = Claims(name, pattern or "", unit=MODALITIES[name].unit, offset_applied=True, source=source)
    try:
        judge(claims, pixels)
    except TerraFMError as error:
        raise TerraFMError(f"{root} is not as published, read it as a folder of GeoTIFFs: {error}") from error


def _site_rows(root: Path, splits: Mapping[str, str], site: str) -> list[dict[str, Any]]:
    """Makes the rows of one site; none where it has no image that can be opened."""
    images = {name: sorted(_images(root / split / site, split)) for name, split in splits.items()}
    place = _place([root / splits[name] / site / image for name, own in images.items() for _, image in own])
    used: set[tuple[str, str | None]] = set()
    rows = []
    for name, own in images.items() if place else ():
        for date, image in own:
            if (name, image) in used:
                continue
            row: dict[str, Any] = {"site": site, **place}
            for other, candidates in images.items():
                among = [(date, image)] if other == name else candidates
                day, nearest = min(among, key=lambda c: (abs(c[0] - date), c[0]), default=(pd.NaT, None))
                path = None if nearest is None else f"{splits[other]}/{site}/{nearest}/{{}}.tif"
                row |= {f"date_{other}": day, f"product_{other}": nearest, f"path_{other}": path}
                used.add((other, nearest))
            rows.append(row)
    return rows


def _images(site: Path, split: str) -> Iterator[tuple[pd.Timestamp, str]]:
    """Yields date and folder of a site's images of one sensor."""
    for image in os.listdir(site) if site.is_dir() else ():
        if match := re.match(SSL4EOS12.metadata[split]["filename_regex"], image):
            yield pd.to_datetime(match["date"]), image


def _place(images: Sequence[Path]) -> dict[str, float]:
    """Returns the grid of the first 10 m band of a site that opens; empty where none does."""
    for path in (image / f"{band}.tif" for image in images for band in ("VV", "B2")):
        with contextlib.suppress(RasterioError), open_image(path) as src:
            t = src.transform
            return {"x": t.c, "y": t.f, "xres": t.a, "yres": -t.e}
    return {}


def _band_file(root: Path, pattern: str, band: str) -> Path | None:
    """Finds the file of a band, in whatever way its name spells it; None where there is none."""
    short = band.replace("B0", "B")
    names = dict.fromkeys([band, short, band.lower(), short.lower()])
    return next((path for name in names if (path := root / pattern.replace("{}", name)).is_file()), None)

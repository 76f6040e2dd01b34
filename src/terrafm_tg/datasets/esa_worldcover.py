"""ESA WorldCover: the global 10 m land-cover map and the histogram of a tile."""

import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely
import torch
from matplotlib.colors import ListedColormap
from rasterio.errors import RasterioError
from rasterio.mask import raster_geometry_mask
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry
from torchgeo.datasets import RasterDataset
from torchgeo.datasets.errors import DatasetNotFoundError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASSES, OCEAN, UNKNOWN, WATER, count_codes
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.trust import check_tiffs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Tiles of the complete map (60° S to 84° N); a folder with all of them says that a missing tile is open sea.
COMPLETE = 2651
#: Outlines of the continents and islands, from Natural Earth's countries at 1:50 and 1:10 million (public domain).
CONTINENTS = Path(__file__).parent / "index" / "world" / "continents.geojson"

_INDEX_OF_CODE = np.full(256, OCEAN, dtype=np.int64)
_INDEX_OF_CODE[[c.code for c in CLASSES]] = np.arange(len(CLASSES))


def map_file(south: int, west: int) -> str:
    """Names the file of 2021's map, 3 x 3 degrees, by its south-west corner."""
    corner = f"{'N' if south >= 0 else 'S'}{abs(south):02}{'E' if west >= 0 else 'W'}{abs(west):03}"
    return f"ESA_WorldCover_10m_2021_v200_{corner}_Map.tif"


@cache
def _land() -> BaseGeometry:
    """The continents and islands, lakes filled: the outlines lack only the Caspian Sea, between two continents."""
    whole = shapely.get_parts(gpd.read_file(CONTINENTS).union_all())
    land = shapely.union_all(shapely.polygons(shapely.get_exterior_ring(whole)))
    shapely.prepare(land)
    return land


def set_lakes(cover: np.ndarray, share: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Counts tiles that are ocean for the water in them as permanent water, where they lie inside a continent.

    Args:
        cover: Classes as :func:`~terrafm_tg.land_cover.majorities` decides them, integers (n,).
        share: Shares of the classes 0 to 10, (n, 11); what a sum lacks up to 1 has no data, and decides for ocean
            where it is more than the water.
        lon: Longitudes of the tiles' middles in degrees, (n,).
        lat: Their latitudes.

    Returns:
        The classes, of which those of lakes are changed.
    """
    lakes = np.flatnonzero((cover == OCEAN) & (share[:, WATER] >= 1 - share.sum(axis=1)))
    if len(lakes):
        lakes = lakes[shapely.contains_xy(_land(), (lon[lakes] + 180) % 360 - 180, lat[lakes])]
    cover = cover.copy()
    cover[lakes] = WATER
    return cover


@checked(year=(2020, 2021))
class ESAWorldCover(RasterDataset):
    """The `ESA WorldCover <https://esa-worldcover.org>`_ map of 2020 or 2021 at 10 m (CC-BY-4.0).

    GeoTIFF tiles of 3° x 3° in EPSG:4326, named ``ESA_WorldCover_10m_2021_v200_N39W075_Map.tif``, in any
    folder below ``paths``. A sample's ``mask`` holds class indices 0 to 10 in the order of :data:`CLASSES`,
    and -1 where the map has no data. The map is valid for all time: it joins with images of any date.

    Args:
        paths: Folder or folders with the tiles, or the files themselves.
        year: 2021 (algorithm v200) or 2020 (v100).
        missing: The class that a place without a tile counts as in :meth:`histogram`: ``"ocean"`` (as no data, right
            for a complete set, which has no tiles over open sea) or ``"unknown"`` (it does not count). None
            decides by whether the folder holds all 2,651 tiles.
        transforms: A function that takes a sample and returns a changed one.
        cache: Keep file handles open between reads.
        **kwargs: Further arguments of :class:`torchgeo.datasets.RasterDataset` (``crs``, ``res``).

    Raises:
        TerraFMError: If there is no tile of that year, or a setting is unknown.
    """

    filename_regex = r"^ESA_WorldCover_10m_(?P<year>\d{4})_(?P<version>v\d{3})_(?P<tile>[NS]\d{2}[EW]\d{3})_Map\."
    is_image = False
    all_bands = ("Map",)
    cmap = ListedColormap([np.array(c.color) / 255 for c in CLASSES], name="ESA WorldCover")

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "data/WorldCover",
        year: int = 2021,
        missing: str | None = None,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        if year not in (2020, 2021):
            raise TerraFMError(f"ESA WorldCover has no map of {year}: use year=2021 or year=2020.")
        if missing not in (None, "ocean", "unknown"):
            raise TerraFMError(f"`missing` must be 'ocean' or 'unknown' (or None to decide), got {missing!r}.")
        self.year = year
        self.filename_glob = f"ESA_WorldCover_10m_{year}_*_Map.*"
        folders = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        check_tiffs(
            path
            for folder in folders
            for path in ([Path(folder)] if Path(folder).is_file() else Path(folder).rglob(self.filename_glob))
        )
        try:
            super().__init__(paths=folders, transforms=transforms, cache=cache, **kwargs)
        except DatasetNotFoundError:
            raise TerraFMError(
                f"No ESA WorldCover tile in {', '.join(map(str, folders))}: expected files such as "
                f"ESA_WorldCover_10m_{year}_{'v200' if year == 2021 else 'v100'}_N39W075_Map.tif."
            ) from None
        self.missing = missing or ("ocean" if len(self.index) >= COMPLETE else "unknown")

    def _merge_or_stack(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Converts the map's codes, which TorchGeo reads, to class indices; -1 where there is no data."""
        classes = torch.from_numpy(_INDEX_OF_CODE)[super()._merge_or_stack(*args, **kwargs).long()]
        return torch.where(classes == OCEAN, UNKNOWN, classes)

    def histogram(self, geometry: BaseGeometry) -> np.ndarray:
        """Counts the pixels of each class in a place, read in the map's own grid without a warp.

        Args:
            geometry: A polygon in EPSG:4326; pixels count by their centers. It may span several tiles.

        Returns:
            int64 (12,): the counts of the classes 0 to 10, and of pixels without data (no tile included where
            ``missing="ocean"``). All zero where the map does not cover the place.
        """
        counts = np.zeros(len(CLASSES) + 1, dtype=np.int64)
        covered = 0.0
        # a place that crosses the date line goes on beyond 180 degrees, where the map starts anew at -180
        for place in [geometry, translate(geometry, -360)] if geometry.bounds[2] > 180 else [geometry]:
            for i in self.index.sindex.query(place, predicate="intersects"):
                part = place.intersection(self.index.geometry.iloc[i])
                if part.area:  # else they only touch
                    covered += part.area
                    counts += self._count(self.index.filepath.iloc[i], part)
        if self.missing == "ocean":
            counts[OCEAN] += round((geometry.area - covered) / (self.res[0] * self.res[1]))
        return counts

    def _count(self, path: str, geometry: BaseGeometry) -> np.ndarray:
        """Counts the pixels of each class that a file of the map holds in a place."""
        try:
            src = self._cached_load_warp_file(path, self.crs)  # stays open: tiles share decoded blocks
            outside, _, window = raster_geometry_mask(src, [geometry], crop=True)
            return count_codes(src.read(1, window=window)[~outside])
        except RasterioError as error:
            raise TerraFMError(f"{path} of ESA WorldCover cannot be read ({error}): get it again.") from error

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> "Figure":
        """Draws the map of a sample in the published colors, with the legend.

        Args:
            sample: A sample of this dataset; ``prediction`` is drawn beside the mask where it has one.
            show_titles: Write a title above each map.
            suptitle: A title above all.

        Returns:
            The figure.
        """
        import matplotlib.pyplot as plt
        from matplotlib.patches import Patch

        keys = [key for key in ("mask", "prediction") if key in sample]
        fig, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 4), squeeze=False)
        for ax, key in zip(axes[0], keys, strict=True):
            classes = np.ma.masked_less(np.asarray(sample[key]).squeeze(), 0)
            ax.imshow(classes, cmap=self.cmap, vmin=0, vmax=len(CLASSES) - 1, interpolation="none")
            ax.axis("off")
            if show_titles:
                ax.set_title(key.capitalize())
        handles = [Patch(color=self.cmap(i), label=c.name) for i, c in enumerate(CLASSES)]
        fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
        if suptitle is not None:
            fig.suptitle(suptitle)
        return fig

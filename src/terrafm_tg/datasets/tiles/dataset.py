"""Tiles that several sensors saw: one row of the index per tile, one image per modality.

TorchGeo's own way to join sensors (``s2 & s1``) asks for one CRS and for dates that overlap. Here the index
holds the footprints in EPSG:4326, and pixels stay in the UTM zone in which they are stored.
"""

import abc
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from affine import Affine
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import windows
from rasterio.transform import array_bounds
from rasterio.windows import Window
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import GeoSlice, Sample

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality, get_modalities
from terrafm_tg.utils.shared import SharedTable, derived

from .bands import HeldBands, fill_absent
from .collate import collate_tiles
from .pixels import check_fit, crop, is_complete, only_nodata, to_ten_meters
from .table import ALIGNMENT, MAX_TILE, Footprints, TileSlice, as_index, as_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ALIGNMENT", "TileDataset", "TileSlice", "collate_tiles"]


class TileDataset(GeoDataset, abc.ABC):
    """Base of the datasets that hand out all modalities of one tile.

    ``dataset[slice]`` gives (shapes for a tile of H x W pixels of 10 m)

    * ``native=False``: ``image_<modality>`` float32 (C, H, W) in the modality's stem order and unit (radar in
      dB, optics in digital numbers), 20 and 60 m bands interpolated to 10 m, missing pixels NaN;
    * ``native=True``: ``image_<modality>_10m``, ``_20m``, ``_60m`` with the bands of ``modality.native``:
      uint16 with 0 for a missing pixel; for radar float32 **linear power** (-32768 where missing; nothing
      that is not above 0 is valid) or int16 **hundredths of a decibel** (-32768 where missing), see
      :mod:`terrafm_tg.radiometry`. A group covers the tile's extent, in pixels as they are stored: usually H/2
      and H/6 of them, H where a file holds all bands at 10 m. Its scale is its size relative to that of the
      10 m group. ``complete``, bool (3,), says for each of ``MODALITIES`` whether all of its pixels are there.
      ``bands_<modality>``, bool (C,) in stem order, says which bands the tile has, where the index has a column of that
      name: the pixels of others are missing, and views have them at their training mean;
    * ``land_cover``, ``row``, ``position``, ``epoch``, ``epsg`` as int64 scalars, ``bounds`` and
      ``transform`` as TorchGeo has them (9 numbers each, here float64) in the tile's own CRS.

    A modality that the tile lacks has no key. A :class:`TileSlice` is resolved to its row at once; any other
    GeoSlice to the tile that lies over its center at a time in it (of several, the one whose center is
    nearest). Where the slice covers only a part of that tile, that part is returned, widened to whole 60 m
    pixels.

    Args:
        index: One row per tile: EPSG:4326 footprints on an IntervalIndex (closed="both", name="datetime"),
            columns ``cell``, ``quadrant``, ``epsg`` and ``has_<modality>``, and ``land_cover`` where known, and
            ``bands_<modality>`` where tiles have a subset of the bands (:mod:`~terrafm_tg.datasets.tiles.bands`); or
            the same as a table (:mod:`~terrafm_tg.datasets.tiles.table`).
        modalities: Names of the modalities to read; those that the index has where None. Tiles with none of
            them are left out.
        native: Return the stored pixels instead of float32 at 10 m.
        tile_size: Edge of a tile in pixels of 10 m, a multiple of 6.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If a modality is unknown or held by no tile, or if ``tile_size`` is no multiple of 6 up to 4092.
    """

    #: Folder of the files (or its URL), which paths in the table are relative to.
    root: str | os.PathLike[str]
    _index: GeoDataFrame | None
    _res = (10 / 111_320, 10 / 111_320)  # 10 m at the equator, in degrees

    def __init__(
        self,
        index: pd.DataFrame,
        modalities: Sequence[str] | None = None,
        native: bool = False,
        tile_size: int = 534,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        check_tile_size(tile_size)
        held = [name for name in MODALITIES if f"has_{name}" in index and index[f"has_{name}"].any()]
        self.modalities = get_modalities(modalities if modalities is not None or not held else held)
        for modality in self.modalities:
            if modality.name not in held:
                raise TerraFMError(
                    f"No tile of this {type(self).__name__} holds {modality.name}, it has "
                    f"{', '.join(held) or 'no modality'}: correct `modalities` or the root."
                )
        columns = [f"has_{m.name}" for m in self.modalities]
        has = index[columns].to_numpy(dtype=bool).any(axis=1)
        rows = index if has.all() else derived(index, f"has {columns}", lambda table: table[has])
        self.index = rows
        _ = self._held  # bands that are none stop here
        self.native = native
        self.tile_size = tile_size
        self.transforms = transforms

    @abc.abstractmethod
    def _read(self, row: int, modality: Modality) -> dict[int, np.ndarray] | None:
        """Reads the native pixels of one tile and modality.

        Returns:
            (C, h, w) per resolution of ``modality.native``, as in a ``native=True`` sample, with nodata in bands that
            the tile lacks (`_fill_absent`); None where the modality is absent.

        Raises:
            DamagedTileError: If it cannot be read.
        """

    def _read_into(self, row: int, modality: Modality, out: dict[int, np.ndarray]) -> bool:
        """Reads the native pixels of one tile and modality into given arrays; here by way of `_read`.

        Args:
            row: Row of the index; its ``has_<modality>`` is true.
            modality: The modality to read.
            out: C-contiguous (C, h, w) per resolution of ``modality.native``, to be overwritten. Their
                content after an error means nothing.

        Returns:
            True where the tile holds the modality.

        Raises:
            DamagedTileError: If it cannot be read.
            UnfitTileError: If its shapes or types are not those of ``out``.
        """
        groups = self._read(row, modality)
        if groups is None:
            return False
        for resolution, array in out.items():
            check_fit(groups[resolution].shape, groups[resolution].dtype, array)
            array[...] = groups[resolution]
        return True

    def _read_together(self, row: int, modality: Modality) -> dict[int, dict[int, np.ndarray] | None]:
        """Returns the result of `_read` by row: of this tile and, where that costs little more, of others."""
        return {row: self._read(row, modality)}

    def expect(self, rows: Sequence[int]) -> None:
        """Takes note of the tiles that are read next, in this order: one whose files are far away begins to fetch."""

    def _transform(self, row: int) -> Affine:
        """Returns the transform from 10 m pixels to coordinates in the tile's own CRS."""
        x, y = self._footprints.origin(row)
        xres, yres = (float(self._arrays[name][row]) if name in self._arrays else 10.0 for name in ("xres", "yres"))
        return Affine(xres, 0.0, x, 0.0, -yres, y)

    def name(self, row: int) -> str:
        """Returns the tile's name in logs: cell and quadrant."""
        return f"{self.table['cell'].iat[row]}/{self.table['quadrant'].iat[row]}"

    def tile_slice(self, row: int, position: int = -1, epoch: int = 0) -> TileSlice:
        """Returns the slice that stands for one row of the index; see :class:`TileSlice`.

        Raises:
            IndexError: If there is no such row.
        """
        self._check_row(row)
        return TileSlice(self._footprints.slices(row, self.res), int(row), position, epoch)

    def resolve(self, query: GeoSlice) -> int:
        """Finds the index row that a slice means.

        Raises:
            IndexError: If no tile lies over the slice's center at that time.
            TerraFMError: If ``query`` is no slice.
        """
        if isinstance(query, TileSlice):
            self._check_row(query.row)
            return query.row
        if not isinstance(query, slice | tuple):
            raise TerraFMError(f"A dataset of tiles is indexed by slices, got {query!r}: use `tile_slice(row)`.")
        row = self._footprints.find(*self._disambiguate_slice(query))
        if row is None:
            raise IndexError(f"index: {query} not found in dataset with bounds: {self.bounds}")
        return row

    def __getitem__(self, query: GeoSlice) -> Sample:
        """Reads all modalities of one tile; see the class.

        Raises:
            IndexError: If the slice meets no tile.
            DamagedTileError: If the tile cannot be read, or a band of it holds only nodata.
        """
        return self.read(query, {})

    def read(self, query: GeoSlice, out: Mapping[str, dict[int, np.ndarray]]) -> Sample:
        """Reads a sample and decodes native pixels straight into given arrays, as a loader's workers need it.

        Args:
            query: Which tile, as for indexing.
            out: Per modality, by name, arrays as `_read_into` has them, whose memory the sample's tensors then
                share. A modality that is not in it gets memory of its own.

        Raises:
            IndexError: If the slice meets no tile.
            DamagedTileError: If the tile cannot be read, or a band of it holds only nodata.
            UnfitTileError: If the tile's shapes or types are not those of ``out``.
        """
        row = self.resolve(query)
        groups = {m: read for m in self.modalities if (read := self._read_checked(row, m, out.get(m.name))) is not None}
        if not groups:
            raise DamagedTileError(self.name(row), "it holds none of the modalities asked for")
        transform = self._transform(row)
        size = next(iter(groups.values()))[10].shape[-2:]
        if not isinstance(query, TileSlice):
            window = self._window(row, query, transform, size)
            groups = {m: {r: crop(g, window, size) for r, g in read.items()} for m, read in groups.items()}
            transform, size = windows.transform(window, transform), (window.height, window.width)
        sample = self._scalars(row, query) | self._extent(row, transform, size)
        complete = []
        for m, read in groups.items():
            tensors = {r: torch.from_numpy(np.ascontiguousarray(group)) for r, group in read.items()}
            if self.native:
                sample |= {m.native_key(r): tensor for r, tensor in tensors.items()}
                complete += [m.name] * is_complete(read, m, self._bands(row, m))
            else:
                sample[m.key] = to_ten_meters(tensors, m)
        if self.native:  # found where tiles are read: a view of a complete tile is made in half the time
            sample["complete"] = torch.tensor([name in complete for name in MODALITIES])
            sample |= {f"bands_{name}": torch.from_numpy(held[row]) for name, held in self._held.items()}
        return sample if self.transforms is None else self.transforms(sample)

    def _read_checked(
        self, row: int, modality: Modality, out: dict[int, np.ndarray] | None
    ) -> dict[int, np.ndarray] | None:
        if not self._arrays[f"has_{modality.name}"][row]:
            return None
        if out is not None and not self._read_into(row, modality, out):
            return None
        groups = self._read(row, modality) if out is None else out
        if groups is not None:
            self._check_valid(row, modality, groups)
        return groups

    def _check_valid(self, row: int, modality: Modality, groups: dict[int, np.ndarray]) -> None:
        if fault := only_nodata(groups, modality, self._bands(row, modality)):
            raise DamagedTileError(f"{self.name(row)} {modality.name}", fault)

    def _bands(self, row: int, modality: Modality) -> NDArray[np.bool_] | None:
        """Tells for each band of the stem whether a tile has it, (C,); None where all tiles have all."""
        held = self._held.get(modality.name)
        return None if held is None else held[row]

    def _fill_absent(self, row: int, modality: Modality, groups: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Completes native groups that hold the bands of a tile only; see :func:`fill_absent`."""
        held = self._bands(row, modality)
        if held is None or held.all():
            return groups
        sizes = (self._arrays.get(side) for side in ("height", "width"))
        height, width = (self.tile_size if size is None else int(size[row]) for size in sizes)
        return fill_absent(groups, modality, held, (height, width))

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self.table):
            raise IndexError(f"Row {row} is outside the index of {len(self.table)} tiles.")

    def _scalars(self, row: int, query: GeoSlice) -> Sample:
        position, epoch = (query.position, query.epoch) if isinstance(query, TileSlice) else (-1, 0)
        values = {
            "land_cover": self._arrays["land_cover"][row] if "land_cover" in self._arrays else -1,
            "row": row,
            "position": position,
            "epoch": epoch,
            "epsg": self._arrays["epsg"][row],
        }
        return {key: torch.tensor(int(value)) for key, value in values.items()}

    def _extent(self, row: int, transform: Affine, size: tuple[int, int]) -> Sample:
        x0, y0, x1, y1 = array_bounds(*size, transform)
        start, stop = (time.timestamp() for time in self._footprints.times(row))
        bounds = [x0, x1, transform.a, y0, y1, -transform.e, start, stop, 1]
        # float64: TorchGeo's float32 rounds a northing to half a meter and a time to minutes
        return {
            "bounds": torch.tensor(bounds, dtype=torch.float64),
            "transform": torch.tensor(tuple(transform), dtype=torch.float64),
        }

    def _window(self, row: int, query: GeoSlice, transform: Affine, size: tuple[int, int]) -> Window:
        """Returns the part of a tile that a slice covers, in 10 m pixels, widened to whole 60 m pixels."""
        x, y, _ = self._disambiguate_slice(query)
        covered = windows.from_bounds(*self._footprints.in_tile_crs(row, x, y), transform=transform)
        ranges = []
        for (low, high), length in zip(covered.toranges(), size, strict=True):
            low, high = np.floor(round(low, 3) / ALIGNMENT), np.ceil(round(high, 3) / ALIGNMENT)
            start = int(np.clip(low * ALIGNMENT, 0, (length - 1) // ALIGNMENT * ALIGNMENT))
            ranges.append((start, int(np.clip(high * ALIGNMENT, start + 1, length))))
        return Window.from_slices(*ranges)

    @property
    def bounds(self) -> tuple[slice, slice, slice]:
        """Bounds of the index, found without its polygons."""
        return self._footprints.extent(self.res)

    @property
    def crs(self) -> CRS:
        """CRS of the footprints; each tile's pixels have their own (``epsg``)."""
        return self._crs

    @crs.setter
    def crs(self, new_crs: CRS) -> None:
        if new_crs != self.crs:
            self.index = self.index.to_crs(new_crs)

    @property
    def index(self) -> GeoDataFrame:
        """The tile index as TorchGeo has it, made from `table` when first asked for.

        A polygon per tile takes about half a kilobyte: at millions of tiles, use `table`.
        """
        if self._index is None:
            self._index = as_index(self.table, self.tile_size, self.crs)
        return self._index

    @index.setter
    def index(self, index: pd.DataFrame) -> None:
        self._crs = CRS(index.crs if isinstance(index, GeoDataFrame) else 4326)
        self.table = index if isinstance(index, SharedTable) else as_table(index).reset_index(drop=True)
        self.__dict__ = self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a worker process is sent: not what it can make of the table."""
        kept = {k: v for k, v in vars(self).items() if not isinstance(getattr(type(self), k, None), cached_property)}
        return kept | {"_index": None}

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.table)

    @cached_property
    def _footprints(self) -> Footprints:
        return Footprints(self.table, self.tile_size, self.crs)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """The table's columns: pandas takes too long to be asked at every read."""
        return {name: column.array for name, column in self.table.items()}

    @cached_property
    def _held(self) -> dict[str, HeldBands]:
        """The bands of the tiles, by modality, where the table says them."""
        columns = {m: self.table[f"bands_{m.name}"] for m in self.modalities if f"bands_{m.name}" in self.table}
        return {m.name: HeldBands(column, m) for m, column in columns.items()}

    def plot(self, sample: Sample, suptitle: str | None = None) -> "Figure":
        """Draws a sample: optics in natural colors, radar as VV, VH and their ratio, side by side."""
        from .plot import plot_tile

        return plot_tile(sample, suptitle)


def check_tile_size(tile_size: int) -> None:
    """Refuses a tile size that 20 and 60 m pixels do not divide, or that memory does not hold.

    Raises:
        TerraFMError: If it is no multiple of 6 from 6 to 4092.
    """
    if not ALIGNMENT <= tile_size <= MAX_TILE or tile_size % ALIGNMENT:
        raise TerraFMError(
            f"`tile_size` must be a multiple of {ALIGNMENT} pixels up to {MAX_TILE}, got {tile_size}, so that it holds "
            f"whole pixels of 20 and 60 m: set {min(max(round(tile_size / ALIGNMENT), 1) * ALIGNMENT, MAX_TILE)}, or "
            "534 as in the paper."
        )

"""Major-TOM Core: Sentinel-1 RTC and Sentinel-2 L1C and L2A, joined by grid cell, four tiles per cell."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from rasterio import Env
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.tiles.bands import fill_absent
from terrafm_tg.datasets.tiles.dataset import TileDataset, check_tile_size
from terrafm_tg.datasets.tiles.index_file import open_index
from terrafm_tg.datasets.tiles.table import resolve_offsets
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality
from terrafm_tg.radiometry import archive_verdict, native
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import files_below, fingerprint
from terrafm_tg.utils.trust import check_blocks

from .part_files import PartFiles
from .rows import FOLDERS, find_metadata, scan_tiles, sources_of
from .settled import settle_offsets

_FEW = 64  # images whose pixels are asked for their offset when a dataset is opened without an index


@checked()
class MajorTOM(TileDataset):
    """`Major-TOM Core <https://huggingface.co/Major-TOM>`_ as it is published (CC-BY-SA-4.0).

    ``root`` holds ``Core-S2L2A``, ``Core-S2L1C``, ``Core-S1RTC``, any of them, each with ``metadata.parquet``
    and ``images/part_00001.parquet`` ... (one row per row group, one GeoTIFF per band). A part of the files
    is enough: a cell has those products whose file is on disk. Cells that lack a product are included.

    A tile is a quarter of a cell, read in the cell's own UTM zone without a warp: the columns of the bands
    asked for from one row group, and of each TIFF the quarter's window. See
    :class:`~terrafm_tg.datasets.TileDataset` for what a sample holds, and
    :func:`~terrafm_tg.datasets.majortom.rows.scan_tiles` for how products are joined.

    The published files carry no checksum: a damaged picture that does not decode is named and costs its tile,
    one that decodes to other numbers is not noticed. The parts that ``terrafm download`` writes have a checksum
    per page, which is verified here, and ``terrafm pack`` records one per tile.

    The index is ``root/index.parquet`` where ``terrafm index`` has written it (then with land cover), else it
    is made from the metadata at once. It records the offset of processing baseline 04.00 that the files hold
    (``offset_<modality>``).

    Args:
        root: The folder.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; those that the root has where None.
        native: Hand out the stored pixels instead of float32 at 10 m.
        tile_size: Edge of a tile in 10 m pixels; half a cell's.
        index: A tile index, or the path of one, instead of ``root/index.parquet``.
        harmonize: Take the offset of baseline 04.00 off; False keeps the numbers as they are stored.
        ambiguous_offset: What to do where neither a product's name (``N9999``) nor its pixels tell, which
            ``terrafm index`` asks (and so does opening, of few images): ``"error"``, ``"present"`` (1000 is taken off),
            ``"absent"``, or ``"drop"`` (the modality is left out there).
        remote: Read rows whose file is not on disk from their URL (only the bytes of the bands travel): True for the
            published source, or the address of another that you trust. The metadata may name files below it only.
        transforms: Applied to each sample.

    Raises:
        TerraFMError: If the root is missing, is no Major-TOM root, its index is out of date, cells are not
            two tiles wide, an offset is ambiguous, or a setting is wrong.
    """

    filename_glob = "metadata.parquet"

    def __init__(
        self,
        root: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        native: bool = False,
        tile_size: int = 534,
        index: pd.DataFrame | str | os.PathLike[str] | None = None,
        harmonize: bool = True,
        ambiguous_offset: str = "error",
        remote: bool | str = False,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        check_tile_size(tile_size)
        self.root: Path = Path(root)
        self.paths = self.root
        self.harmonize = harmonize
        table, opened = open_index(
            index, self.root, self.scan, self.state, {}, sources_of(remote), ("part_", "group_", "offset_", "x", "y"),
            tile_size=tile_size, remote=remote,
        )  # fmt: skip
        if table["quadrant"].max() > 3:
            raise TerraFMError(f"The index of {self.root} has quadrant {table['quadrant'].max()}, expected 0 to 3.")
        if harmonize and not opened and ambiguous_offset == "error":
            table = settle_offsets(table, self.root, most=_FEW)
        if harmonize:
            table = resolve_offsets(table, modalities, ambiguous_offset)
        super().__init__(table, modalities, native, tile_size, transforms)
        self._files = PartFiles()
        width = cell_width(self.root, self.table, 2 * tile_size)
        if width not in (None, 2 * tile_size):
            raise TerraFMError(
                f"The cells of {self.root} are {width} pixels wide, a tile is half of that: "
                f"`tile_size` must be {width // 2}, got {tile_size}."
            )

    #: Settings of :meth:`scan` that an index on disk must have been made with.
    SETTINGS: ClassVar = {"remote": False}

    scan = staticmethod(scan_tiles)

    @staticmethod
    def find_tile_size(root: Path) -> int:
        """Half the width of the first cell that can be read; the published 534 where none can."""
        try:
            first = scan_tiles(root, 534, limit=64)
        except TerraFMError:  # nothing is on disk, or what is wrong is said when all are read
            return 534
        return (cell_width(root, first) or 1068) // 2

    @staticmethod
    def state(root: Path) -> str:
        """Names the set of files that lie below the root: an index made for another set is out of date."""
        folders = [path.parent for path in find_metadata(root).values()]
        files = [file for f in folders for file in files_below(f / "images", ".parquet", deep=False)]
        return fingerprint([*files, *(folder / "metadata.parquet" for folder in folders)], root)

    def _read_together(self, row: int, modality: Modality) -> dict[int, dict[int, np.ndarray] | None]:
        """Reads all tiles of the row's cell: its pictures are opened once instead of four times."""
        try:
            cell = self._read(row, modality, whole=True)
        except DamagedTileError:  # this quarter may be whole
            return {row: self._read(row, modality)}
        tiles: dict[int, dict[int, np.ndarray] | None] = {}
        first = max(0, row - 3)  # the tiles of a cell lie together in the index
        cells = self.table["cell"].iloc[first : row + 4].to_numpy()
        for sister in (first + int(at) for at in np.flatnonzero(cells == self.table["cell"].iat[row])):
            quadrant, groups = int(self._arrays["quadrant"][sister]), {}
            for resolution, pixels in cell.items():
                size = self.tile_size * 10 // resolution
                top, left = size * (quadrant // 2), size * (quadrant % 2)
                groups[resolution] = pixels[:, top : top + size, left : left + size]
            tiles[sister] = groups
        return tiles

    def _read(self, row: int, modality: Modality, whole: bool = False) -> dict[int, np.ndarray]:
        """Reads the native groups of a tile, or of its whole cell."""
        name = f"{self.name(row)} {modality.name}"
        held = self._bands(row, modality)
        there = [b for i, b in enumerate(modality.bands) if held is None or held[i]]
        values = self._values(row, modality, ["grid_cell", *there])
        if values.get("grid_cell") != self.table["cell"].iat[row]:
            raise DamagedTileError(name, f"its row group holds cell {values.get('grid_cell')}")
        quadrant = int(self._arrays["quadrant"][row])
        offset = int(self.table[f"offset_{modality.name}"].iat[row]) if self.harmonize else 0
        groups, unit = {}, "DN" if modality.unit == "DN" else "linear"
        with Env.from_defaults():  # one for all bands: each would make and end its own
            for resolution, bands in modality.native.items():
                size = self.tile_size * 10 // resolution
                window = None if whole else Window(size * (quadrant % 2), size * (quadrant // 2), size, size)
                group = []
                for band in (band for band in bands if band in there):
                    if not values.get(band) or not isinstance(values[band], bytes):
                        raise DamagedTileError(name, f"band {band} is missing")
                    try:
                        # one driver: damaged bytes are not tried in every format that GDAL knows
                        with MemoryFile(values[band]) as memory, memory.open(driver="GTiff") as src:
                            self._check_grid(row, src, resolution)
                            rule = archive_verdict(modality.name, unit, offset, src.nodata)
                            group.append(native(src.read(1, window=window), rule, harmonize=True))
                    except (RasterioError, ValueError) as error:
                        raise DamagedTileError(name, f"band {band}: {error}") from error
                if group:
                    groups[resolution] = np.stack(group)
        side = self.tile_size * (2 if whole else 1)
        return groups if held is None or held.all() else fill_absent(groups, modality, held, (side, side))

    def _values(self, row: int, modality: Modality, columns: list[str]) -> dict[str, Any]:
        """Reads columns of the row group that holds a tile's cell."""
        part, group = self._locations[modality.name]
        path = part[row] if "://" in part[row] else str(self.root / part[row])
        try:
            return self._files.read(path, int(group[row]), columns)
        except OSError as error:
            reason = f"row group {group[row]} of {part[row]} cannot be read ({error})"
            raise DamagedTileError(f"{self.name(row)} {modality.name}", reason) from error

    def _check_grid(self, row: int, src: DatasetReader, resolution: int) -> None:
        """Refuses a picture that is not the cell's."""
        check_blocks(src)
        size = 2 * self.tile_size * 10 // resolution
        if src.shape != (size, size):
            raise ValueError(f"it is {src.width} x {src.height} pixels, expected {size} x {size}")
        if np.dtype(src.dtypes[0]).kind not in "uif":
            raise ValueError(f"its numbers are {src.dtypes[0]}, expected real ones")
        x, y = self._footprints.origin(row)
        quadrant = int(self._arrays["quadrant"][row])
        x -= quadrant % 2 * self.tile_size * 10
        y += quadrant // 2 * self.tile_size * 10
        away = max(abs(src.transform.c - x), abs(src.transform.f - y))
        if not away <= 10:  # nor NaN
            raise ValueError(f"its corner lies {away:,.0f} m from the cell's")

    @cached_property
    def _locations(self) -> dict[str, tuple[pd.Categorical, np.ndarray]]:
        return {
            m.name: (self.table[f"part_{m.name}"].array, self.table[f"group_{m.name}"].to_numpy())
            for m in self.modalities
        }


def cell_width(root: Path, index: pd.DataFrame, expected: int | None = None) -> int | None:
    """Measures the first few cells, in pixels of 10 m, as far as they can be read on disk.

    Returns:
        The width of most of them, or the expected one where any has that (others may be damaged); None where
        none can be read.
    """
    files, widths = PartFiles(), Counter[int]()
    for row in range(0, min(len(index), 16), 4):
        for name in (name for name in FOLDERS if f"has_{name}" in index and index[f"has_{name}"].iat[row]):
            part, group = root / index[f"part_{name}"].iat[row], int(index[f"group_{name}"].iat[row])
            sizes = dict(zip(MODALITIES[name].bands, MODALITIES[name].resolutions, strict=True))
            with contextlib.suppress(OSError, RasterioError, TypeError, StopIteration):  # also where no band is there
                blobs = ((x, files.read(str(part), group, [x]).get(x)) for x in sorted(sizes, key=sizes.__getitem__))
                band, blob = next((band, blob) for band, blob in blobs if blob)
                with MemoryFile(blob) as memory, memory.open(driver="GTiff") as src:
                    widths[src.width * sizes[band] // 10] += 1
            if expected in widths:
                return expected
    return max(widths, key=widths.__getitem__, default=None)

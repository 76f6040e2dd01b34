"""Opened sources of pixels: files of GDAL, cubes and arrays as one kind of thing."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from terrafm_tg.utils.remote_file import RemoteFile, block_spans
from terrafm_tg.utils.trust import OpenFiles, open_array, open_cube, open_image

from .names import read_name
from .remote import remote_file
from .scene import BandSource

if TYPE_CHECKING:
    import xarray

_TIMES, _BANDS = ("t", "time", "date", "datetime"), ("bands", "band", "variable", "channel", "bandnames")
_ROWS, _COLUMNS = ("y", "lat", "latitude", "northing"), ("x", "lon", "longitude", "easting")
_REGULAR = 1e-3  # of a pixel, by which the coordinates of a cube may stray


@dataclass(frozen=True)
class Tags:
    """Declared properties of one band: missing value, and ``value = stored * scale + offset``."""

    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0


class Raster(ABC):
    """Pixels on one grid, several bands of them.

    Attributes:
        names: Of the bands, None where a band has none.
        shape: Height and width.
        crs: None where there is none.
        transform: From pixels to coordinates, north up; None where there is no georeference.
        dtype: Of the stored numbers.
        tags: Further texts that came with the file.
        problem: Why no pixels on the ground are to be had, as the end of a sentence; empty otherwise.
        alpha: Index (from 1) of the band that is an alpha channel, the last; 0 where it is none.
        odd: Another band is said to be an alpha channel.
    """

    names: Sequence[str | None]
    shape: tuple[int, int]
    crs: CRS | None = None
    transform: Affine | None = None
    dtype: np.dtype
    tags: Mapping[str, Any]
    problem: str = ""
    alpha: int = 0
    odd: bool = False

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.names)

    @cached_property
    def epsg(self) -> int | None:
        """EPSG code of the CRS; None where it has none."""
        return None if self.crs is None else self.crs.to_epsg()

    @abstractmethod
    def declared(self, index: int) -> Tags:
        """Returns the declared properties of a band, counted from 1."""

    @abstractmethod
    def read(self, indexes: Sequence[int], window: Window) -> np.ndarray:
        """Reads stored values (C, h, w) of some bands, counted from 1."""

    def missing(self, window: Window) -> np.ndarray | None:
        """Reads where a mask in the file says that pixels are missing, bool (h, w); None where it has none."""
        return None


def steps(rasters: Mapping[str, Raster], finest: Raster) -> dict[str, int]:
    """Returns how many pixels of the finest raster a pixel of each band is wide, all of one extent."""
    return {band: max(round(finest.shape[1] / raster.shape[1]), 1) for band, raster in rasters.items()}


class _Image(Raster):
    """A GeoTIFF or JPEG 2000 file, on disk or on a server, and GDAL's mask in a file beside it."""

    def __init__(self, src: DatasetReader, file: RemoteFile | None = None, beside: Path | None = None) -> None:
        self.file = file
        self.beside = beside if beside is not None and beside.is_file() else None
        self.src, self.names, self.shape, self.crs = src, src.descriptions, src.shape, src.crs
        self.dtype, self.tags = np.dtype(src.dtypes[0]), src.tags()
        placed = not src.transform.is_identity
        self.transform = src.transform if placed and src.crs else None
        if src.gcps[0] and not placed:
            self.problem = (
                "it is in the geometry of the radar, not on the ground: correct it for terrain first, such as with ASF "
                "HyP3 or SNAP"
            )
        elif self.dtype.kind not in "iuf":
            self.problem = (
                f"it holds {self.dtype} numbers, as single-look complex radar does: detect and geocode it first"
            )
        elif placed and src.crs is None:
            self.problem = "it has coordinates and no CRS: name it (gdal_edit.py -a_srs EPSG:32633)"
        elif self.transform is not None:
            t = self.transform
            if t.b or t.d or t.e >= 0 or t.a <= 0:
                self.problem = "it is not north up: warp it (gdalwarp)"
        alpha = [i for i, color in enumerate(src.colorinterp, 1) if color == ColorInterp.alpha]
        alpha = [i for i in alpha if not read_name(src.descriptions[i - 1]).band]
        self.alpha = src.count if alpha == [src.count] and src.count > 1 else 0
        self.odd = bool(alpha) and not self.alpha  # as GDAL writes ALPHA=YES for more than four bands
        self._masked = any(flags == [MaskFlags.per_dataset] for flags in src.mask_flag_enums)

    def declared(self, index: int) -> Tags:
        src = self.src
        return Tags(src.nodatavals[index - 1], src.scales[index - 1], src.offsets[index - 1])

    def read(self, indexes: Sequence[int], window: Window) -> np.ndarray:
        if self.file is not None:  # in few requests
            self.file.fetch(block_spans(self.src, window, indexes))
        return self.src.read(list(indexes), window=window)

    def missing(self, window: Window) -> np.ndarray | None:
        if self.beside is not None:
            with open_image(self.beside) as mask:
                if mask.shape != self.shape:
                    raise ValueError(f"its mask {self.beside.name} has another size")
                return mask.read(1, window=window) == 0
        return self.src.read_masks(1, window=window) == 0 if self._masked else None


class _Array(Raster):
    """A NumPy file of one chip: bands first or last, whichever is the shortest side."""

    def __init__(self, path: Path) -> None:
        array = open_array(path)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3:
            raise ValueError(f"it has {array.ndim} dimensions, expected bands, height and width")
        if array.shape[2] < min(array.shape[:2]):
            array = array.transpose(2, 0, 1)
        self.array, self.names, self.tags = array, [None] * len(array), {}
        self.shape, self.dtype = array.shape[1:], array.dtype

    def declared(self, index: int) -> Tags:
        return Tags()

    def read(self, indexes: Sequence[int], window: Window) -> np.ndarray:
        rows, columns = window.toslices()
        return np.stack([self.array[i - 1, rows, columns] for i in indexes])


class _Cubes(OpenFiles["xarray.Dataset"]):
    """Groups of cubes that stay open."""

    def _open(self, path: str) -> "xarray.Dataset":
        return open_cube(*path.split("\0")[:2])


_cubes = _Cubes(16)


def cube_group(path: str | Path, group: str = "") -> "xarray.Dataset":
    """Opens a group of a cube, or returns it where it is open.

    Raises:
        TerraFMError: As :func:`~terrafm_tg.utils.trust.open_cube`.
        ValueError: Likewise.
    """
    return _cubes.opened(f"{path}\0{group}\0{Path(path).stat().st_mtime_ns}")  # one that was replaced is opened anew


@dataclass(frozen=True)
class Axes:
    """Names of the dimensions of a variable of a cube; empty where it has none of that kind."""

    row: str = ""
    column: str = ""
    time: str = ""
    band: str = ""
    others: tuple[str, ...] = ()


def find_axes(dims: Sequence[Hashable]) -> Axes:
    """Tells the dimensions of a variable apart by their names."""
    names = [str(dim) for dim in dims]
    kinds = {"row": _ROWS, "column": _COLUMNS, "time": _TIMES, "band": _BANDS}
    found = {kind: next((d for d in names if d.lower() in usual), "") for kind, usual in kinds.items()}
    return Axes(**found, others=tuple(d for d in names if d not in found.values()))


class CubeRaster(Raster):
    """One date of a variable of a NetCDF file or Zarr store.

    Args:
        data: The group.
        variable: Its variable.
        time: Place along the dimension of time.
        crs: Where the group itself tells none.
    """

    def __init__(self, data: "xarray.Dataset", variable: str, time: int | None = None, crs: CRS | None = None) -> None:
        array = data[variable]
        self.axes = axes = find_axes(array.dims)
        if not (axes.row and axes.column) or any(array.sizes[d] > 1 for d in axes.others):
            raise ValueError(f"its {variable} has dimensions {', '.join(map(str, array.dims))}, expected y and x")
        array = array.isel(dict.fromkeys(axes.others, 0))
        if axes.time:
            array = array.isel({axes.time: time or 0})
        self.array, self.tags, self.dtype = array, {**data.attrs, **array.attrs}, array.dtype
        self.shape = array.sizes[axes.row], array.sizes[axes.column]
        bands = [str(x) for x in array[axes.band].values] if axes.band in array.coords else [None]
        self.names = (
            bands if axes.band in array.coords else [None] * array.sizes[axes.band] if axes.band else [variable]
        )
        self.crs = _cube_crs(data, array, axes) or crs
        self.flipped = False
        self.transform = self._transform() if self.crs else None
        if self.dtype.kind not in "iuf":
            self.problem = f"it holds {self.dtype} values, expected numbers"
        elif self.crs is None and axes.row in array.coords:
            self.problem = "it has coordinates and no CRS (grid_mapping, crs_wkt): name it"
        elif self.crs and self.transform is None:
            self.problem = "its coordinates are not evenly spaced: put it on a regular grid"

    def _transform(self) -> Affine | None:
        steps = []
        for dim, size in ((self.axes.column, self.shape[1]), (self.axes.row, self.shape[0])):
            if dim not in self.array.coords or size < 2:
                return None
            values = self.array[dim].values.astype(np.float64)
            step = (values[-1] - values[0]) / (size - 1)
            if not step or np.abs(values - values[0] - step * np.arange(size)).max() > _REGULAR * abs(step):
                return None
            steps.append((values[0] - step / 2, step, values[-1] + step / 2))
        (left, width, _), (top, height, bottom) = steps
        self.flipped = height > 0
        return Affine(width, 0, left, 0, -abs(height), bottom if self.flipped else top) if width > 0 else None

    def declared(self, index: int) -> Tags:
        """Returns the CF attributes of the variable, which all of its bands share."""
        held = {**(self.array.attrs.get("_eopf_attrs") or {}), **self.array.attrs}
        nodata = next(
            (held[key] for key in ("_FillValue", "missing_value", "nodata", "fill_value") if key in held), None
        )
        values = (_number(nodata), _number(held.get("scale_factor")), _number(held.get("add_offset")))
        return Tags(values[0], 1.0 if values[1] is None else values[1], values[2] or 0.0)

    def read(self, indexes: Sequence[int], window: Window) -> np.ndarray:
        """Reads stored values (C, h, w), north up."""
        rows, columns = window.toslices()
        if self.flipped:
            rows = slice(self.shape[0] - rows.stop, self.shape[0] - rows.start)
        try:
            part = self.array.isel({self.axes.row: rows, self.axes.column: columns})
            order = [self.axes.row, self.axes.column]
            if self.axes.band:
                part, order = part.isel({self.axes.band: [i - 1 for i in indexes]}), [self.axes.band, *order]
            pixels = np.asarray(part.transpose(*order).values)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it cannot be read ({error})") from error
        pixels = pixels if self.axes.band else pixels[None]
        return pixels[:, ::-1] if self.flipped else pixels


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return None


def _cube_crs(data: "xarray.Dataset", array: "xarray.DataArray", axes: Axes) -> CRS | None:
    """Finds the CRS of a variable: of its grid mapping, its attributes, or by the names of its dimensions."""
    mapping = str(array.attrs.get("grid_mapping", array.encoding.get("grid_mapping", "")))
    places = [data[name].attrs for name in (mapping, "spatial_ref", "crs") if name in data.variables]
    for held in (*places, array.attrs, data.attrs):
        for key in ("crs_wkt", "spatial_ref", "proj:code", "proj:epsg", "epsg_code", "epsg", "crs"):
            if (crs := as_crs(held.get(key))) is not None:
                return crs
    return CRS.from_epsg(4326) if axes.row.lower().startswith("lat") else None


def as_crs(text: object) -> CRS | None:
    """Reads a CRS from WKT or the number of an EPSG code; None where it is neither."""
    text = str(text).strip() if isinstance(text, str | int | np.integer) else ""
    number = text.upper().removeprefix("EPSG:")
    try:
        return CRS.from_epsg(int(number)) if number.isdigit() else CRS.from_wkt(text) if "[" in text else None
    except (RasterioError, ValueError):
        return None


@contextmanager
def open_raster(root: Path, source: BandSource) -> Iterator[Raster]:
    """Opens the file that a source names, below a root or at an address.

    Raises:
        rasterio.errors.RasterioIOError: If GDAL cannot open it.
        TerraFMError: If a library for it is absent, or it leads elsewhere.
        ValueError: If it is damaged or something else.
    """
    if source.variable:
        yield _open_variable(root / source.path, source)
    elif source.path.lower().endswith(".npy"):
        yield _Array(root / source.path)
    elif "://" in source.path:
        with (file := remote_file(source.path)).opened() as src:
            yield _Image(src, file)
    else:
        with open_image(root / source.path) as src:
            yield _Image(src, beside=root / f"{source.path}.msk")


def _open_variable(path: Path, source: BandSource) -> CubeRaster:
    group, _, variable = source.variable.rpartition("/")
    try:
        data = cube_group(path, group)
        return CubeRaster(data, variable, source.time, product_crs(cube_group(path).attrs) if group else None)
    except (KeyError, IndexError) as error:
        raise ValueError(f"it has no {source.variable} of that date") from error


def product_crs(attributes: Mapping[str, Any]) -> CRS | None:
    """Finds the CRS of an EOPF product in the attributes of its root."""
    held = product_properties(attributes)
    other = attributes.get("other_metadata")
    texts = [held.get("proj:code"), held.get("proj:epsg")]
    texts += [other.get("horizontal_CRS_code")] if isinstance(other, Mapping) else []
    return next((crs for text in texts if (crs := as_crs(text)) is not None), None)


def product_properties(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the STAC properties that an EOPF product has in its root; none where it has none."""
    found = attributes.get("stac_discovery")
    held = found.get("properties") if isinstance(found, Mapping) else None
    return held if isinstance(held, Mapping) else {}

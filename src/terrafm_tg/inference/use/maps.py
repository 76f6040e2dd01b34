"""Embeddings in COGs and in Zarr stores."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.trust import open_cube, open_image

from .vectors import MapLayer

if TYPE_CHECKING:
    import xarray

#: Values of tags that are JSON: others are plain text.
_JSON = re.compile(r'[\[{"]|(null|true|false|-?\d+(\.\d+)?)$')
#: Types of embeddings: quantized ones have a sign, as images' digital numbers have not.
_KINDS = ("int8", "float16", "float32", "float64")


class CogLayer(MapLayer):
    """Embeddings in a GeoTIFF: bands are dimensions, with nodata, and scale and offset where they are quantized.

    Args:
        path: The file.

    Raises:
        TerraFMError: If it holds something else, or has no place on the Earth.
        rasterio.errors.RasterioError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with open_image(path) as src:
            kinds = {*src.dtypes}
            if src.count < 2 or not kinds <= {*_KINDS}:
                raise no_embeddings(path, f"{src.count} band{'s' * (src.count > 1)} of {', '.join(sorted(kinds))}")
            if src.crs is None or src.transform.is_identity:
                raise without_place(path)
            tags, shape = src.tags(), (src.height, src.width, src.count)
            self._scales = np.array(src.scales, np.float32), np.array(src.offsets, np.float32)
            nodata = np.array([np.nan if x is None else x for x in src.nodatavals], float)
            block = src.block_shapes[0]
            crs, transform = CRS.from_wkt(src.crs.to_wkt()), src.transform
        self._nodata = nodata
        about = about_of(tags)
        super().__init__(path, crs, transform, shape, block, date_of(about), about)

    def read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See :class:`~.vectors.MapLayer`."""
        with open_image(self.path) as src:
            stored = src.read(window=rasterio.windows.Window.from_slices(rows, columns))
        return unscale(np.moveaxis(stored, 0, -1), *self._scales, self._nodata)


class ZarrLayer(MapLayer):
    """Embeddings in a Zarr store: an array with the dimensions y, x and embedding, and the coordinates y and x.

    Args:
        path: The store's folder.

    Raises:
        TerraFMError: If it holds no such array, or has no place on the Earth.
        ValueError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        cube = open_cube(path)
        arrays = [array for array in cube.data_vars.values() if {"y", "x"} < {*array.dims} and array.ndim == 3]
        arrays = [array for array in arrays if str(array.dtype) in _KINDS]
        if len(arrays) != 1:
            held = ", ".join(f"{name} ({', '.join(map(str, array.dims))})" for name, array in cube.data_vars.items())
            raise no_embeddings(path, held or "no array")
        (deep,) = {*arrays[0].dims} - {"y", "x"}
        self._array, self._order = arrays[0], ("y", "x", deep)
        attributes = dict(self._array.attrs)
        about = about_of(dict(cube.attrs) | attributes)
        self._scales = (
            # xarray knows one scale only, so that one per dimension is an array of its own.
            np.asarray(cube["scale"] if "scale" in cube.variables else attributes.get("scale_factor", 1), np.float32),
            np.asarray(attributes.get("add_offset", 0), np.float32),
        )
        self._nodata = np.asarray(attributes.get("_FillValue", np.nan), float)
        sides = self._array.encoding.get("chunks") or (256, 256, 1)
        by_name = dict(zip(arrays[0].dims, sides, strict=True))
        block = int(by_name["y"]), int(by_name["x"])
        crs, transform = _georeference(path, cube, self._array)
        height, width, depth = (self._array.sizes[name] for name in self._order)
        super().__init__(path, crs, transform, (height, width, depth), block, date_of(about), about)

    def read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See :class:`~.vectors.MapLayer`."""
        window = self._array.isel(y=rows, x=columns).transpose(*self._order)  # not before: it would be read as a whole
        return unscale(window.to_numpy(), *self._scales, self._nodata)


def _georeference(path: Path, cube: "xarray.Dataset", array: "xarray.DataArray") -> tuple[CRS, Affine]:
    """Reads CRS and transform as CF's grid mapping or the ``proj`` and ``spatial`` conventions say them."""
    mapping = array.attrs.get("grid_mapping", "spatial_ref")
    inside = cube.variables[mapping].attrs if mapping in cube.variables else {}
    said = {**cube.attrs, **array.attrs, **inside}
    keys = ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:projjson", "crs")
    text = next((said[key] for key in keys if said.get(key)), None)
    if text is None:
        raise without_place(path)
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise without_place(path) from error
    numbers = said.get("spatial:transform") or said.get("proj:transform")
    if numbers:
        return crs, Affine(*map(float, numbers[:6]))
    if not {"x", "y"} <= {*cube.coords}:
        raise without_place(path)
    starts, steps = [], []
    for name in ("x", "y"):
        middles = np.asarray(cube.coords[name], float)
        step = (middles[-1] - middles[0]) / max(len(middles) - 1, 1) if len(middles) > 1 else 0.0
        if not step or not np.allclose(np.diff(middles), step, rtol=1e-4, atol=0):
            raise without_place(path)
        steps.append(step)
        starts.append(middles[0] - step / 2)
    return crs, Affine(steps[0], 0, starts[0], 0, steps[1], starts[1])


def unscale(stored: NDArray, scale: NDArray, offset: NDArray, nodata: NDArray) -> NDArray[np.float32]:
    """Returns embeddings (..., D) in float32, NaN where a stored value is missing.

    Args:
        stored: As in the file.
        scale: Of each dimension, or one.
        offset: Likewise.
        nodata: Stored value that is missing, of each dimension, or one; NaN for none.
    """
    missing = stored == nodata
    values = stored.astype(np.float32) * scale + offset
    values[missing] = np.nan
    return values


def about_of(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what a product says of itself: values that are JSON as such, names in small letters without a prefix."""
    found: dict[str, Any] = {}
    for key, value in tags.items():
        if isinstance(value, str) and _JSON.match(value):
            with suppress(ValueError):
                value = json.loads(value)
        name = str(key).lower().rpartition(":")[2].removeprefix("terrafm_")
        if name in ("terrafm", "about") and isinstance(value, Mapping):
            found |= value
        else:
            found.setdefault(name, value)
    return found


def date_of(about: Mapping[str, Any]) -> str:
    """Returns the first time of a product's images as it says them, to the day; empty where it does not."""
    for key in ("dates", "datetime", "date", "timestamp"):
        times = sorted(filter(None, _texts(about.get(key))))
        if times:
            return times[0][:10]
    return ""


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part)]
    return [] if value is None else [str(value)]


class NoEmbeddingsError(TerraFMError):
    """A file that is whole holds something else."""


def no_embeddings(path: Path, held: str) -> NoEmbeddingsError:
    """Makes the error for a file that holds something else."""
    return NoEmbeddingsError(
        f"{path} holds {held}, and no embeddings: give a COG, Zarr store or GeoParquet table that `terrafm embed` "
        "wrote, or a folder of them."
    )


def without_place(path: Path) -> TerraFMError:
    """Makes the error for a map that no CRS and regular grid puts on the Earth."""
    return TerraFMError(
        f"{path} has no CRS and regular grid that are understood: write it anew with both, as `terrafm embed` does."
    )

"""Pixels of scenes: a part that tells their unit, and any part as digital numbers or linear power on another grid."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.windows import Window

from terrafm_tg.datasets.tiles.warp import needed_window, warp
from terrafm_tg.modalities import MODALITIES, Modality
from terrafm_tg.radiometry import TELLING, Verdict, native
from terrafm_tg.utils.remote import OF_THE_FILE, RemoteError

from .rasters import Raster, open_raster
from .scene import BandSource, Scene

#: Pixels along each side that tell the unit.
WINDOW = 1024
_SHARE = 0.02  # of pixels in it that are there; else it lies elsewhere
#: Where they lie, as shares of height and width: in the middle, or elsewhere.
PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25))
_MOST_PIXELS = 1 << 15  # along a side of a tile: a damaged header must not ask for endless work
# Clouds, their shadows and damaged pixels, by mask.
_CLOUDY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SCL": lambda values: np.isin(values, (1, 3, 8, 9, 10)),
    "QA60": lambda values: (values.astype(np.int64) & 0b1100_0000_0000) > 0,
    "cloud_mask": lambda values: values > 0,
    "CLD": lambda values: values > 40,
}
_ABSENT = ("alpha", "dataMask")  # masks that are 0 where a pixel is missing


class ElsewhereError(ValueError):
    """A scene that shows nothing of a tile."""


def telling_pixels(root: Path, scene: Scene, places: Sequence[tuple[float, float]] = PLACES) -> dict[str, np.ndarray]:
    """Reads the stored values that tell the unit of a scene: of some bands, from its middle, or where it has pixels.

    Args:
        root: Of its files.
        scene: The scene.
        places: The first that has enough pixels is taken.

    Returns:
        (h, w) by band, of :data:`~terrafm_tg.radiometry.TELLING` those that there are, of bands that nothing names all;
        NaN where masked. Bands that cannot be read are left out, which is said when their tiles are read.
    """
    best, most = dict[str, np.ndarray](), -1.0
    image = scene.images[len(scene.images) // 2]
    bands = [band for band in image.bands if band in TELLING or "bands" not in scene.claims.source]
    for place in places:
        values = {}
        for band in bands:
            with suppress_damage(), open_raster(root, image.bands[band]) as raster:
                window = _part(raster, place, scene.wanted)
                stored = raster.read([image.bands[band].index], window)[0]
                missing = _missing(root, image, raster, window, [image.bands[band].index])
                if missing is not None and missing.any():
                    stored = np.where(missing[0], np.nan, stored.astype(np.float64))
                values[band] = stored
        share = np.mean([np.mean(np.isfinite(x) & (x != 0)) for x in values.values()]) if values else 0.0
        if share > most:
            best, most = values, float(share)
        if share > _SHARE or max(image.height, image.width) <= WINDOW:
            break
    return telling_pixels(root, replace(scene, wanted=None)) if scene.wanted and most <= 0 else best


@contextmanager
def suppress_damage() -> Iterator[None]:
    """Passes over a file that cannot be read, and not over a server that cannot."""
    try:
        yield
    except (RasterioError, ValueError, OSError) as error:
        if isinstance(error, RemoteError) and not isinstance(error, OF_THE_FILE):
            raise


def _part(raster: Raster, place: tuple[float, float], wanted: tuple[float, ...] | None) -> Window:
    """Returns a window of the usual size around a place, given as a share of height and width, or of what is wanted."""
    shape = raster.shape
    if wanted is not None and raster.crs is not None and raster.transform is not None:
        west, south, east, north = wanted
        box = west, south, east + 360 * (east < west), north
        whole = needed_window(_Grid(raster.crs, raster.transform, shape), CRS.from_epsg(4326), box)
        if whole is not None:
            sizes = [min(side, WINDOW) for side in (whole.height, whole.width)]
            top, left = (
                round(start + share * (side - size))
                for start, side, size, share in zip(
                    (whole.row_off, whole.col_off), (whole.height, whole.width), sizes, place, strict=True
                )
            )
            return Window(left, top, sizes[1], sizes[0])
    sizes = [min(side, WINDOW) for side in shape]
    starts = [  # where blocks begin, as far as may be
        min(max(round((side * share - size / 2) / WINDOW) * WINDOW, 0), side - size)
        for side, size, share in zip(shape, sizes, place, strict=True)
    ]
    return Window(starts[1], starts[0], sizes[1], sizes[0])


def read_tile(
    root: Path,
    scene: Scene,
    verdict: Verdict,
    crs: CRS,
    transform: Affine,
    size: tuple[int, int],
    harmonize: bool = False,
    cloudy: bool = False,
) -> dict[int, NDArray]:
    """Reads the native pixels of a tile, at the size in which they are stored.

    Args:
        root: Of the scene's files.
        scene: The scene.
        verdict: The meaning of its numbers.
        crs: Of the tile.
        transform: Of its finest pixels.
        size: Its height and width in those.
        harmonize: Take the offset off.
        cloudy: Count pixels under clouds as missing, where the scene has a mask of them.

    Returns:
        (C, h, w) per resolution of ``modality.native``, of the bands that the scene has; resolutions without one are
        left out.

    Raises:
        ElsewhereError: If it does not show the tile.
        rasterio.errors.RasterioError: If a file cannot be read.
        ValueError: Likewise.
    """
    modality = MODALITIES[scene.modality]
    extent = array_bounds(*size, transform)
    groups = dict[int, NDArray]()
    for number, image in enumerate(scene.images):
        held = [band for band in modality.bands if band in image.bands]
        parts = dict[str, tuple[NDArray, Affine, CRS, int]]()
        for band, pixels, origin, own, across in _read(root, image, held, verdict, crs, extent, harmonize, cloudy):
            parts[band] = pixels, origin, own, max(round(max(size[0] / across[0], size[1] / across[1])), 1)
        if not parts and not scene.parts:
            raise ElsewhereError("it lies elsewhere than its tile")
        for resolution, bands in modality.native.items():
            if not (there := [band for band in bands if band in held]):
                continue
            factor = min([resolution // 10, *(parts[band][3] for band in there if band in parts)])
            shape = -(-size[0] // factor), -(-size[1] // factor)
            new = np.full((len(there), *shape), modality.nodata, np.float32 if modality.unit == "dB" else np.uint16)
            for place, band in enumerate(there):
                if band in parts:
                    pixels, origin, own, _ = parts[band]
                    grid = from_bounds(*extent, shape[1], shape[0])
                    new[place] = warp(pixels, origin, own, grid, crs, shape, modality.nodata, _averages(modality))
            old = groups.get(resolution)
            if number and old is not None and old.shape == new.shape:
                new = np.where(old == modality.nodata, new, old)
            groups[resolution] = new
    return groups


def read_scene(
    root: Path,
    scene: Scene,
    verdict: Verdict,
    bands: Sequence[str],
    crs: CRS,
    transform: Affine,
    shape: tuple[int, int],
    harmonize: bool = False,
    cloudy: bool = False,
) -> NDArray:
    """Reads bands of a scene on a grid; see :func:`~terrafm_tg.datasets.tiles.warp.warp`.

    Args:
        root: Of its files.
        scene: The scene.
        verdict: The meaning of its numbers.
        bands: Those to read, in this order; ones that the scene lacks are missing everywhere.
        crs: Of the grid.
        transform: Of the grid.
        shape: Its height and width.
        harmonize: Take the offset off.
        cloudy: Count pixels under clouds as missing, where the scene has a mask of them.

    Returns:
        (C, H, W) uint16 digital numbers, 0 where missing, or float32 linear power, -32768 where missing.

    Raises:
        rasterio.errors.RasterioError: If a file cannot be read.
        ValueError: Likewise.
    """
    modality = MODALITIES[scene.modality]
    dtype = np.float32 if modality.unit == "dB" else np.uint16
    result = np.full((len(bands), *shape), modality.nodata, dtype)
    extent = array_bounds(*shape, transform)
    for image in scene.images:
        held = [band for band in bands if band in image.bands]
        for band, pixels, origin, own, _ in _read(root, image, held, verdict, crs, extent, harmonize, cloudy):
            new = warp(pixels, origin, own, transform, crs, shape, modality.nodata)
            place = list(bands).index(band)
            result[place] = np.where(result[place] == modality.nodata, new, result[place])
    return result


def cloud_share(root: Path, scene: Scene, crs: CRS, extent: tuple[float, float, float, float]) -> float | None:
    """Returns the share of a box that a scene's own mask calls cloud or its shadow; None where it has no such mask.

    Args:
        root: Of its files.
        scene: The scene.
        crs: Of the box.
        extent: Left, bottom, right, top.

    Raises:
        rasterio.errors.RasterioError: If the mask cannot be read.
    """
    name = next((name for name in _CLOUDY if name in scene.masks), None)
    if name is None:
        return None
    with open_raster(root, scene.masks[name]) as raster:
        window = needed_window(raster, crs, extent) if raster.crs is not None else None
        if window is None:
            return None
        return float(_CLOUDY[name](raster.read([scene.masks[name].index], window)[0]).mean())


def _averages(modality: Modality) -> bool:
    """Returns whether pixels that are much finer than a tile's are averaged: power is, as speckle is no surface."""
    return modality.unit == "dB"


def _read(
    root: Path, image: Scene, bands: Sequence[str], verdict: Verdict, crs: CRS,
    extent: tuple[float, float, float, float], harmonize: bool, cloudy: bool,
) -> Iterator[tuple[str, NDArray, Affine, CRS, tuple[float, float]]]:  # fmt: skip
    """Reads the part of some bands that a box needs, each file once.

    Yields:
        Band, native pixels (h, w), their transform and CRS, and how many pixels the box is high and wide there; nothing
        of bands that lie elsewhere.
    """
    files: dict[tuple[str, str, int | None], list[str]] = {}
    for band in bands:
        source = image.bands[band]
        files.setdefault((source.path, source.variable, source.time), []).append(band)
    for together in files.values():
        source = image.bands[together[0]]
        try:
            with open_raster(root, source) as raster:
                found = _read_window(root, image, raster, together, verdict, crs, extent, harmonize, cloudy)
        except (RasterioError, ValueError, OSError) as error:
            place = PurePosixPath(source.path).name + f" {source.variable}" * bool(source.variable)
            raise ValueError(f"{place}: {error}") from error
        if found is not None:
            for band, plane in zip(together, found[0], strict=True):
                yield band, plane, *found[1:]


def _read_window(
    root: Path, image: Scene, raster: Raster, bands: Sequence[str], verdict: Verdict, crs: CRS,
    extent: tuple[float, float, float, float], harmonize: bool, cloudy: bool,
) -> tuple[NDArray, Affine, CRS, tuple[float, float]] | None:  # fmt: skip
    """Reads the part of some bands of one file that a box needs; None where it lies elsewhere."""
    if raster.problem:
        raise ValueError(raster.problem)
    own, transform = raster.crs, raster.transform
    if own is None or transform is None:
        if image.placed or image.transform is None:
            raise ValueError("it has no georeference any more")
        box = array_bounds(image.height, image.width, image.transform)
        own, transform = CRS.from_epsg(image.epsg), from_bounds(*box, raster.shape[1], raster.shape[0])
    window = needed_window(_Grid(own, transform, raster.shape), crs, extent)
    if window is None:
        return None
    sizes = (window.height, window.width)
    if own == crs:
        sizes = (extent[3] - extent[1]) / -transform.e, (extent[2] - extent[0]) / transform.a
    if not all(0.5 < count < _MOST_PIXELS for count in sizes):
        raise ValueError(f"its pixels are not of a size for its tile ({transform.a:g} wide)")
    indexes = [image.bands[band].index for band in bands]
    if max(indexes) > raster.count:
        last = bands[indexes.index(max(indexes))]
        raise ValueError(f"band {last} is missing: it has {raster.count} bands")
    stored = raster.read(indexes, window)
    missing = _missing(root, image, raster, window, indexes, cloudy)
    origin = transform * Affine.translation(window.col_off, window.row_off)
    return native(stored, verdict, missing, harmonize), origin, own, sizes


class _Grid:
    """A file's grid, as :func:`needed_window` asks for it."""

    def __init__(self, crs: CRS, transform: Affine, shape: tuple[int, int]) -> None:
        self.crs, self.transform, self.shape = crs, transform, shape


def _missing(
    root: Path, image: Scene, raster: Raster, window: Window, indexes: Sequence[int], cloudy: bool = False
) -> NDArray[np.bool_] | None:
    """Tells the pixels (C, h, w), or (1, h, w), that masks and declared values call missing; None where none does."""
    found = None if (mask := raster.missing(window)) is None else mask[None]
    declared = [raster.declared(index).nodata for index in indexes]
    if len({*declared}) > 1:  # one value for all is the verdict's
        stored = raster.read(indexes, window)
        values = np.array([np.nan if value is None else value for value in declared])
        found = (stored == values[:, None, None]) | (False if found is None else found)
    tests = dict.fromkeys(_ABSENT, lambda values: values == 0) | (_CLOUDY if cloudy else {})
    with ExitStack() as stack:
        for name in (name for name in tests if name in image.masks):
            source = image.masks[name]
            other = raster if _same_file(source, image, raster) else stack.enter_context(open_raster(root, source))
            values = _nearest(other, source.index, window, raster.shape)
            found = tests[name](values)[None] | (False if found is None else found)
    return found


def _same_file(source: BandSource, image: Scene, raster: Raster) -> bool:
    """Tells if a mask is a band of the file that is open: all of a stack are in one."""
    files = {(s.path, s.variable, s.time) for s in image.bands.values()}
    return files == {(source.path, source.variable, source.time)} and source.index <= raster.count


def _nearest(mask: Raster, index: int, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """Reads a mask over a window of an image of another size that shows the same place: its nearest pixels."""
    if mask.shape == shape:
        return mask.read([index], window)[0]
    places = []
    for start, size, own, other in zip(
        (window.row_off, window.col_off), (window.height, window.width), shape, mask.shape, strict=True
    ):
        places.append(((np.arange(start, start + size) + 0.5) * other / own).astype(int).clip(0, other - 1))
    part = Window.from_slices(*((int(p[0]), int(p[-1]) + 1) for p in places))
    values = mask.read([index], part)[0]
    return values[np.ix_(places[0] - places[0][0], places[1] - places[1][0])]

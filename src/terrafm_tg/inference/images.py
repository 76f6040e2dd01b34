"""Images: all sensors of one place, read together in parts as float32 pixels of 10 m."""

import abc
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds

from terrafm_tg.datasets.scenes.pixels import ElsewhereError, cloud_share, read_tile, suppress_damage
from terrafm_tg.datasets.scenes.scene import Scene
from terrafm_tg.datasets.source import open_tiles
from terrafm_tg.datasets.tiles.bands import fill_absent
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.pixels import to_ten_meters
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import Verdict
from terrafm_tg.utils.remote import OF_THE_FILE, RemoteError

#: Behind a modality's name: its image of the first of two dates, where a head compares them.
BEFORE = "_before"
#: Pixels of 10 m that bands of 10, 20 and 60 m all end on.
_EVEN = 6
_BLOCK = 504  # pixels along each side of what is warped at once
_ALIGNED = 1e-3  # of a pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class Image(abc.ABC):
    """All that is known of one place, on one grid.

    Args:
        name: Of what is written; unique among the images of a source.
        crs: Of the grid, as text.
        transform: From its pixels of 10 m to the CRS, north up.
        height: In pixels of 10 m.
        width: Likewise.
        products: Names of the products that it is made of, by modality.
        dates: When they were acquired (ISO 8601, UTC), by modality; those that are known.
        cloud: Cloud cover of the optical product in percent, where it is told.
    """

    name: str
    crs: str
    transform: Affine
    height: int
    width: int
    products: Mapping[str, Sequence[str]]
    dates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cloud: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels of 10 m."""
        return self.height, self.width

    def read(
        self, rows: slice, columns: slice, names: Sequence[str] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
        """Reads a part.

        Args:
            rows: In pixels of 10 m; the part may go beyond the image, where all is missing.
            columns: Likewise.
            names: Modalities to read; all where None.

        Returns:
            By modality that shows anything there (C, h, w) in stem order and the modality's unit, NaN where missing;
            and what could not be read, in words, which is missing, too.

        Raises:
            RemoteError: If a server cannot be read.
        """
        shape = rows.stop - rows.start, columns.stop - columns.start
        inner = [
            slice(max(part.start, 0), min(part.stop, size))
            for part, size in zip((rows, columns), self.shape, strict=True)
        ]
        if any(part.start >= part.stop for part in inner):
            return {}, []
        found, damage = {}, list[str]()
        for name in self.products if names is None else names:
            if name not in self.products:
                continue
            pixels, problems = self._read(name, inner[0], inner[1])
            damage += problems
            if pixels is not None and np.isfinite(pixels).any():
                if pixels.shape[1:] != shape:
                    whole = np.full((len(pixels), *shape), np.nan, np.float32)
                    top, left = inner[0].start - rows.start, inner[1].start - columns.start
                    whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
                    pixels = whole
                found[name] = pixels
        return found, damage

    def clouds(self, rows: slice, columns: slice) -> float | None:
        """Returns the share of a part that the product's own mask calls cloud or shadow; None where there is none."""
        return None

    @abc.abstractmethod
    def _read(self, name: str, rows: slice, columns: slice) -> tuple[NDArray[np.float32] | None, list[str]]:
        """Reads a part that lies in the image of one modality; see :meth:`read`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneImage(Image):
    """Scenes of one place, the first of them on whose grid the others are put.

    Args:
        root: Of their files.
        scenes: Each modality's, with verdicts; where several show a pixel it is the first one's.
        cloudy: Count pixels as missing that the product's own mask calls cloud or its shadow.
    """

    root: Path
    scenes: Mapping[str, Sequence[tuple[Scene, Verdict]]]
    cloudy: bool = False

    def _read(self, name: str, rows: slice, columns: slice) -> tuple[NDArray[np.float32] | None, list[str]]:
        result, problems = None, []
        for number, (scene, _) in enumerate(self.scenes[name]):
            try:
                pixels = (
                    self._cut(name, number, rows, columns)
                    if self._fits(scene)
                    else self._warped(name, number, rows, columns)
                )
            except (RasterioError, ValueError, ArithmeticError, OSError) as error:
                if isinstance(error, RemoteError) and not isinstance(error, OF_THE_FILE):
                    raise
                problems.append(f"{scene.product}: {error}")
                continue
            if pixels is not None:
                result = pixels if result is None else np.where(np.isfinite(result), result, pixels)
                if np.isfinite(result).any(axis=0).all():
                    break
        return result, problems

    def clouds(self, rows: slice, columns: slice) -> float | None:
        """Returns the share of a part under clouds, by the mask of the first optical scene that has one."""
        place = self.transform * Affine.translation(columns.start, rows.start)
        extent = array_bounds(rows.stop - rows.start, columns.stop - columns.start, place)
        for scene in (scene for name in self.scenes if name != "s1rtc" for scene, _ in self.scenes[name]):
            with suppress_damage():
                if (share := cloud_share(self.root, scene, _crs(self.crs), extent)) is not None:
                    return share
        return None

    def _fits(self, scene: Scene) -> bool:
        """Tells whether a scene's pixels begin where the image's do, or a whole number of them away."""
        if scene.parts or scene.transform is None or f"EPSG:{scene.epsg}" != self.crs:
            return False
        place = ~self.transform * (scene.transform.c, scene.transform.f)
        times = scene.transform.a / self.transform.a
        return all(abs(x - round(x)) < _ALIGNED for x in (*place, times))

    def _warped(self, name: str, number: int, rows: slice, columns: slice) -> NDArray[np.float32] | None:
        """Reads a part of a scene on another grid, in blocks that do not depend on the part.

        GDAL's warp is exact to a hundredth of a pixel, and another one for each part that is asked for.
        """
        result = None
        for top in range(rows.start // _BLOCK * _BLOCK, rows.stop, _BLOCK):
            for left in range(columns.start // _BLOCK * _BLOCK, columns.stop, _BLOCK):
                block = _block(self, name, number, top, left)
                if block is None:
                    continue
                if result is None:
                    shape = len(block), rows.stop - rows.start, columns.stop - columns.start
                    result = np.full(shape, np.nan, np.float32)
                y0, x0 = max(top, rows.start), max(left, columns.start)
                y1, x1 = min(top + block.shape[1], rows.stop), min(left + block.shape[2], columns.stop)
                result[:, y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = block[
                    :, y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return result

    def _cut(self, name: str, number: int, rows: slice, columns: slice) -> NDArray[np.float32] | None:
        """Reads a part of a scene; None where it lies elsewhere."""
        scene, verdict = self.scenes[name][number]
        # Bands of 60 m are cut on their own pixels, and interpolated with their neighbors beyond the part.
        around = [
            slice(max(part.start // _EVEN - 1, 0) * _EVEN, (min(-(-part.stop // _EVEN) + 1, -(-size // _EVEN))) * _EVEN)
            for part, size in zip((rows, columns), self.shape, strict=True)
        ]
        shape = around[0].stop - around[0].start, around[1].stop - around[1].start
        place = self.transform * Affine.translation(around[1].start, around[0].start)
        modality = MODALITIES[name]
        try:
            groups = read_tile(self.root, scene, verdict, _crs(self.crs), place, shape, True, self.cloudy)
        except ElsewhereError:
            return None
        held = np.array([any(band in image.bands for image in scene.images) for band in modality.bands])
        tensors = {r: torch.from_numpy(x) for r, x in fill_absent(groups, modality, held, shape).items()}
        top, left = rows.start - around[0].start, columns.start - around[1].start
        pixels = to_ten_meters(tensors, modality, shape).numpy()
        return pixels[:, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


@dataclass(frozen=True, kw_only=True, eq=False)
class TileImage(Image):
    """A tile of an archive, a folder's index or a packed store.

    Args:
        root: Folder or address of the archive.
        row: Of the tile in its index.
        settings: Of its dataset, by name, as JSON has them.
    """

    root: str
    row: int
    settings: tuple[tuple[str, Any], ...] = ()

    def _read(self, name: str, rows: slice, columns: slice) -> tuple[NDArray[np.float32] | None, list[str]]:
        sample = _tile(self.root, self.settings, self.row)
        if isinstance(sample, str):
            return None, [sample]
        pixels = sample.get(name)
        return (None if pixels is None else pixels[:, rows, columns]), []


_blocks: WeakKeyDictionary[SceneImage, OrderedDict[tuple[Any, ...], NDArray[np.float32] | None]] = WeakKeyDictionary()
_KEPT = 8  # blocks of an image: those that the next part shares


def _block(image: SceneImage, name: str, number: int, top: int, left: int) -> NDArray[np.float32] | None:
    """Reads a block, or takes it from the last few."""
    kept, key = _blocks.setdefault(image, OrderedDict()), (name, number, top, left)
    if key not in kept:
        ends = (min(start + _BLOCK, size) for start, size in zip((top, left), image.shape, strict=True))
        rows, columns = (slice(start, end) for start, end in zip((top, left), ends, strict=True))
        kept[key] = image._cut(name, number, rows, columns)
        while len(kept) > _KEPT:
            kept.popitem(last=False)
    return kept[key]


@lru_cache(64)
def _crs(text: str) -> CRS:
    return CRS.from_user_input(text)


@lru_cache(4)
def opened_tiles(root: str, settings: tuple[tuple[str, Any], ...]) -> TileDataset:
    """Opens a dataset of tiles, once per process."""
    return open_tiles(root, **dict(settings))


@lru_cache(2)  # the next tile is read while this one is computed
def _tile(root: str, settings: tuple[tuple[str, Any], ...], row: int) -> dict[str, NDArray[np.float32]] | str:
    """Reads a tile in all its modalities; what is wrong with it, in words, where it is damaged."""
    dataset = opened_tiles(root, settings)
    try:
        sample = dataset[dataset.tile_slice(row)]
    except DamagedTileError as error:
        return str(error)
    height, width = shape_of(dataset, row)
    found = {}
    for modality in dataset.modalities:
        groups = {r: sample[key] for r in modality.native if (key := modality.native_key(r)) in sample}
        if groups:
            found[modality.name] = to_ten_meters(groups, modality, (height, width)).numpy()
    return found


def shape_of(dataset: TileDataset, row: int) -> tuple[int, int]:
    """Returns the height and width of a tile in pixels of 10 m."""
    if "height" not in dataset.table:
        return dataset.tile_size, dataset.tile_size
    return int(dataset.table["height"].iat[row]), int(dataset.table["width"].iat[row])


def bounds_of(image: Image) -> tuple[float, float, float, float]:
    """Returns left, bottom, right and top of an image in its CRS."""
    return array_bounds(image.height, image.width, image.transform)


def renamed(images: Sequence[Image]) -> list[Image]:
    """Gives images names that are those of files, whatever a catalog calls them, and of one name a number each."""
    seen: dict[str, int] = {}
    named = []
    for image in images:
        image = replace(image, name=re.sub(r"[^\w.+-]+", "_", image.name).strip(".") or "image")
        count = seen[image.name] = seen.get(image.name, 0) + 1
        named.append(image if count == 1 else replace(image, name=f"{image.name}_{count}"))
    return named

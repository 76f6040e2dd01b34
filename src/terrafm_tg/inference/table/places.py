"""A vector per tile, point or polygon: of windows laid over them, pooled."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import batched
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from torch import Tensor

from terrafm_tg.inference.engine import Spent
from terrafm_tg.inference.images import Image
from terrafm_tg.inference.predictor import Encoder
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models.inputs import PATCH_SIZE

_PATCH = PATCH_SIZE


class PlaceWindow(NamedTuple):
    """A window of an image that a vector is made of.

    Args:
        row: Of the vector in its table; several windows of one row are averaged.
        top: First row of the window, in pixels of 10 m.
        left: First column.
        height: In pixels, a multiple of 16.
        width: Likewise.
        share: How much of each token belongs to the row's place, (h, w) of 0 to 1; None for all.
    """

    row: int
    top: int
    left: int
    height: int
    width: int
    share: NDArray[np.float32] | None = None


@dataclass
class PlaceVectors:
    """Vectors of places, in the order of their rows.

    Args:
        rows: Numbers of the rows that show anything, int64 (n,).
        values: float32 (n, d): pooled as was asked, one pooling behind the other.
        sensors: Modalities that each was made of, ``+`` between them.
        valid: Share of the window's pixels that any sensor showed, (n,).
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    sensors: list[str]
    valid: NDArray[np.float32]


def tile_places(image: Image, size: int) -> list[PlaceWindow]:
    """Lays windows over an image side by side; those at its right and lower border are moved inwards.

    Args:
        image: The image.
        size: Edge of a window in pixels; an image that is smaller is one window.
    """
    starts = []
    for length in image.shape:
        span = _span(length, size)
        starts.append(sorted({*range(0, max(length - span, 0) + 1, span), max(length - span, 0)}))
    height, width = (_span(length, size) for length in image.shape)
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    return [PlaceWindow(row, top, left, height, width) for row, (top, left) in enumerate(corners)]


def _span(length: int, size: int) -> int:
    """Returns the edge of a window on an axis: whole tokens, as far as the image goes."""
    return min(size, -(-length // _PATCH) * _PATCH)


def geometry_places(image: Image, shapes: gpd.GeoSeries, size: int) -> list[PlaceWindow]:
    """Lays windows over points and polygons: one around each middle, or as many as a larger polygon takes.

    A window is moved so that it lies in the image, as far as it is large enough.

    Args:
        image: The image.
        shapes: In the image's CRS.
        size: Edge of a window in pixels.

    Returns:
        Windows of the shapes whose middle (points) or any part (polygons) lies in the image, by their place in the
        series.
    """
    inverse = ~image.transform
    height, width = (_span(length, size) for length in image.shape)
    places = []
    frame = shapely.box(0, 0, image.width, image.height)
    for row, shape in enumerate(shapes):
        if shape is None or shape.is_empty:
            continue
        local = shapely.transform(shape, lambda xy: np.column_stack(inverse * (xy[:, 0], xy[:, 1])))
        if not frame.intersects(local):
            continue
        if shape.area == 0:
            x, y = local.centroid.x, local.centroid.y
            top, left = (
                _inside(round(middle / _PATCH) * _PATCH - span // 2 // _PATCH * _PATCH, span, length)
                for middle, span, length in zip((y, x), (height, width), image.shape, strict=True)
            )
            places.append(PlaceWindow(row, top, left, height, width))
            continue
        local = local.intersection(frame)
        x0, y0, x1, y1 = local.bounds
        for top in _along(y0, y1, height, image.height):
            for left in _along(x0, x1, width, image.width):
                place = Affine(_PATCH, 0, left, 0, _PATCH, top)
                share = _covered(local, place, (height // _PATCH, width // _PATCH))
                if share.any():
                    places.append(PlaceWindow(row, top, left, height, width, share))
    return places


def _inside(start: int, span: int, length: int) -> int:
    return max(min(start, length - span), 0)


def _along(low: float, high: float, span: int, length: int) -> list[int]:
    """Returns the starts of windows side by side over a stretch: one around its middle where that is enough."""
    if high - low <= span:
        return [_inside(round((low + high - span) / 2 / _PATCH) * _PATCH, span, length)]
    first = int(low // _PATCH * _PATCH)
    return sorted({_inside(start, span, length) for start in range(first, int(high), span)})


_FINE = 4  # along each side of a token, in which its share of a polygon is counted


def _covered(shape: shapely.Geometry, place: Affine, size: tuple[int, int]) -> NDArray[np.float32]:
    """Measures the share of each token that a polygon covers; where it is less than a token, that of its middle."""
    fine = rasterize(
        [(shape, 1)], (size[0] * _FINE, size[1] * _FINE), transform=place * Affine.scale(1 / _FINE), dtype=np.uint8
    )
    share = fine.reshape(size[0], _FINE, size[1], _FINE).mean((1, 3)).astype(np.float32)
    if not share.any():
        x, y = ~place * shape.representative_point().coords[0]
        if 0 <= y < size[0] and 0 <= x < size[1]:
            share[int(y), int(x)] = 1
    return share


def embed_places(
    jobs: Sequence[tuple[Image, PlaceWindow]], encoder: Encoder, pooling: str, min_valid: float = 0.5,
    spent: Spent | None = None,
) -> PlaceVectors:  # fmt: skip
    """Computes the vectors of places.

    Args:
        jobs: Windows, in the order of their rows, with their images.
        encoder: The model.
        pooling: ``class``, ``mean`` or ``both``.
        min_valid: Least share of a token's pixels that a sensor must show to count there.
        spent: Gets the time that it took, the windows, and what could not be read.

    Returns:
        Vectors of the rows that any sensor shows.
    """
    sums: dict[int, NDArray[np.float32]] = {}
    weights: dict[int, float] = {}
    sensors: dict[int, set[str]] = {}
    valid: dict[int, list[float]] = {}
    chunks, spent = list(batched(jobs, encoder.batch_size)), Spent() if spent is None else spent
    spent.windows += len(jobs)
    spent.pixels += sum(place.height * place.width for _, place in jobs)
    with ThreadPoolExecutor(1) as reader:  # the next windows come while these are computed

        def begin(number: int) -> Future[list[_Window]]:
            return reader.submit(copy_context().run, _windows, chunks[number], encoder, min_valid, spent.damaged.append)

        coming = begin(0) if chunks else None
        for number in range(len(chunks)):
            assert coming is not None
            start = time.perf_counter()
            windows = coming.result()
            coming = begin(number + 1) if number + 1 < len(chunks) else None
            spent.reading += time.perf_counter() - start
            start = time.perf_counter()
            groups: dict[tuple[Any, ...], list[_Window]] = {}
            for window in windows:
                size = window.place.height, window.place.width
                groups.setdefault((*window.images, *size), []).append(window)
                valid.setdefault(window.place.row, []).append(window.valid)
            for group in groups.values():
                for place, vector, weight in _pooled(group, encoder, pooling):
                    sums[place.row] = sums.get(place.row, 0) + vector * np.float32(weight)
                    weights[place.row] = weights.get(place.row, 0) + weight
                    sensors.setdefault(place.row, set()).update(group[0].images)
            spent.computing += time.perf_counter() - start
    rows = sorted(sums)
    return PlaceVectors(
        np.array(rows, np.int64),
        np.stack([sums[row] / np.float32(weights[row]) for row in rows]) if rows else np.empty((0, 0), np.float32),
        ["+".join(name for name in MODALITIES if name in sensors[row]) for row in rows],
        np.array([np.mean(valid[row]) for row in rows], np.float32),
    )


class _Window(NamedTuple):
    """A window's place, prepared pixels and shown tokens by modality, and the share of its pixels that any shows."""

    place: PlaceWindow
    images: dict[str, Tensor]
    shown: dict[str, Tensor]
    valid: float


def _windows(
    jobs: Sequence[tuple[Image, PlaceWindow]], encoder: Encoder, min_valid: float, told: Callable[[str], object]
) -> list[_Window]:
    """Reads windows; those that show nothing are left out."""
    found = []
    for image, place in jobs:
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        pixels, damage = image.read(rows, columns, encoder.names)
        for sentence in damage:
            told(sentence)
        shown = {name: _shown(x, min_valid) for name, x in pixels.items()}
        pixels = {name: x for name, x in pixels.items() if shown[name].any()}
        if pixels:
            some = np.stack([np.isfinite(x).any(axis=0) for x in pixels.values()]).any(axis=0)
            shown = {name: shown[name] for name in pixels}
            found.append(_Window(place, encoder.prepare(pixels), shown, float(some.mean())))
    return found


def _pooled(
    group: Sequence[_Window], encoder: Encoder, pooling: str
) -> Iterator[tuple[PlaceWindow, NDArray[np.float32], float]]:
    """Computes windows of one size and the same modalities: place, vector and weight of those with any."""
    images = {name: torch.stack([window.images[name] for window in group]) for name in group[0].images}
    shown = {name: torch.stack([window.shown[name] for window in group]) for name in images}
    share = torch.stack([*shown.values()]).any(0).float()
    for number, window in enumerate(group):
        if window.place.share is not None:
            share[number] *= torch.from_numpy(window.place.share)
    weights = share.sum((1, 2)).tolist()
    vectors = encoder.pool(images, shown, share, pooling)
    yield from ((w.place, v, weight) for w, v, weight in zip(group, vectors, weights, strict=True) if weight)


def _shown(image: NDArray[np.float32], min_valid: float) -> Tensor:
    """Tells at which tokens an image (C, h, w) shows enough, bool (h / 16, w / 16)."""
    valid = torch.from_numpy(np.isfinite(image).any(axis=0)).float()
    blocks = valid.unflatten(0, (-1, _PATCH)).unflatten(2, (-1, _PATCH))
    return blocks.mean((1, 3)) >= max(min_valid, 1e-9)

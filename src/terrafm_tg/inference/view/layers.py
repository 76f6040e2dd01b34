"""Layers of a page: vectors of 8 bits, classes, scores and pictures, each within a number of bytes."""

import io
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terrafm_tg.errors import TerraFMError

from .map_file import MapFile

#: Value of a missing vector in all of its dimensions.
MISSING = -128
#: Number of a missing class.
NO_CLASS = 255
#: Pixels that the principal directions are computed from.
_SAMPLE = 20_000
#: Longest edge of a picture, and the most pixels of a map that phones can draw.
_EDGE, _MOST = 2048, 4_000_000


def fit_basis(rasters: Sequence[MapFile], dimensions: int) -> tuple[NDArray, float]:
    """Computes the directions in which vectors of length one are written down.

    The first is that of their mean, so that products of vectors stay what they are; the others are the principal
    components of what is orthogonal to it.

    Args:
        rasters: Maps of embeddings of one model.
        dimensions: Number of directions.

    Returns:
        The orthonormal directions (depth, dimensions), and the share of the variance that they keep.
    """
    depth = rasters[0].depth
    products, mean, count = np.zeros((depth, depth)), np.zeros(depth), 0
    for raster in rasters:
        for _, _, block in raster.blocks(_SAMPLE):
            vectors = _unit(block[np.isfinite(block).all(-1)]).astype(np.float64)
            vectors = vectors[np.isfinite(vectors[:, 0])]
            products, mean, count = products + vectors.T @ vectors, mean + vectors.sum(0), count + len(vectors)
    if not count:
        return np.eye(depth, dimensions), 1.0
    mean /= max(np.linalg.norm(mean), np.finfo(float).tiny)
    apart = np.eye(depth) - np.outer(mean, mean)
    # What is orthogonal to the mean has none: the moments are its covariance. The mean itself comes out last.
    variance, directions = np.linalg.eigh(apart @ products @ apart / count - np.outer(mean, mean))
    variance, directions = np.maximum(variance[::-1], 0), directions[:, ::-1]
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(depth)])
    basis = np.column_stack([mean, directions[:, : dimensions - 1]])
    return basis, float(variance[: dimensions - 1].sum() / max(variance.sum(), np.finfo(float).tiny))


def vector_layer(raster: MapFile, basis: NDArray, limit: int) -> dict[str, Any]:
    """Reduces a map of embeddings to 8-bit vectors, (dimensions, h, w) of the page.

    Pixels of one cell are averaged where the map is too large.

    Args:
        raster: The map.
        basis: (depth, dimensions) of :func:`fit_basis`.
        limit: Bytes that it may take in the page.
    """
    depth = basis.shape[1]
    factor = _factor(raster, depth, limit)
    values = _average(raster, factor, depth, lambda vectors: _unit(vectors) @ basis.astype(np.float32))
    there = np.isfinite(values[..., 0])
    known = values[there] if there.any() else np.zeros((1, depth), np.float32)
    low, high = known.min(0), known.max(0)
    scale, offset = np.maximum((high - low) / 254, np.finfo(np.float32).tiny), (high + low) / 2
    stored = np.clip(np.rint((values - offset) / scale), -127, 127)
    stored = np.where(there[..., None], stored, MISSING).astype(np.int8)
    shown = range(min(1, depth - 1), min(4, depth))
    ends = np.percentile(known, (2, 98), axis=0)
    return _layer(raster, factor, np.moveaxis(stored, -1, 0)) | {
        "scale": scale.tolist(),
        "offset": offset.tolist(),
        "colors": [[k, *ends[:, k].tolist()] for k in shown],
    }


def score_layer(raster: MapFile, limit: int) -> dict[str, Any]:
    """Reduces each band of a map of numbers to 255 levels between its ends; 0 is missing."""
    factor = _factor(raster, raster.depth, limit)
    stored, bands = [], list[list[Any]]()
    for name, values in zip(raster.bands, np.moveaxis(_average(raster, factor, raster.depth), -1, 0), strict=True):
        there = np.isfinite(values)
        low, high = (float(values[there].min()), float(values[there].max())) if there.any() else (0.0, 0.0)
        level = 1 + np.rint((values - low) / max(high - low, np.finfo(np.float32).tiny) * 254)
        stored.append(np.where(there, level, 0).astype(np.uint8))
        bands.append([name or f"Band {len(bands) + 1}", low, high])
    return _layer(raster, factor, np.stack(stored)) | {"bands": bands}


def class_layer(raster: MapFile, limit: int) -> dict[str, Any]:
    """Reduces a map of classes to the most frequent one of each cell; classes are numbered as they are listed."""
    factor = _factor(raster, 1, limit)
    shape = -(-raster.height // factor), -(-raster.width // factor)
    stored, there = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, values, valid in raster.strips(factor):
        rows = slice(row // factor, row // factor - (-len(values) // factor))
        most = np.zeros(stored[rows].shape, np.int64)
        for code in np.unique(values[valid]):
            count = _sums(((values == code) & valid).astype(np.int64), factor)
            stored[rows][count > most] = code
            np.maximum(most, count, out=most)
        there[rows] = most > 0
    seen = np.unique(stored[there]).tolist()
    if len(seen) >= NO_CLASS:
        raise TerraFMError(f"{raster.path} has {len(seen)} classes: a page shows at most {NO_CLASS - 1}.")
    number = np.where(there, np.searchsorted(seen, stored), NO_CLASS).astype(np.uint8)
    colors, names = raster.colors(), raster.class_names()
    classes = [[names.get(code, f"Class {code}"), list(colors.get(code, (128, 128, 128))[:3])] for code in seen]
    return _layer(raster, factor, number) | {"classes": classes}


def picture_layer(raster: MapFile, limit: int) -> dict[str, Any]:
    """Compresses a picture as WebP, in fewer pixels until it takes no more than ``limit`` bytes of the page."""
    edge = min(_EDGE, max(raster.height, raster.width))
    while True:
        found = raster.picture(edge)
        file = io.BytesIO()
        Image.fromarray(found, "RGBA").save(file, "WEBP", quality=82, method=4)
        if len(file.getvalue()) * 4 / 3 <= limit or edge <= 64:
            break
        edge = int(edge * 0.75)
    west, south, east, north = raster.bounds
    place = [west, north, (east - west) / found.shape[1], (north - south) / found.shape[0]]
    return _about(raster, max(raster.height, raster.width) / max(found.shape[:2])) | {
        "place": place,
        "height": found.shape[0],
        "width": found.shape[1],
        "data": b64encode(file.getvalue()).decode(),
    }


def _unit(vectors: NDArray) -> NDArray:
    """Scales vectors to length one; those of length zero count as missing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _factor(raster: MapFile, depth: int, limit: int) -> int:
    """Pixels of the map along an edge of the page's cells, such that ``depth`` bytes per cell fit the limit."""
    most = max(1, min(limit * 3 / 4 / depth, _MOST))
    factor = 1
    while -(-raster.height // factor) * -(-raster.width // factor) > most:
        factor += 1
    return factor


def _sums(values: NDArray, factor: int) -> NDArray:
    """Sums values over cells that begin at the first row and column."""
    for axis in (0, 1):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], factor), axis=axis)
    return values


def _average(raster: MapFile, factor: int, depth: int, change: Callable[[NDArray], NDArray] = np.asarray) -> NDArray:
    """Averages over cells, block by block, what a function makes of the pixels that are there; NaN where none is."""
    shape = -(-raster.height // factor), -(-raster.width // factor)
    sums, counts = np.zeros((*shape, depth), np.float32), np.zeros((*shape, depth), np.float32)
    for row, column, block in raster.blocks():
        values = change(block)
        there = np.isfinite(values)
        # Cells begin at multiples of the factor in the map, not in the block.
        before = ((row % factor, 0), (column % factor, 0), (0, 0))
        rows = slice(row // factor, -(-(row + len(block)) // factor))
        columns = slice(column // factor, -(-(column + block.shape[1]) // factor))
        sums[rows, columns] += _sums(np.pad(np.where(there, values, 0), before), factor)
        counts[rows, columns] += _sums(np.pad(there.astype(np.float32), before), factor)
    with np.errstate(invalid="ignore"):
        return sums / counts


def _about(raster: MapFile, factor: float) -> dict[str, Any]:
    return {"kind": raster.kind, "name": raster.path.name, "factor": factor}


def _layer(raster: MapFile, factor: int, values: NDArray) -> dict[str, Any]:
    left, top, dx, dy = raster.place
    return _about(raster, factor) | {
        "place": [left, top, dx * factor, dy * factor],
        "height": values.shape[-2],
        "width": values.shape[-1],
        "data": b64encode(zlib.compress(values.tobytes(), 6)).decode(),
    }

"""Small maps for pages: embeddings of a few kinds of places, a composite, classes and scores, all of one place."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

#: Colors of the classes in pictures and color tables.
COLORS = np.array([(10, 60, 120), (30, 110, 40), (200, 180, 90), (170, 60, 50)], np.uint8)
NAMES = ["Water", "Forest", "Crops", "Town"]


def classes(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Patches of four classes."""
    y, x = np.mgrid[:height, :width] / 7.0
    wave = np.sin(x + seed) + np.cos(1.3 * y) + np.sin(0.5 * (x + y))
    return np.digitize(wave, [-1.0, 0.2, 1.2]).astype(np.uint8)


def embeddings(labels: NDArray[np.uint8], depth: int = 24, seed: int = 0) -> NDArray[np.float32]:
    """(h, w, depth): a mean, a direction for each class, and noise; a corner is missing."""
    directions = np.random.default_rng(7).normal(size=(4, depth))
    noise = np.random.default_rng(seed).normal(size=(*labels.shape, depth))
    found = (2.0 + directions[labels] + 0.3 * noise).astype(np.float32)
    found[:3, :4] = np.nan
    return found


def write(path: Path, bands: NDArray, transform: Affine, crs: str = "EPSG:32633", **options: object) -> Path:
    """Writes bands (n, h, w) as a GeoTIFF."""
    colors, tags = options.pop("colors", None), options.pop("tags", {})
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, "crs": crs}
    with rasterio.open(path, "w", transform=transform, **profile | options) as file:
        file.write(bands)
        file.update_tags(**tags)
        if colors is not None:
            file.write_colormap(1, {code: (*map(int, color), 255) for code, color in enumerate(colors)})
    return path


def write_scene(folder: Path, name: str = "scene", height: int = 40, width: int = 50, seed: int = 0) -> Path:
    """Writes all kinds of maps of one place; returns the path of the embeddings."""
    place = Affine(160, 0, 500_000, 0, -160, 5_500_000)
    labels = classes(height, width, seed)
    found = embeddings(labels, seed=seed)
    write(folder / f"{name}.tif", np.moveaxis(found, -1, 0), place, nodata=np.nan)
    fine = place * Affine.scale(1 / 4)
    many = labels.repeat(4, 0).repeat(4, 1)
    shade = np.random.default_rng(seed).integers(0, 30, many.shape, dtype=np.uint8)[..., None]
    write(
        folder / f"{name}.preview.tif",
        np.moveaxis(COLORS[many] + shade, -1, 0),
        fine,
        photometric="RGB",
        interleave="pixel",
    )
    write(
        folder / f"{name}.classes.tif",
        many[None],
        fine,
        colors=COLORS,
        nodata=255,
        tags={"classes": json.dumps(dict(enumerate(NAMES)))},
    )
    score = np.hypot(*np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]).astype(np.float32)
    score[-2:] = np.nan
    write(folder / f"{name}.change.tif", score[None], place, nodata=np.nan)
    return folder / f"{name}.tif"


def content_of(page: Path) -> dict[str, Any]:
    """Reads the content of a page as a browser does: up to the first ``</script``."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def layer_of(content: dict[str, Any], kind: str, scene: int = 0) -> dict[str, Any]:
    """The layer of a kind of a scene."""
    layers = [content["layers"][place] for place in content["scenes"][scene]["layers"]]
    (found,) = (layer for layer in layers if layer["kind"] == kind)
    return found


def stored_of(layer: dict[str, Any]) -> NDArray:
    """The stored numbers of a layer: int8 (dimensions, h, w) of vectors, uint8 of scores, or classes (h, w)."""
    found = zlib.decompress(base64.b64decode(layer["data"]))
    shape = layer["height"], layer["width"]
    numbers = np.frombuffer(found, np.int8 if layer["kind"] == "embeddings" else np.uint8)
    return numbers.reshape(shape if layer["kind"] == "classes" else (-1, *shape))


def vectors_of(layer: dict[str, Any]) -> NDArray[np.float64]:
    """The vectors of a layer of embeddings, (h, w, dimensions), NaN where missing."""
    stored = np.moveaxis(stored_of(layer).astype(float), 0, -1)
    return np.where(stored == -128, np.nan, stored * layer["scale"] + layer["offset"])


def cosines_of(vectors: NDArray, row: int, column: int) -> NDArray[np.float64]:
    """Cosines (h, w) of all vectors with one of them."""
    products = vectors @ vectors[row, column]
    return products / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(vectors[row, column])

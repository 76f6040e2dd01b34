"""Maps of embeddings from pixels in memory: simulated and real places with their classes, and seams on flat scenes."""

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pixels import read_tile
from terrafm_tg.datasets.tiles.pixels import to_ten_meters
from terrafm_tg.inference.engine import Spent, WindowSettings, layout_of, predict_rows
from terrafm_tg.inference.images import Image
from terrafm_tg.inference.predictor import Encoder
from terrafm_tg.inference.run import plan_maps
from terrafm_tg.inference.windows import WindowLayout
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.radiometry import Settings
from terrafm_tg.simulation.optics import OpticalScene
from terrafm_tg.simulation.planet import Planet
from terrafm_tg.simulation.product import plan_acquisitions
from terrafm_tg.simulation.radar import observe_radar
from terrafm_tg.simulation.surface import render_ground
from terrafm_tg.utils.progress import with_bar

S1, S2 = "s1rtc", "s2l2a"
_SCENE = 10_980  # pixels along each side of a tile of Sentinel-2


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelImage(Image):
    """An image whose pixels are in memory.

    Args:
        pixels: By modality float32 (C, h, w) in its unit, NaN where missing.
    """

    pixels: Mapping[str, NDArray[np.float32]]

    def _read(self, name: str, rows: slice, columns: slice) -> tuple[NDArray[np.float32], list[str]]:
        return self.pixels[name][:, rows, columns], []


def image_of(pixels: Mapping[str, NDArray[np.float32]], name: str = "image") -> PixelImage:
    """Puts pixels somewhere on the ground."""
    height, width = next(iter(pixels.values())).shape[1:]
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 400_000, 0, -10, 5_400_000)}
    products = {sensor: [name] for sensor in pixels}
    return PixelImage(name=name, **place, height=height, width=width, products=products, pixels=pixels)


class Place(NamedTuple):
    """A simulated cell: its image by both sensors, the class of each pixel, and the cluster of cells that it is of."""

    image: PixelImage
    cover: NDArray[np.int8]
    cluster: int


def simulated_places(count: int, size: int, seed: int) -> list[Place]:
    """Renders the first cells of a planet that have radar: ``size`` pixels, a multiple of 12, in each one's middle."""
    planet, places, cluster, first = Planet(seed), list[Place](), -1, None
    for cell in with_bar(planet.cells(count), "Simulating places"):
        if first is None or max(abs(cell.row - first.row), abs(cell.col - first.col)) > 1:
            first, cluster = cell, cluster + 1
        plan = plan_acquisitions(seed, cell)
        if S1 not in plan:
            continue
        ground = render_ground(planet, cell, size)
        power = observe_radar(ground, plan[S1])
        numbers = OpticalScene(ground, plan[S2], cell.corner[0]).bands("L2A", plan[S2].offset)
        groups = {
            meters: torch.from_numpy(np.stack([np.where(numbers[b] == 0, np.nan, numbers[b]) for b in bands])).float()
            for meters, bands in get_modality(S2).native.items()
        }
        optical = to_ten_meters(groups, get_modality(S2)).numpy() - np.float32(plan[S2].offset)
        radar = 10 * np.log10(np.where(power > 0, power, np.nan))
        image = image_of({S1: radar.astype(np.float32), S2: optical}, f"place{len(places)}")
        places.append(Place(image, ground.land_cover, cluster))
    return places


def real_images(folder: Path) -> list[PixelImage]:
    """Reads chips that radar and optical imagery show, in their own pixels, whatever size these are said to have."""
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for scene, verdict in find_judged(folder, Settings())[1]:
        if scene.modality in (S1, S2):
            grid = CRS.from_epsg(scene.epsg), scene.transform, (scene.height, scene.width)
            groups = read_tile(folder, scene, verdict, *grid, harmonize=True)
            tensors = {meters: torch.from_numpy(group) for meters, group in groups.items()}
            pixels = to_ten_meters(tensors, get_modality(scene.modality)).numpy()
            found.setdefault(scene.product, {})[scene.modality] = pixels
    return [image_of(pixels, name) for name, pixels in sorted(found.items()) if len(pixels) == 2]


class Map(NamedTuple):
    """A map (h, w, D), the windows that it took, and the seconds: of the processor, or of the clock on a GPU."""

    values: NDArray[np.float32]
    windows: int
    seconds: float


def map_of(image: Image, encoder: Encoder, settings: WindowSettings) -> Map:
    """Computes a map by the engine of ``terrafm embed``."""
    clock = time.process_time if encoder.device.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        work = plan_maps([image], encoder, settings, Path(name), lambda image: {})[0]
        work.parts.begin()
        start = clock()
        spent: Spent = predict_rows(image, encoder, layout_of(image, encoder, settings), work.parts, settings)
        seconds = clock() - start
        return Map(np.concatenate([rows for _, rows in work.parts.rows()]), spent.windows, seconds)


def windows_of_scene(settings: WindowSettings) -> int:
    """Counts the windows that a whole tile of Sentinel-2 takes."""
    stride = settings.stride or Encoder.cell
    layout = WindowLayout((_SCENE, _SCENE), Encoder.cell, stride, settings.window, settings.overlap, (0, 0), 64)
    return sum(len(layout.axis(0, y).starts) * len(layout.axis(1, x).starts) for y, x in layout.offsets)


def megabytes(depth: int, dtype: str, stride: int) -> float:
    """Returns the size of a map in MB per square kilometer, uncompressed."""
    return depth * np.dtype(dtype).itemsize * (100 / stride) ** 2 / 1e6


def without_positions(encoder: Encoder) -> Encoder:
    """Returns the same encoder with position embeddings of zero."""
    twin = Encoder(encoder.model, encoder.names, str(encoder.device), encoder.batch_size, encoder.weights)
    model = twin.__dict__["encoder"] = copy.deepcopy(encoder.encoder)
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0
    return twin


def flat_scene(size: int, edge: int | None = None) -> PixelImage:
    """Makes a scene in which each band is at its training mean; left and right of an edge, a deviation below and above.

    Args:
        size: Pixels along each side.
        edge: Its first column right of the edge; no edge where None.
    """
    pixels = {}
    for name in (S1, S2):
        mean, std = (np.array(x, np.float32)[:, None, None] for x in (MODALITIES[name].mean, MODALITIES[name].std))
        side = np.zeros(size) if edge is None else np.where(np.arange(size) < edge, -1, 1)
        pixels[name] = (mean + std * side * np.ones((size, 1))).astype(np.float32)
    return image_of(pixels)


def shown(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tells which vectors (..., D) are not missing."""
    return np.isfinite(vectors).all(-1)


def spread(vectors: NDArray[np.float32]) -> float:
    """Returns the mean squared distance of vectors (..., D) from their mean, of those that are not missing."""
    flat = vectors[shown(vectors)].astype(np.float64)
    return float(np.square(flat - flat.mean(0)).sum(1).mean())


def steps(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the mean squared distance of neighbors of a row, for each column of a map (h, w, D) but the last."""
    return np.square(np.diff(values.astype(np.float64), axis=1)).sum(2).mean(0)


def cut(image: PixelImage, top: int, left: int) -> PixelImage:
    """Cuts off rows at the top and columns on the left."""
    pixels = {name: x[:, top:, left:] for name, x in image.pixels.items()}
    shape = {"height": image.height - top, "width": image.width - left}
    return replace(image, pixels=pixels, transform=image.transform * Affine.translation(left, top), **shape)


class Seams(NamedTuple):
    """Seams of an encoder at an overlap; all are relative to the spread of vectors over the simulated places.

    Args:
        overlap: Share of a window.
        positions: Whether the encoder has its position embeddings.
        imprint: Deviation of the vectors of a constant scene.
        constant: Deviation between neighbors in a constant scene, by column.
        edge: The same with a planted edge.
        moved: Deviation between vectors of the same place where windows lie elsewhere, over simulated places.
    """

    overlap: float
    positions: bool
    imprint: float
    constant: list[float]
    edge: list[float]
    moved: float


def measure_seams(
    encoder: Encoder, places: Sequence[Place], overlaps: Sequence[float], window: int, reference: float
) -> list[Seams]:
    """Measures seams with and without positions.

    Args:
        encoder: The encoder.
        places: Simulated places of at least a window and a half.
        overlaps: To measure at.
        window: Edge of a window in pixels; the scenes have four.
        reference: :func:`spread` of the vectors of simulated places.
    """
    size, shift = 4 * window, window // 32 * 16
    scenes = flat_scene(size), flat_scene(size, size // 2 - window // 3 // 16 * 16 + 8)
    found = []
    for positions, model in ((True, encoder), (False, without_positions(encoder))):
        # Without positions vectors spread otherwise: each model is held against its own.
        own = [map_of(place.image, model, WindowSettings(window)).values for place in places]
        unit = reference if positions else spread(np.concatenate([x.reshape(-1, x.shape[-1]) for x in own]))
        for overlap in overlaps:
            settings = WindowSettings(window, overlap)
            flat, edge = (map_of(scene, model, settings).values for scene in scenes)
            apart = []
            for place in places:
                whole = map_of(place.image, model, settings).values[shift // 16 :, shift // 16 :]
                apart.append(np.square(whole - map_of(cut(place.image, shift, shift), model, settings).values).sum(2))
            lines = [np.sqrt(steps(values) / unit).tolist() for values in (flat, edge)]
            moved = float(np.sqrt(np.nanmean(np.concatenate([x.ravel() for x in apart])) / unit))
            found.append(Seams(overlap, positions, float(np.sqrt(spread(flat) / unit)), *lines, moved))
    return found

"""``python -m benchmarks.embedding_quality``: what pooling, stride, overlap, window, sensors, int8 and PCA cost."""

import csv
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from terrafm_tg.evaluation.knn import knn_predict
from terrafm_tg.inference.engine import WindowSettings
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.predictor import POOLINGS, Encoder
from terrafm_tg.inference.products import Reduction, write_cog
from terrafm_tg.inference.table.places import embed_places, tile_places
from terrafm_tg.utils.files import write_json
from terrafm_tg.utils.progress import with_bar

from . import command
from .embedding_figures import Estimate, draw_quality, draw_seams, print_tables
from .embedding_maps import (
    S1,
    S2,
    Map,
    PixelImage,
    Place,
    map_of,
    measure_seams,
    megabytes,
    real_images,
    shown,
    simulated_places,
    spread,
    windows_of_scene,
)  # fmt: skip

type Vectors = NDArray[np.float32]
_FINE = 4  # pixels along each side of what is classified: the finest stride
_NEAR = 10  # neighbors of which some should be found again
_ROUNDS = 2000  # of the bootstrap
SENSORS = {"both": (S1, S2), "optical": (S2,), "radar": (S1,)}
#: What is stored: type and principal components.
STORED: tuple[tuple[str, int | None], ...] = (
    ("float32", None), ("float16", None), ("int8", None), ("float32", 128), ("float32", 64), ("float32", 32),
    ("float32", 16), ("int8", 128), ("int8", 64), ("int8", 32), ("int8", 16),
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way of making a map.

    Args:
        title: What differs from the default.
        settings: Of the windows.
        sensors: Key of :data:`SENSORS`.
        every: Of how many places one is looked at; dense maps take long.
    """

    title: str
    settings: WindowSettings = field(default_factory=WindowSettings)
    sensors: str = "both"
    every: int = 1


DEFAULT = Way("default: stride 16, overlap 0.5, window 224, both sensors")
WAYS = (
    DEFAULT,
    Way("optical alone", sensors="optical"),
    Way("radar alone", sensors="radar"),
    *(Way(f"overlap {overlap}", WindowSettings(overlap=overlap)) for overlap in (0, 0.25, 0.75)),
    *(Way(f"window {window}", WindowSettings(window)) for window in (96, 160, 320)),
    Way("stride 8", WindowSettings(stride=8), every=2),
    Way("stride 4", WindowSettings(stride=4), every=4),
)


def estimate(values: NDArray[Any], cluster: NDArray[np.int64], seed: int = 0) -> Estimate:
    """Estimates a mean by a bootstrap over clusters, whose values are not independent."""
    _, number = np.unique(cluster, return_inverse=True)
    sums, counts = np.bincount(number, values.astype(np.float64)), np.bincount(number)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), _ROUNDS)
    low, high = np.quantile((draws @ sums) / (draws @ counts), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def knn_right(vectors: Vectors, labels: NDArray[np.int64], cluster: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tells which vectors get their class from the k nearest of all other clusters, (n,)."""
    x, y = torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(labels)
    right = np.zeros(len(labels), bool)
    for one in np.unique(cluster):
        own = torch.from_numpy(cluster == one)
        right[cluster == one] = (knn_predict(x[own], x[~own], y[~own]) == y[own]).numpy()
    return right


def recall(exact: Vectors, stored: Vectors, near: int = _NEAR) -> float:
    """Returns the share of the nearest others by exact vectors that are among the nearest by stored ones."""
    hits = [_nearest(x, x, near, True) for x in (exact, stored)]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(*hits, strict=True)]))


def same_place(query: Vectors, bank: Vectors, near: int = _NEAR) -> float:
    """Returns the share of vectors (n, D) of one sensor that find their place among the nearest of another.

    Each sensor's mean is taken off: a constant gap between sensors says nothing of places.
    """
    nearest = _nearest(query - query.mean(0), bank - bank.mean(0), near, False)
    return float((nearest == np.arange(len(query))[:, None]).any(1).mean())


def _nearest(query: Vectors, bank: Vectors, near: int, others: bool) -> NDArray[np.int64]:
    """Finds the nearest by cosine, (n, near); ``others`` than the query itself."""
    a, b = (torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(x)), dim=1) for x in (query, bank))
    cosine = a @ b.T
    return (cosine.fill_diagonal_(-2) if others else cosine).topk(near, dim=1).indices.numpy()


class Sample(NamedTuple):
    """Small squares of places: number of the place, first row and column in pixels, class, and cluster, (n,) each."""

    place: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    label: NDArray[np.int64]
    cluster: NDArray[np.int64]

    def of(self, maps: Mapping[int, Vectors], stride: int) -> Vectors:
        """Returns the vectors that lie over them."""
        return np.stack([maps[p][r // stride, c // stride] for p, r, c in zip(*self[:3], strict=True)])

    def within(self, chosen: Iterable[int]) -> NDArray[np.bool_]:
        """Tells which are of some places."""
        return np.isin(self.place, list(chosen))


def majority(cover: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Returns the most frequent class of each square of a cover (H, W), the first of equal ones."""
    h, w = (n // size for n in cover.shape)
    blocks = cover[: h * size, : w * size].reshape(h, size, w, size).swapaxes(1, 2).reshape(h, w, -1)
    return (blocks[..., None] == np.arange(int(cover.max()) + 1)).sum(2).argmax(-1)


def draw_sample(places: Sequence[Place], count: int, seed: int = 0) -> Sample:
    """Draws squares of :data:`_FINE` pixels, ``count`` of each place."""
    rng, parts = np.random.default_rng(seed), []
    for number, place in enumerate(places):
        cover = majority(place.cover, _FINE)
        row, column = (rng.integers(n, size=count) for n in cover.shape)
        one = np.full(count, number), _FINE * row, _FINE * column, cover[row, column], np.full(count, place.cluster)
        parts.append(one)
    return Sample(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def score_ways(
    encoders: Mapping[str, Encoder], places: Sequence[Place], sample: Sample
) -> tuple[list[dict[str, Any]], dict[str, dict[int, Vectors]]]:
    """Makes maps in all ways and scores them, each against the default at the same squares.

    Returns:
        A row per way, and the maps at the default's windows by sensors and place.
    """
    rows, kept = list[dict[str, Any]](), dict[str, dict[int, Vectors]]()
    cost = 0.0
    for way in with_bar(WAYS, "Mapping"):
        chosen = range(0, len(places), way.every)
        encoder, stride = encoders[way.sensors], way.settings.stride or Encoder.cell
        made = {number: map_of(places[number].image, encoder, way.settings) for number in chosen}
        maps = {number: one.values for number, one in made.items()}
        if way.settings == DEFAULT.settings:
            kept[way.sensors] = maps
        at = sample.within(chosen)
        here = Sample(*(column[at] for column in sample))
        x, plain = here.of(maps, stride), here.of(kept["both"], Encoder.cell)
        there = shown(x) & shown(plain)  # at a swath's edge there may be no radar
        here = Sample(*(column[there] for column in here))
        right, usual = (knn_right(vectors[there], here.label, here.cluster) for vectors in (x, plain))
        seconds = _per_window(made.values()) * windows_of_scene(way.settings)
        cost = cost or seconds
        rows.append({
            "way": way.title, "accuracy": estimate(right, here.cluster),
            "change": estimate(right * 1.0 - usual, here.cluster), "n": len(right), "places": len(maps),
            "time": seconds / cost, "megabytes": megabytes(encoder.depth, "float32", stride),
        })  # fmt: skip
    return rows, kept


def _per_window(maps: Iterable[Map]) -> float:
    """Returns the median over maps of the seconds that a window took."""
    return float(np.median([one.seconds / one.windows for one in maps]))


def score_stored(
    maps: Mapping[str, Mapping[int, Vectors]], sample: Sample, tiles: "Tiles", seed: int = 0
) -> list[dict[str, Any]]:
    """Scores what is stored against float32: by classes of squares and of tiles, by neighbors, and across sensors."""
    flat = {name: np.concatenate([x.reshape(-1, x.shape[-1]) for x in of.values()]) for name, of in maps.items()}
    depth, rng = flat["both"].shape[1], np.random.default_rng(seed)
    everywhere = np.flatnonzero(np.logical_and.reduce([shown(x) for x in flat.values()]))
    some = rng.choice(everywhere, min(4000, len(everywhere)), replace=False)
    few = some[: min(1000, len(some))]
    vectors, rows = sample.of(maps["both"], Encoder.cell), list[dict[str, Any]]()
    sample = Sample(*(column[shown(vectors)] for column in sample))
    vectors = vectors[shown(vectors)]
    exact = knn_right(vectors, sample.label, sample.cluster), knn_right(tiles.vectors, tiles.label, tiles.cluster)
    for dtype, pca in STORED:
        if pca is not None and pca >= depth:
            continue
        stored = Reduction.fit([flat["both"]], depth, dtype, pca)
        of_tiles = Reduction.fit([tiles.vectors], depth, dtype, pca)
        shared = Reduction.fit([flat["optical"], flat["radar"]], depth, dtype, pca)
        right = (
            knn_right(stored.decode(stored.encode(vectors)), sample.label, sample.cluster),
            knn_right(of_tiles.decode(of_tiles.encode(tiles.vectors)), tiles.label, tiles.cluster),
        )
        changes = [
            estimate(new * 1.0 - old, cluster)
            for new, old, cluster in zip(right, exact, (sample.cluster, tiles.cluster), strict=True)
        ]
        radar, optical = (shared.decode(shared.encode(flat[name][few])) for name in ("radar", "optical"))
        rows.append({
            "stored": dtype if pca is None else f"{dtype}, PCA {pca}", "accuracy": float(right[0].mean()),
            "change": changes[0], "tiles": float(right[1].mean()), "tiles_change": changes[1],
            "recall": recall(flat["both"][some], stored.decode(stored.encode(flat["both"][some]))),
            "same_place": same_place(radar, optical), "megabytes": megabytes(stored.stored, dtype, Encoder.cell),
            "cog": _written(maps["both"], stored),
            "explained": 1.0 if stored.explained is None else float(stored.explained.sum()),
        })  # fmt: skip
    return rows


def _written(maps: Mapping[int, Vectors], reduction: Reduction) -> float:
    """Returns the size in MB per square kilometer of a COG of all maps side by side."""
    edge, (part, _, depth) = int(len(maps) ** 0.5), next(iter(maps.values())).shape
    with tempfile.TemporaryDirectory() as name:
        place = (160.0, 0.0, 4e5, 0.0, -160.0, 5.4e6)
        parts = MapParts(Path(name) / "map", "map", "EPSG:32633", place, edge * part, edge * part, depth, part)
        parts.begin()
        for number, values in enumerate(list(maps.values())[: edge**2]):
            parts.write(number // edge, number % edge, values)
        write_cog(parts, Path(name) / "map.tif", reduction)
        return (Path(name) / "map.tif").stat().st_size / 1e6 / ((edge * part * 0.16) ** 2)


class Tiles(NamedTuple):
    """Vectors of tiles (n, D), their classes and clusters."""

    vectors: Vectors
    label: NDArray[np.int64]
    cluster: NDArray[np.int64]


def pool(images: Sequence[PixelImage], encoder: Encoder, size: int) -> tuple[dict[str, Vectors], NDArray[np.int64]]:
    """Returns the vectors of tiles by pooling, and which of all tiles they are of: those that show anything."""
    jobs = [(image, place) for image in images for place in tile_places(image, size)]
    found = embed_places([(image, place._replace(row=row)) for row, (image, place) in enumerate(jobs)], encoder, "both")
    vectors = dict(zip(POOLINGS, (*np.split(found.values, 2, axis=1), found.values), strict=True))
    return vectors, found.rows


def score_tiles(
    encoders: Mapping[str, Encoder], places: Sequence[Place], sizes: Sequence[int]
) -> tuple[list[dict[str, Any]], Tiles]:
    """Scores tiles by pooling, size and sensors, against the class token of both; returns those of the first size."""
    rows, kept = list[dict[str, Any]](), None
    images = [place.image for place in places]
    for size in sizes:
        tiles = [(place, tile) for place in places for tile in tile_places(place.image, size)]
        label = np.array([
            np.bincount(place.cover[t.top : t.top + size, t.left : t.left + size].ravel()).argmax()
            for place, t in tiles
        ])  # fmt: skip
        cluster = np.array([place.cluster for place, _ in tiles])
        usual = np.full(len(tiles), np.nan)
        for name, encoder in encoders.items():
            vectors, at = pool(images, encoder, size)
            for pooling, x in vectors.items():
                right = knn_right(x, label[at], cluster[at])
                if np.isnan(usual).all():
                    usual[at] = right
                if kept is None:
                    kept = Tiles(x, label[at], cluster[at])
                change = estimate(right - usual[at], cluster[at])
                rows.append({"size": size, "sensors": name, "pooling": pooling, "n": len(x),
                             "accuracy": estimate(right, cluster[at]), "change": change})  # fmt: skip
    assert kept is not None
    return rows, kept


def score_real(encoders: Mapping[str, Encoder], root: Path) -> dict[str, Any]:
    """Scores real chips: tokens of TerraMesh by its land cover, chips of BigEarthNet by their labels; where present."""
    found: dict[str, Any] = {}
    if (folder := root / "terramesh").is_dir():
        images = real_images(folder)
        covers = [rasterio.open(folder / "LULC" / f"{image.name}.tif").read(1) for image in images]
        label = np.concatenate([majority(cover, Encoder.cell).ravel() for cover in covers])
        # A quarter of all sites at once is held out: their classes differ so much that no site can stand in for another
        quarter = np.concatenate([_quarters(cover.shape[0] // Encoder.cell) for cover in covers])
        site = np.repeat(np.arange(len(images)), len(label) // len(images))
        for name, encoder in encoders.items():
            maps = [map_of(image, encoder, WindowSettings()).values for image in images]
            x = np.concatenate([values.reshape(-1, values.shape[-1]) for values in maps])
            exact = knn_right(x, label, quarter)
            for dtype, pca in (("float32", None), ("int8", None), ("int8", 64), ("int8", 16)):
                stored = Reduction.fit([x], x.shape[1], dtype, pca if pca is None else min(pca, x.shape[1]))
                right = knn_right(stored.decode(stored.encode(x)), label, quarter)
                found[f"tokens, {name}, {dtype}{f', PCA {pca}' if pca else ''}"] = {
                    "score": float(right.mean()), "change": estimate(right * 1.0 - exact, 4 * site + quarter),
                    "n": len(x),
                }  # fmt: skip
    if (folder := root / "bigearthnet_v2").is_dir():
        images = real_images(folder)
        with (folder / "labels.csv").open() as file:
            labels = {row["patch"]: set(row["labels"].split("|")) for row in csv.DictReader(file)}
        alike = np.array([[_jaccard(labels[a.name], labels[b.name]) for b in images] for a in images])
        kept: dict[str, dict[str, Vectors]] = {}
        for name, encoder in encoders.items():
            kept[name], _ = pool(images, encoder, 112)
            kept[name] = {key: x[:: len(x) // len(images)] for key, x in kept[name].items()}
            for pooling, x in kept[name].items():
                near = alike[np.arange(len(x)), _nearest(x, x, 1, True)[:, 0]]
                found[f"chips, {name}, {pooling}"] = {"score": float(near.mean()), "n": len(x)}
        others = alike[~np.eye(len(alike), dtype=bool)]
        found["chips, any other"] = {"score": float(others.mean()), "n": len(alike)}
        for pooling in POOLINGS:
            score = same_place(kept["radar"][pooling], kept["optical"][pooling], 1)
            found[f"radar finds its optical chip, {pooling}"] = {"score": score, "n": len(alike)}
    return found


def _quarters(side: int) -> NDArray[np.int64]:
    """Numbers the quarters of a square of tokens, flat."""
    half = (np.arange(side) >= side // 2).astype(np.int64)
    return (2 * half[:, None] + half).ravel()


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def measure(
    model: str,
    cells: int = 64,
    size: int = 384,
    squares: int = 150,
    seed: int = 1,
    real: str | None = None,
    figures: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measures what the choices of `terrafm embed` cost: classes, neighbors, storage, time and seams.

    Args:
        model: Name, checkpoint, export or the folder of a run, such as that of `make pretrain`.
        cells: Of the simulated planet; those that radar misses are left out.
        size: Pixels of each, a multiple of 48.
        squares: Of 40 m in each whose land cover is told.
        seed: Number of the planet; 0 is the one that `make pretrain` trains on.
        real: Folder with real chips: terramesh and bigearthnet_v2; none by default.
        figures: Folder to write the figures to.
        json: File to write the numbers to.
    """
    encoders = {name: Encoder(model, sensors, batch_size=8) for name, sensors in SENSORS.items()}
    places = simulated_places(cells, size, seed)
    sample = draw_sample(places, squares)
    pooled, tiles = score_tiles(encoders, places, (96, 224))
    ways, maps = score_ways(encoders, places, sample)
    stored = score_stored(maps, sample, tiles)
    unit = spread(np.concatenate([x.reshape(-1, x.shape[-1]) for x in maps["both"].values()]))
    seams = measure_seams(encoders["both"], places[:8], (0, 0.25, 0.5, 0.75), WindowSettings().window, unit)
    found: dict[str, Any] = {
        "ways": ways,
        "pooled": pooled,
        "stored": stored,
        "seams": [one._asdict() for one in seams],
    }
    if real is not None:
        found["real"] = score_real(encoders, Path(real))
    print_tables(found)
    clusters = len(np.unique(sample.cluster))
    print(
        f"{len(places)} places in {clusters} clusters, {len(sample.label)} squares, {len(tiles.label)} tiles of 96 px"
    )
    if figures is not None:
        draw_quality(found, figures / "embedding_quality.png")
        draw_seams(seams, figures / "embedding_seams.png")
    if json is not None:
        write_json(json, found)


if __name__ == "__main__":
    command(measure)

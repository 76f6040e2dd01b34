"""The numbers of the benchmark of embeddings: classes by neighbors, intervals, recall, storage, seams."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import embedding_maps, embedding_quality
from benchmarks.embedding_maps import (
    S1,
    S2,
    Place,
    Seams,
    cut,
    flat_scene,
    map_of,
    megabytes,
    simulated_places,
    spread,
    steps,
    windows_of_scene,
)
from benchmarks.embedding_quality import draw_sample, estimate, knn_right, majority, measure, recall, same_place
from terrafm_tg.inference.engine import WindowSettings
from terrafm_tg.inference.predictor import Encoder
from terrafm_tg.models import build_encoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with positions that matter, as after training."""
    torch.manual_seed(0)
    model = build_encoder("terrafm_nano")
    with torch.no_grad():
        model.pos_embed.normal_(std=0.5)
    path = tmp_path_factory.mktemp("model") / "encoder.pth"
    torch.save({"model": model.state_dict(), "hyper_parameters": {"model": "terrafm_nano"}}, path)
    return path


def test_the_class_of_most_pixels() -> None:
    cover = RNG.integers(0, 3, (11, 9))
    found = majority(cover, 4)
    assert found.shape == (2, 2)
    for row in range(2):
        for column in range(2):
            block = cover[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert found[row, column] == max(range(3), key=lambda c: ((block == c).sum(), -c))


def test_neighbors_vote_from_other_clusters_only() -> None:
    """A vector beside its own cluster's, of the other class than the rest, is wrong: its own do not vote."""
    vectors = np.float32([[1, 0], [1, 0.01], [1, 0.02], [0, 1], [0.01, 1], [0.02, 1]])
    labels, cluster = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 4, 5])
    assert knn_right(np.tile(vectors, (30, 1)), np.tile(labels, 30), np.tile(cluster, 30)).all()
    alone = knn_right(np.tile(vectors, (30, 1)), np.tile(labels, 30), np.tile([0, 0, 0, 1, 1, 1], 30))
    assert not alone.any()


def test_an_interval_is_of_clusters() -> None:
    """Of two clusters, all 0 and all 1, a draw has both, or one of them twice."""
    values, cluster = np.repeat([0.0, 1.0], 500), np.repeat([3, 8], 500)
    assert tuple(estimate(values, cluster)) == (0.5, 0, 1)
    found = estimate(RNG.normal(size=400), np.arange(400))
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert found.low < found.mean < found.high


def test_recall_and_the_same_place() -> None:
    x = RNG.normal(size=(60, 8)).astype(np.float32)
    assert recall(x, 3 * x, 5) == 1
    assert same_place(x, 2 * x + 5, 1) == 1
    assert same_place(x, np.roll(x, 1, axis=0), 1) == 0
    assert same_place(x, x[::-1], 60) == 1
    y = RNG.normal(size=(60, 8)).astype(np.float32)
    a, b = (z @ z.T / np.outer(*2 * [np.linalg.norm(z, axis=1)]) - 9 * np.eye(60) for z in (x, y))
    hits = [len({*np.argsort(-p)[:5]} & {*np.argsort(-q)[:5]}) / 5 for p, q in zip(a, b, strict=True)]
    assert recall(x, y, 5) == pytest.approx(np.mean(hits))


def test_storage_and_windows() -> None:
    assert megabytes(768, "float32", 16) == pytest.approx(768 * 4 * (1000 / 160) ** 2 / 1e6)
    assert megabytes(64, "int8", 4) == pytest.approx(64 * 625 / 1e6)
    assert windows_of_scene(WindowSettings(224, 0)) == 50**2  # 10,980 / 224 is 49.02
    dense = windows_of_scene(WindowSettings(224, 0.25, 8))
    assert dense == pytest.approx(4 * windows_of_scene(WindowSettings(224, 0.25)), rel=0.02)


def test_simulated_places_are_as_the_world_has_them(small_world: Path) -> None:
    """Pixels in memory against those that are written in Major-TOM's format and read again."""
    from terrafm_tg.inference.sources import find_images
    from terrafm_tg.simulation.dataset import read_settings

    world = read_settings(small_world)
    places, half = simulated_places(3, world["cell_size"], world["seed"]), world["cell_size"] // 2
    tiles = [image for image in find_images(small_world) if {S1, S2} <= set(image.products)]
    same = 0
    for tile in (image for image in tiles if image.name.endswith("_0")):
        radar = tile.read(slice(0, half), slice(0, half), [S1])[0][S1]
        for place in places:
            if np.allclose(radar, place.image.pixels[S1][:, :half, :half], atol=1e-3, equal_nan=True):
                read, _ = tile.read(slice(0, half), slice(0, half), [S2])
                # bands of 20 and 60 m are interpolated over the tile's border in the whole cell
                inner = (slice(None), slice(0, half - 12), slice(0, half - 12))
                np.testing.assert_allclose(read[S2][inner], place.image.pixels[S2][inner], atol=0.5)
                same += 1
        if same == len(places):
            break
    assert same == len(places) > 0
    assert all(place.cover.shape == place.image.shape for place in places)


def test_a_sample_lies_where_its_class_is() -> None:
    places = simulated_places(3, 48, 0)
    sample = draw_sample(places, 20)
    maps = {n: np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1) for n in range(len(places))}
    for at, vector in enumerate(sample.of(maps, 8)):
        number, row, column, label, cluster = (int(x[at]) for x in sample)
        assert vector.tolist() == [row // 8, column // 8]
        block = places[number].cover[row : row + 4, column : column + 4]
        assert label == np.bincount(block.ravel()).argmax()
        assert cluster == places[number].cluster


def test_seams(weights: Path) -> None:
    """Without positions a constant scene gives a constant map; with them it shows where windows lie, blended less."""
    encoder = Encoder(weights, (S1, S2), "cpu")
    places = simulated_places(1, 96, 0)
    unit = spread(map_of(places[0].image, encoder, WindowSettings(64)).values)
    found = embedding_maps.measure_seams(encoder, places, (0, 0.5), 64, unit)
    shown = {(one.positions, one.overlap): one for one in found}
    for overlap in (0, 0.5):
        assert shown[False, overlap].imprint < 1e-3
        assert max(shown[False, overlap].constant) < 1e-3
        assert shown[True, overlap].imprint > 0.01
        assert len(shown[True, overlap].edge) == 15
        assert np.argmax(shown[False, overlap].edge) in (6, 7)
    assert shown[True, 0.5].imprint < shown[True, 0].imprint
    ramp = np.arange(5.0)[None, :, None] * np.ones((3, 1, 2), np.float32)
    np.testing.assert_allclose(steps(ramp), 2)
    assert spread(ramp) == pytest.approx(4)
    part = cut(flat_scene(64, 40), 16, 32)
    assert part.shape == (48, 32)
    assert part.transform.c == 400_320
    assert part.transform.f == 5_399_840
    assert len(np.unique(part.pixels[S1][0])) == 2
    assert not np.diff(part.pixels[S1][0, :, :8]).any()


def test_the_tables_of_a_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [way for way in embedding_quality.WAYS if not way.title.startswith(("stride", "window"))][:4]
    monkeypatch.setattr(embedding_quality, "WAYS", ways)
    monkeypatch.setattr(embedding_quality, "STORED", embedding_quality.STORED[::4])

    def seams(encoder: Encoder, places: list[Place], overlaps: list[float], window: int, unit: float) -> list[Seams]:
        return embedding_maps.measure_seams(encoder, places[:1], overlaps[:2], 48, unit)

    monkeypatch.setattr(embedding_quality, "measure_seams", seams)
    measure(str(weights), cells=6, size=96, squares=20, seed=0, figures=tmp_path, json=tmp_path / "found.json")
    printed = capsys.readouterr().out
    assert all(way.title in printed for way in ways)
    assert "int8, PCA 64" in printed
    for name in ("quality", "seams"):
        assert 10_000 < (tmp_path / f"embedding_{name}.png").stat().st_size < 150_000
    assert (tmp_path / "found.json").stat().st_size > 1_000

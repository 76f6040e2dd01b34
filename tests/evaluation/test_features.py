"""Collecting embeddings over batches and ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import distributed, multiprocessing

from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.index.build import region_names
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.evaluation import index_figure
from terrafm_tg.evaluation.scores import TileFeatures, center, collect, gather
from terrafm_tg.samplers import LandCoverSampler


def _output(rows: list[int], radar: list[int]) -> dict:
    """A batch of tiles `rows`; those at positions `radar` have S1. An embedding tells its tile."""
    row = torch.tensor(rows)
    at = {"s2l2a": torch.arange(len(rows)), "s1rtc": torch.tensor(radar, dtype=torch.long)}
    embeddings = {name: row[i][:, None] + torch.tensor([[0.0, 0.5]]) for name, i in at.items()}
    return {"embeddings": embeddings, "sample_idx": at, "land_cover": row % 3 - 1, "row": row}


def test_collect_keeps_each_tile_once_with_its_own_label():
    features = collect([_output([5, 3, 9], [0, 2]), _output([3, 7], [1])])
    assert features["s2l2a"].row.tolist() == [3, 5, 7, 9]
    assert features["s1rtc"].row.tolist() == [5, 7, 9]
    for tiles in features.values():
        assert torch.equal(tiles.x[:, 0], tiles.row.float())
        assert torch.equal(tiles.land_cover, tiles.row % 3 - 1)
    assert features["s2l2a"].labelled().row.tolist() == [5, 7]


def test_center_removes_the_sensor_from_both_sides():
    x, row = torch.randn(40, 6), torch.arange(40)
    bank = {"a": TileFeatures(x + 3, row, row), "b": TileFeatures(x - 5, row, row)}
    query = {"a": TileFeatures(x[:9] + 3, row[:9], row[:9]), "b": TileFeatures(x[:9] - 5, row[:9], row[:9])}
    centred = center(query, bank)
    torch.testing.assert_close(centred["a"].x, centred["b"].x, atol=1e-5, rtol=0)
    torch.testing.assert_close(center(bank, bank)["a"].x.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)


def _rank(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # The ranks' shares overlap in tile 3, as a padded list does; the second has no radar.
    outputs = [_output([5, 3, 9], [0, 2])] if rank == 0 else [_output([3, 7], [])]
    torch.save({name: tuple(tiles) for name, tiles in gather(collect(outputs)).items()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_gather_gives_every_rank_all_tiles_once(tmp_path: Path):
    multiprocessing.start_processes(_rank, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["s2l2a"][1].tolist() == [3, 5, 7, 9]
    assert first["s1rtc"][1].tolist() == [5, 9]
    for name, tensors in first.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, second[name], strict=True))


def test_gather_alone_is_the_identity():
    features = collect([_output([1, 2], [0])])
    assert gather(features) is features


@pytest.fixture(scope="module")
def table(small_world):
    return read_index(small_world / "index.parquet")[0]


def test_shares_are_those_of_the_sampler(table, small_world):
    sampler = LandCoverSampler(MajorTOM(small_world, tile_size=72))
    shares = index_figure.class_shares(table.land_cover, index_figure.stage_weights(table))
    np.testing.assert_allclose(shares.sum(), 1)
    np.testing.assert_allclose(
        shares.iloc[:, 2].reindex(range(12), fill_value=0), sampler.land_cover_share(), atol=1e-9
    )
    kept = np.bincount(table.land_cover.to_numpy()[sampler.rows], minlength=12) / len(sampler.rows)
    np.testing.assert_allclose(shares.iloc[:, 1].reindex(range(12), fill_value=0), kept)
    assert shares.iloc[:, 0].loc[11] > shares.iloc[:, 1].loc[11]  # ocean is thinned


def test_nothing_but_ocean(table):
    weights = index_figure.stage_weights(table.iloc[:4].assign(land_cover=np.int8(11)))
    assert {stage: w.tolist() for stage, w in weights.items()} == {"all tiles": [1, 1, 1, 1]}


@pytest.mark.parametrize("points", [20_000, 150])  # all tiles, most of them
def test_the_figure_shows_each_class(table, small_world, tmp_path, monkeypatch, points):
    monkeypatch.setattr(index_figure, "_POINTS", points)
    index_figure.write_index_figure(table, region_names(small_world / "index.parquet"), tmp_path / "index.png")
    assert [path.name for path in tmp_path.iterdir()] == ["index.png"]
    pixels = np.rint(imread(tmp_path / "index.png")[..., :3] * 255).astype(int).reshape(-1, 3)
    shown = set(map(tuple, np.unique(pixels, axis=0)))
    for number in table.land_cover.unique():
        color = index_figure.COLORS[number]
        assert tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) in shown

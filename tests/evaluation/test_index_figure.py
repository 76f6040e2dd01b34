import numpy as np
import pytest
from matplotlib.image import imread

from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.index.build import region_names
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.evaluation import index_figure
from terrafm_tg.samplers import LandCoverSampler


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

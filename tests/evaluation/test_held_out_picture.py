"""The picture at the end of a run: what is drawn is what the encoders found."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

from terrafm_tg.datasets import MajorTOM, collate_tiles
from terrafm_tg.evaluation import FUSED, TRAINED, UNTRAINED
from terrafm_tg.evaluation.held_out import HeldOutFeatures
from terrafm_tg.evaluation.held_out_picture import draw_picture, draw_queries, token_colors, token_maps, write_nearest
from terrafm_tg.evaluation.scores import TileFeatures
from terrafm_tg.transforms import MultiCrop


class PatchMeans(nn.Module):
    """Its tokens are the means of the first two bands over the patch, and the first again."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward_features(self, x: Tensor, modality: str) -> Tensor:
        means = nn.functional.avg_pool2d(x[:, [0, 1, 0]], 16).flatten(2).mT
        return torch.cat([torch.zeros_like(means[:, :1]), means], dim=1)


def test_queries_are_drawn_by_lot_one_per_cover_the_commonest_first() -> None:
    cover = torch.tensor([4] * 30 + [1] * 50 + [7] * 3 + [2] * 10)
    tiles = TileFeatures(torch.zeros(len(cover), 1), torch.arange(len(cover)), cover)
    assert [int(cover[i]) for i in draw_queries(tiles, 3)] == [1, 4, 2]
    assert [int(cover[i]) for i in draw_queries(tiles, 6)] == [1, 4, 2, 7, 1, 4], "covers come again where they are few"
    assert draw_queries(tiles) == draw_queries(tiles)
    firsts = Counter(draw_queries(tiles, 1, seed)[0] for seed in range(300))
    assert set(firsts) <= set(range(30, 80))
    assert len(firsts) > 40, "any tile of a cover may be drawn"


def test_a_cell_of_a_map_has_the_mean_of_the_patches_over_it(small_world: Path) -> None:
    dataset = MajorTOM(small_world, tile_size=72, native=True)
    row = int(np.flatnonzero(dataset.table["has_s1rtc"])[0])
    batch = collate_tiles([dataset[dataset.tile_slice(row)]])
    found = dict(zip(["s1rtc", "s2l2a"], token_maps(PatchMeans(), batch, 32, ["s1rtc", "s2l2a"], None), strict=True))
    for name, tokens in found.items():
        image = MultiCrop([name]).whole(batch, 48, [name]).images[name][0, [0, 1, 0]].double()
        sums, counts = torch.zeros(12, 12, 3).double(), torch.zeros(12, 12, 1)
        for top in range(0, 17, 4):  # windows of 32 pixels, each of four patches
            for left in range(0, 17, 4):
                for y in (top, top + 16):
                    for x in (left, left + 16):
                        cells = slice(y // 4, y // 4 + 4), slice(x // 4, x // 4 + 4)
                        sums[cells] += image[:, y : y + 16, x : x + 16].mean((1, 2))
                        counts[cells] += 1
        np.testing.assert_allclose(tokens, sums / counts, atol=1e-5)


def test_maps_that_differ_by_a_constant_and_a_factor_have_the_same_colors() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=(5, 6, 8)).astype(np.float32) * np.linspace(3, 0.1, 8, dtype=np.float32)
    first, second = token_colors([pattern, 7 * pattern + 100])
    assert first.shape == (5, 6, 3)
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert (first.min(), first.max()) == (0, 1)


@pytest.mark.parametrize("known", [True, False])
def test_signs_and_shares_are_what_the_encoders_found(small_world: Path, tmp_path: Path, known: bool) -> None:
    """The trained one finds each place; the untrained one takes each for the next tile of the list."""
    dataset = MajorTOM(small_world, tile_size=72, native=True)
    rows = torch.from_numpy(np.flatnonzero(dataset.table["has_s1rtc"])[:24])
    cover = torch.arange(24) % 3 if known else torch.full((24,), -1)
    same, shifted = torch.eye(24), torch.eye(24).roll(1, dims=0)
    sides = {
        name: {"s1rtc": TileFeatures(x, rows, cover), "s2l2a": TileFeatures(same, rows, cover)}
        for name, x in {UNTRAINED: shifted, TRAINED: same}.items()
    }
    features = {name: HeldOutFeatures({}, side | {FUSED: side["s1rtc"]}) for name, side in sides.items()}
    figure = draw_picture(features, {UNTRAINED: PatchMeans(), TRAINED: PatchMeans()}, dataset, 32)
    assert figure is not None
    words = [text.get_text() for text in figure.findobj(Text)]
    signs = Counter(word for word in words if word in ("★", "✓", "✗"))
    assert signs["★"] >= 6, "each query's own place, after training"
    assert bool(signs["✓"] + signs["✗"]) == known
    assert words.count("its own place is number 1") == 6
    assert words.count("its own place is number 24") == 6, "ties count against it"
    said = " ".join(words)
    assert "0% before training, 100% after training, by chance 42%" in said
    assert ("of the same land cover:" in said) == known
    assert write_nearest(figure, tmp_path).stat().st_size > 50_000


def test_one_sensor_has_nothing_to_find(small_world: Path) -> None:
    side = {"s2l2a": TileFeatures(torch.eye(3), torch.arange(3), torch.zeros(3, dtype=torch.int64))}
    features = dict.fromkeys((UNTRAINED, TRAINED), HeldOutFeatures({}, side | {FUSED: side["s2l2a"]}))
    assert draw_picture(features, {}, MajorTOM(small_world, tile_size=72, native=True), 32) is None

"""Tiles with a subset of their stem's bands, from the index to the views: absent bands are exactly at their mean."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets.tiny_files import sample_of
from terrafm_tg.datasets import TileDataset, collate_tiles
from terrafm_tg.datasets.tiles.bands import HeldBands, at_own_resolution, band_text, fill_absent
from terrafm_tg.datasets.tiles.index_file import read_index, write_index
from terrafm_tg.datasets.tiles.pixels import is_complete, only_nodata
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L1C, S2L2A
from terrafm_tg.transforms import Augment, MultiCrop, Normalize

SIZE = 24
RGBN = "B02 B03 B04 B08"
#: What archives of 4, 6, 9, 10 and 13 bands hold; HLS has no B05 to B08.
ARCHIVES = {
    4: RGBN,
    6: "B02 B03 B04 B8A B11 B12",
    9: "B02 B03 B04 B05 B06 B07 B08 B11 B12",
    10: "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12",
    13: None,
}


def small_table(**columns):
    """A table of as many tiles as the columns are long."""
    count = len(next(iter(columns.values())))
    x = 500_000 + 240.0 * np.arange(count)
    start = pd.Timestamp("2021-05-01")
    return pd.DataFrame(
        {
            "cell": pd.Categorical([f"1U_{i}R" for i in range(count)]), "quadrant": 0, "epsg": 32631, "x": x, "y": 5e6,
            "xmin": 3.0, "ymin": 45.0, "xmax": 3.1, "ymax": 45.1, "datetime_start": start, "datetime_stop": start,
            "land_cover": np.arange(count) % 5,
        }
        | {f"has_{m}": True for m in ("s1rtc", "s2l2a")}
        | {name: pd.Categorical(values) for name, values in columns.items()}
    )  # fmt: skip


class Bands(TileDataset):
    """Pixels that depend on row and band; a tile is read in the bands that it has, ``hole`` misses one pixel."""

    hole = None

    def _read(self, row, modality):
        held, groups = self._bands(row, modality), {}
        for resolution, bands in modality.native.items():
            there = [b for b in bands if held is None or held[modality.bands.index(b)]]
            if there:
                random = np.random.default_rng([row, resolution])
                shape = (len(bands), SIZE * 10 // resolution, SIZE * 10 // resolution)
                pixels = random.uniform(300, 3000, shape)[[bands.index(b) for b in there]]
                groups[resolution] = (
                    (pixels / 1e4).astype(np.float32) if modality.unit == "dB" else pixels.astype(np.uint16)
                )
        groups = self._fill_absent(row, modality, groups)
        if self.hole is not None and modality is S2L2A:
            groups[10][S2L2A.native[10].index(self.hole), 3, 5] = 0
        return groups


def tiles(native=True, **columns):
    return Bands(small_table(**columns), native=native, tile_size=SIZE)


@given(st.sets(st.sampled_from([*S2L2A.bands, "B10"])))
def test_the_text_of_a_subset_reads_back(bands):
    if not bands - {"B10"}:
        with pytest.raises(TerraFMError, match="at least one band"):
            band_text(S2L2A, bands)
        return
    text = band_text(S2L2A, bands)
    held = HeldBands(pd.Series([text, None, ""]), S2L2A)
    assert [band for band, there in zip(S2L2A.bands, held[0], strict=True) if there] == [
        band for band in S2L2A.bands if band in bands
    ]
    assert (text is None) == (held[0].all())
    assert held[1].all()
    assert held[2].all()


def test_samples_say_which_bands_they_have():
    dataset = tiles(bands_s2l2a=[RGBN, None, "B05 B01"], bands_s1rtc=["VV", None, "VH"])
    samples = [sample_of(dataset, row) for row in range(3)]
    assert samples[0]["bands_s2l2a"].tolist() == [band in RGBN.split() for band in S2L2A.bands]
    assert samples[1]["bands_s2l2a"].all()
    assert [sample["bands_s1rtc"].tolist() for sample in samples] == [[True, False], [True, True], [False, True]]
    for sample in samples:
        assert sample["complete"].tolist() == [True, False, True]  # no L1C; absent bands are not missing pixels
        for resolution, bands in S2L2A.native.items():
            image = sample[S2L2A.native_key(resolution)]
            assert image.shape == (len(bands), SIZE * 10 // resolution, SIZE * 10 // resolution)
            for band, plane in zip(bands, image.int(), strict=True):
                there = bool(sample["bands_s2l2a"][S2L2A.bands.index(band)])
                assert (plane > 0).all() if there else (plane == 0).all()
    assert (samples[0]["image_s1rtc_10m"][1] == -32768).all()
    batch = collate_tiles(samples)
    assert batch["bands_s2l2a"].shape == (3, 12)
    assert "bands_s2l2a" not in sample_of(tiles(cell=["1U_1R"]))


def test_at_ten_meters_absent_bands_are_nan_and_normalize_to_half():
    sample = sample_of(tiles(native=False, bands_s2l2a=[RGBN], bands_s1rtc=["VV"]))
    for m in (S1RTC, S2L2A):
        normalized = Normalize()(sample)[m.key]
        there = torch.tensor([band in (RGBN + " VV").split() for band in m.bands])
        assert (normalized[~there] == 0.5).all()
        assert (normalized[there] != 0.5).any(dim=(1, 2)).all()


@pytest.mark.parametrize("text", ["B99", "VV", "B02 B02", "  ", 7])
def test_bands_of_no_stem_are_refused(text, tmp_path):
    table = small_table(bands_s2l2a=[text, None])
    with pytest.raises(TerraFMError, match="column bands_s2l2a holds"):
        Bands(table, tile_size=SIZE)
    write_index(table, tmp_path / "index.parquet", {"tile_size": SIZE})
    with pytest.raises(TerraFMError, match=r"index\.parquet cannot be read \(column bands_s2l2a holds '"):
        read_index(tmp_path / "index.parquet")


def test_the_index_keeps_the_bands(tmp_path):
    table = small_table(bands_s2l2a=[RGBN, None, "B01"])
    write_index(table, tmp_path / "index.parquet", {"tile_size": SIZE})
    column = read_index(tmp_path / "index.parquet")[0]["bands_s2l2a"]
    assert column.isna().tolist() == [False, True, False]
    assert column.dropna().tolist() == [RGBN, "B01"]


def test_only_bands_that_are_there_can_be_damaged():
    dataset = tiles(bands_s2l2a=[RGBN])
    groups = dataset._read(0, S2L2A)
    held = dataset._bands(0, S2L2A)
    assert only_nodata(groups, S2L2A, held) == ""
    assert is_complete(groups, S2L2A, held)
    assert not is_complete(groups, S2L2A)
    groups[10][1] = 0
    assert only_nodata(groups, S2L2A, held) == "band B03 holds only nodata"
    assert only_nodata({r: 0 * g for r, g in groups.items()}, S2L2A, held) == "it holds only nodata"
    dataset.hole = "B08"
    assert not sample_of(dataset)["complete"][2]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_one_polarization_is_no_damage(dtype):
    """R28: VV alone, with VH as nodata, as older archives have it; none at all stays damage."""
    power = np.full((2, 6, 6), 7, dtype)
    power[1] = -32768
    assert only_nodata({10: power}, S1RTC) == ""
    assert only_nodata({10: power[::-1]}, S1RTC) == ""
    assert only_nodata({10: np.full_like(power, -32768)}, S1RTC) == "it holds only nodata"


def views_of(dataset, rows, **settings):
    samples = [dataset[dataset.tile_slice(row, position=row)] for row in rows]
    batch = collate_tiles(samples)
    crop = MultiCrop(["s1rtc", "s2l2a"], 32, 16, 2, modality_probability=1.0, **settings)
    return batch, crop, crop(batch, crop.plan(batch))


@pytest.mark.parametrize("augment", [Augment(), Augment(probability=1.0, haze=500, blur_probability=1.0)])
@pytest.mark.parametrize("hole", [None, "B04"])
def test_absent_bands_are_at_their_mean_in_every_view(augment, hole):
    dataset = tiles(bands_s2l2a=[*ARCHIVES.values()], bands_s1rtc=["VV", None, "VH", "VV", None])
    dataset.hole = hole
    batch, crop, groups = views_of(dataset, range(5), augment=augment)
    for group in (*groups.values(), crop.whole(batch, 32)):
        for name, x in group.images.items():
            held = batch[f"bands_{name}"][group.idx(name) % 5]
            assert (x[~held] == 0.5).all()
            assert (x[held] != 0.5).flatten(1).any(dim=1).all()
            assert x.isfinite().all()


def test_full_tiles_are_bit_for_bit_what_they_are_without_the_column():
    without, saying = tiles(cell=["1U_0R", "1U_1R"]), tiles(bands_s2l2a=[None, None], bands_s1rtc=[None, None])
    beside = tiles(bands_s2l2a=[None, None, RGBN], bands_s1rtc=[None, None, "VV"])
    expected = views_of(without, range(2))[2]
    for name, group in views_of(saying, range(2))[2].items():
        assert all(torch.equal(x, expected[name].images[m]) for m, x in group.images.items())
    for name, group in views_of(beside, range(3))[2].items():
        for m, x in group.images.items():
            first, idx = group.idx(m) % 3 < 2, group.idx(m)
            order = torch.stack([idx[first] // 3, idx[first] % 3])
            places = {tuple(place): i for i, place in enumerate(order.T.tolist())}
            for i, sample_idx in enumerate(expected[name].idx(m).tolist()):
                mine = x[first][places[sample_idx // 2, sample_idx % 2]]
                torch.testing.assert_close(mine, expected[name].images[m][i], atol=1e-6, rtol=1e-6)


def test_finer_bands_are_averaged_down_to_their_own_resolution():
    random = np.random.default_rng(0)
    own = {r: random.integers(1, 9000, (len(b), 600 // r, 600 // r)).astype(np.uint16) for r, b in S2L1C.native.items()}
    own[20][2, 3, 4] = 0
    fine = {r: group.repeat(r // 10, 1).repeat(r // 10, 2) for r, group in own.items()}
    for groups in (own, fine, {**own, 20: fine[20]}):
        for resolution, group in at_own_resolution(groups).items():
            assert_array_equal(group, own[resolution])
            assert group.dtype == np.uint16
    fine[20][0, :2, :2] = [[10, 0], [13, 0]]  # half is there: rounded to even
    fine[20][1, :2, :2] = [[10, 0], [0, 0]]
    assert at_own_resolution(fine)[20][:2, 0, 0].tolist() == [12, 0]


def test_a_tile_of_coarse_bands_only():
    held = HeldBands(pd.Series(["B01 B09"]), S2L2A)[0]
    full = fill_absent({60: np.ones((2, 4, 4), np.uint16)}, S2L2A, held, (24, 24))
    assert {r: (g.shape, int(g.sum())) for r, g in full.items()} == {
        10: ((4, 24, 24), 0), 20: ((6, 12, 12), 0), 60: ((2, 4, 4), 32),
    }  # fmt: skip


def test_a_tile_without_any_of_the_modalities_bands_is_damaged():
    dataset = tiles(bands_s2l2a=[RGBN])
    dataset._read = lambda row, modality: {r: 0 * g for r, g in Bands._read(dataset, row, modality).items()}
    with pytest.raises(DamagedTileError, match="only nodata"):
        sample_of(dataset)
    assert set(MODALITIES) == {"s1rtc", "s2l1c", "s2l2a"}

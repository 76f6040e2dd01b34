import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from affine import Affine
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import RandomPatchSampler

from terrafm_tg.datasets import TileDataset, TileSlice, collate_tiles
from terrafm_tg.datasets.tiles.pixels import is_complete, to_ten_meters
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L1C, S2L2A

EPSG, SIZE = 32633, 60


def tile_index(corners, years, **columns):
    """Tiles of 600 m with upper left corners in UTM metres, one per year."""
    boxes = [shapely.box(x, y - 10 * SIZE, x + 10 * SIZE, y) for x, y in corners]
    days = (pd.to_datetime([f"{year}-03-0{day}" for year in years]) for day in (1, 9))
    times = pd.IntervalIndex.from_arrays(*days, closed="both", name="datetime")
    data = {"cell": [f"{i}U_0R" for i in range(len(boxes))], "quadrant": 0, "epsg": EPSG, "has_s2l2a": True} | columns
    return gpd.GeoDataFrame(data, index=times, geometry=boxes, crs=EPSG).to_crs(4326)


class Ramps(TileDataset):
    """Every pixel holds 1 plus its own distance from the tile's corner in metres, east (B03: south)."""

    def _read(self, row, modality):
        groups = {}
        for resolution, bands in modality.native.items():
            along = (np.arange(SIZE * 10 // resolution) + 0.5) * resolution
            east, south = np.broadcast_arrays(along[None, :], along[:, None])
            groups[resolution] = np.stack([1 + (south if band == "B03" else east) for band in bands]).astype(np.uint16)
        return groups


@pytest.fixture(scope="module")
def ramps():
    corners = [(400_000, 5_000_000), (400_500, 5_000_000), (400_000, 5_000_000)]
    return Ramps(tile_index(corners, [2020, 2020, 2021], land_cover=[3, 11, -1]), native=True)


def test_is_a_geo_dataset(ramps):
    assert isinstance(ramps, GeoDataset)
    assert len(ramps) == 3
    assert ramps.crs.to_epsg() == 4326
    assert "size: 3" in str(ramps)
    x, y, t = ramps.bounds
    assert (x.start, y.start, x.stop, y.stop) == pytest.approx(tuple(ramps.index.total_bounds))
    assert (t.start, t.stop) == (pd.Timestamp("2020-03-01"), pd.Timestamp("2021-03-09"))
    assert ramps.bounds[0].step == pytest.approx(8.98e-5, rel=1e-3)


def test_a_tile_slice_knows_its_row(ramps):
    query = ramps.tile_slice(1, position=17, epoch=4)
    assert isinstance(query, TileSlice)
    assert isinstance(query, tuple)
    assert len(query) == 3
    sample = ramps[query]
    assert {key: int(sample[key]) for key in ("row", "position", "epoch", "land_cover", "epsg")} == {
        "row": 1, "position": 17, "epoch": 4, "land_cover": 11, "epsg": EPSG,
    }  # fmt: skip
    with pytest.raises(IndexError):
        ramps.tile_slice(3)
    with pytest.raises(IndexError):
        ramps[TileSlice(tuple(query), row=9)]


def test_any_slice_is_resolved_by_centre_and_time(ramps):
    for row in range(3):
        x, y, t = ramps.tile_slice(row)
        assert ramps.resolve((x, y, t)) == row
        sample = ramps[x.start : x.stop, y.start : y.stop, t.start : t.stop]
        assert sample["row"] == row
        assert sample["position"] == -1
        assert sample["image_s2l2a_10m"].shape == (4, SIZE, SIZE)
    x, y, t = ramps.tile_slice(0)
    assert ramps.resolve((x, y)) == 0  # of two tiles of all time, the first
    with pytest.raises(IndexError, match="not found"):
        ramps[x, y, slice(pd.Timestamp("2019-01-01"), pd.Timestamp("2020-02-29"))]
    with pytest.raises(IndexError, match="not found"):
        ramps[slice(x.start + 1, x.stop + 1), y, t]
    with pytest.raises(TerraFMError, match="tile_slice"):
        ramps[0]


def test_a_native_sample_tells_which_modalities_are_complete(ramps):
    held = {m.name for m in ramps.modalities}
    assert ramps[ramps.tile_slice(0)]["complete"].tolist() == [name in held for name in MODALITIES]
    assert "complete" not in Ramps(ramps.index)[ramps.tile_slice(0)]


def test_a_smaller_slice_gives_the_part_it_covers(ramps):
    x, y, t = ramps.tile_slice(0)
    width, height = x.stop - x.start, y.stop - y.start
    part = (
        slice(x.start + 0.3 * width, x.start + 0.5 * width),
        slice(y.start + 0.5 * height, y.start + 0.9 * height),
        t,
    )
    sample = ramps[part]
    whole = ramps[ramps.tile_slice(0)]
    left, _, _, _, top = sample["bounds"][:5].tolist()
    column, row = round((left - 400_000) / 10), round((5_000_000 - top) / 10)
    assert column % 6 == row % 6 == 0
    assert 12 <= column <= 18  # 30 % of 60 pixels; the grid is turned a little against north
    assert row in (0, 6)
    assert sample["image_s2l2a_10m"].shape[1:] in [(h, w) for h in (24, 30, 36) for w in (12, 18, 24)]
    for key in ("image_s2l2a_10m", "image_s2l2a_20m", "image_s2l2a_60m"):
        scale = whole[key].shape[-1] / SIZE
        r, c, (h, w) = round(row * scale), round(column * scale), sample[key].shape[1:]
        assert torch.equal(sample[key], whole[key][:, r : r + h, c : c + w])
        assert (h / scale, w / scale) == (sample["image_s2l2a_10m"].shape[1:])
    assert sample["bounds"][1] - sample["bounds"][0] == 10 * sample["image_s2l2a_10m"].shape[2]
    assert sample["transform"].tolist()[2] == left


def test_torchgeo_samplers_work():
    dataset = Ramps(tile_index([(400_000, 5_000_000), (420_000, 5_000_000)], [2020, 2020]))
    for query in RandomPatchSampler(dataset, size=10, length=6):
        sample = dataset[query]
        assert 6 <= sample["image_s2l2a"].shape[1] <= 36


def test_bands_of_all_resolutions_agree_at_ten_metres(ramps):
    dataset = Ramps(ramps.index)
    image = dataset[dataset.tile_slice(0)]["image_s2l2a"]
    along = torch.arange(5.0, SIZE * 10, 10)
    inner = slice(3, -3)  # from the first to the last centre of a 60 m pixel
    for band, got in zip(S2L2A.bands, image, strict=True):
        expected = (along[:, None] if band == "B03" else along[None]).expand(SIZE, SIZE) + 1
        rounding = 0.5 if band in S2L2A.native[10] else 0  # 10 m centres lie on half metres
        assert torch.allclose(got[inner, inner], expected[inner, inner], atol=1e-3 + rounding), band


def test_interpolation_leaves_missing_pixels_out():
    groups = {r: torch.full((len(bands), 60 // r, 60 // r), 500.0) for r, bands in S2L1C.native.items() if r < 60}
    groups[60] = torch.full((2, 1, 1), 500.0)
    groups[20][:, 1, 1] = 0
    image = to_ten_meters(groups, S2L1C)
    twenty = image[S2L1C.band_indices(S2L1C.native[20])]
    assert twenty.isnan().nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert (twenty[~twenty.isnan()] == 500).all()
    assert not image[S2L1C.band_indices(S2L1C.native[10])].isnan().any()


def test_radar_is_interpolated_as_power():
    class Coarse:
        native, native_order, unit = {10: ("VV",), 20: ("VH",)}, [0, 1], "dB"

    image = to_ten_meters({10: torch.ones(1, 4, 4), 20: torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])}, Coarse)
    assert torch.allclose(image[1, 0], 10 * torch.tensor([1, 1.5, 2.5, 3]).log10())
    assert S1RTC.unit == "dB"


class Broken(Ramps):
    def _read(self, row, modality):
        groups = super()._read(row, modality)
        return {r: group * (0 if row == 0 else np.arange(len(group))[:, None, None] > 0) for r, group in groups.items()}


def test_only_nodata_is_damage(ramps):
    dataset = Broken(ramps.index)
    with pytest.raises(DamagedTileError, match="Tile 0U_0R/0 s2l2a cannot be used: it holds only nodata"):
        dataset[dataset.tile_slice(0)]
    with pytest.raises(DamagedTileError, match="1U_0R/0 s2l2a cannot be used: band B02, B05, B01 holds only nodata"):
        dataset[dataset.tile_slice(1)]


def test_the_place_comes_from_the_footprint(ramps):
    for row in range(3):
        assert tuple(ramps._transform(row)) == pytest.approx(
            tuple(Affine(10, 0, 400_000 + 500 * (row == 1), 0, -10, 5e6)), abs=1e-6
        )


def test_another_crs_of_the_index(ramps):
    dataset = Ramps(ramps.index, native=True)
    assert dataset.bounds[0].stop < 180
    dataset.crs = EPSG
    assert dataset.bounds[0].stop == pytest.approx(401_100)
    sample = dataset[400_000:400_120, 4_999_880:5_000_000]
    assert sample["image_s2l2a_10m"].shape == (4, 12, 12)
    assert sample["transform"].tolist()[5] == pytest.approx(5e6)


def test_transforms_see_the_sample(ramps):
    dataset = Ramps(ramps.index, transforms=lambda sample: sample | {"seen": sample["row"] + 1})
    assert dataset[dataset.tile_slice(2)]["seen"] == 3


@pytest.mark.parametrize("native", [True, False])
def test_plot(ramps, native):
    dataset = Ramps(ramps.index, native=native)
    figure = dataset.plot(dataset[dataset.tile_slice(0)], suptitle="A tile")
    assert [ax.get_title() for ax in figure.axes] == ["Sentinel-2 L2A"]
    assert figure.get_suptitle() == "A tile"
    assert figure.axes[0].images[0].get_array().shape == (SIZE, SIZE, 3)
    with pytest.raises(TerraFMError, match="no image to plot"):
        dataset.plot({"row": torch.tensor(0)})


HOLES = [
    (S2L2A, torch.uint16, 0),
    (S1RTC, torch.int16, -32768),
    *((S1RTC, torch.float32, hole) for hole in (0.0, -32768.0, float("nan"), float("inf"), -float("inf"))),
]


def tile(modality, dtype, *, hole=None, where=0):
    """Native images of a tile; ``hole`` is one pixel of the group ``where``."""
    images = {}
    for place, (resolution, bands) in enumerate(modality.native.items()):
        edge = 120 // resolution
        image = np.full((len(bands), edge, edge), -3 if dtype == torch.int16 else 1)
        images[resolution] = torch.from_numpy(image).to(dtype)
        if hole is not None and place == where:
            images[resolution][-1, -1, 0] = hole
    return {resolution: image.numpy() for resolution, image in images.items()}


@pytest.mark.parametrize(("modality", "dtype", "hole"), HOLES)
def test_one_missing_pixel_in_any_group_is_seen(modality, dtype, hole):
    assert is_complete(tile(modality, dtype), modality)
    for where in range(len(modality.native)):
        assert not is_complete(tile(modality, dtype, hole=hole, where=where), modality)


def test_modalities_keep_their_places():
    coarse = torch.full((2, 1, 1), 5).to(torch.uint16)
    samples = [
        {"image_s1rtc_10m": torch.full((2, 6, 6), 1.0), "image_s2l2a_60m": coarse, "row": torch.tensor(7)},
        {"image_s2l2a_60m": coarse, "row": torch.tensor(8)},
        {"image_s1rtc_10m": torch.full((2, 6, 6), 3.0), "row": torch.tensor(9)},
    ]
    batch = collate_tiles(samples)
    assert batch["sample_idx_s1rtc"].tolist() == [0, 2]
    assert batch["image_s1rtc_10m"][:, 0, 0, 0].tolist() == [1.0, 3.0]
    assert batch["sample_idx_s2l2a"].tolist() == [0, 1]
    assert batch["image_s2l2a_60m"].dtype == torch.uint16
    assert batch["row"].tolist() == [7, 8, 9]
    assert not [key for key in batch if "s2l1c" in key]


def test_tiles_of_different_size_are_refused_in_words():
    samples = [{"image_s1rtc": torch.zeros(2, 6, 6)}, {"image_s1rtc": torch.zeros(2, 12, 12)}]
    with pytest.raises(TerraFMError, match=r"2 x 6 x 6 and 2 x 12 x 12.*tile_size"):
        collate_tiles(samples)

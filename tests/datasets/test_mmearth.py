import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torchgeo.datasets import MMEarth

from data.mmearth import data as fake
from datasets.tiny_files import sample_of
from terrafm_tg.datasets import MMEarthTiles, build_index
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES

FOLDER = "data_100k_v001"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmearth")
    fake.create(folder)
    return folder


def test_a_row_per_place_and_orbit(root):
    table = MMEarthTiles(root).table
    assert list(zip(table.place, table.orbit, strict=True)) == [
        ("1000007", "ascending"), ("1000007", "descending"), ("1000013", "ascending"), ("1000021", "none"),
        ("1000033", "descending"),
    ]  # fmt: skip
    assert table.has_s1rtc.tolist() == [True, True, True, False, True]  # HH and HV are no bands of ours
    assert table.has_s2l1c.tolist() == [True, True, False, False, True]
    assert (table.has_s2l2a == ~table.has_s2l1c).all()
    assert not table.duplicated(["cell", "quadrant"]).any()
    assert (table[["offset_s2l1c", "offset_s2l2a"]] == 0).all(axis=None)
    assert pd.Timestamp("2019-07-16 12:00") in MMEarthTiles(root).index.index[0]


@pytest.mark.parametrize("row", range(5))
def test_stored_numbers(root, row):
    """Against TorchGeo's own order of bands, place by place."""
    dataset = MMEarthTiles(root, native=True)
    sample, number = sample_of(dataset, row), dataset.table.place[row]
    place = next(place for place in fake.PLACES if place[0] == number)
    for name in ("s2l1c", "s2l2a"):
        for resolution, bands in MODALITIES[name].native.items():
            key = f"image_{name}_{resolution}m"
            assert (key in sample) == (place[4] == name[2:])
            if key in sample:
                order = [MMEarth.all_modality_bands["sentinel2"].index(b.replace("B0", "B")) for b in bands]
                np.testing.assert_array_equal(sample[key], fake.optics(place)[order])
    if place[0] == "1000021":
        assert "image_s1rtc_10m" not in sample
    else:
        first = 4 * (dataset.table.orbit[row] == "descending")
        power = 10 ** (fake.radar(place)[first : first + 2] / 10)  # VV, VH
        np.testing.assert_allclose(sample["image_s1rtc_10m"], power, rtol=1e-5)


def test_agrees_with_torchgeo(tmp_path):
    """TorchGeo's samples, with statistics that change nothing."""
    fake.create(tmp_path)
    neutral = {
        kind: {"mean": [0.0] * 13, "std": [1.0] * 13} for kind in ("sentinel2_l1c", "sentinel2_l2a", "sentinel1")
    }
    (tmp_path / FOLDER / f"{FOLDER}_band_stats.json").write_text(json.dumps(neutral))
    bands = {"sentinel2": ["B8A", "B2", "B9"], "sentinel1_desc": ["VV", "VH"]}
    theirs = MMEarth(tmp_path, "MMEarth100k", list(bands), bands)[0]
    ours = sample_of(MMEarthTiles(tmp_path), 1)
    torch.testing.assert_close(ours["image_s1rtc"], theirs["image_sentinel1_desc"], rtol=1e-5, atol=1e-5)
    order = MODALITIES["s2l1c"].band_indices(["B02", "B8A", "B09"])  # TorchGeo sorts them as the file has them
    torch.testing.assert_close(ours["image_s2l1c"][order], theirs["image_sentinel2"])


def test_middle_of_a_tile(root):
    outline = MMEarthTiles(root).index.geometry
    for row, place in ((0, fake.PLACES[0]), (2, fake.PLACES[1]), (3, fake.PLACES[2])):
        lon, lat = outline.iloc[row].centroid.coords[0]
        assert abs(lat - place[1]) < 1e-4
        assert abs(lon - place[2]) < 1e-4 / np.cos(np.radians(lat))


def test_optics_alone_come_once(root):
    assert len(MMEarthTiles(root, ["s2l1c", "s2l2a"])) == 4
    assert len(MMEarthTiles(root, ["s1rtc"])) == 4


def test_land_cover_of_the_file(tmp_path):
    fake.create(tmp_path)
    table = build_index(tmp_path, workers=0, progress=False)
    assert (table.land_cover == 3).all()
    np.testing.assert_allclose(np.stack(table.land_cover_share)[:, [0, 3]], [[0.25, 0.75]] * 5)
    dataset = MMEarthTiles(tmp_path)
    assert sample_of(dataset)["land_cover"] == 3


def test_small_subset(tmp_path):
    fake.create(tmp_path, "MMEarth64", 64)
    assert sample_of(MMEarthTiles(tmp_path))["image_s2l1c"].shape == (12, 64, 64)
    fake.create(tmp_path, "MMEarth100k")
    with pytest.raises(TerraFMError, match="holds MMEarth64 and MMEarth100k: set `subset` to one of them"):
        MMEarthTiles(tmp_path)
    assert sample_of(MMEarthTiles(tmp_path, subset="MMEarth100k"))["image_s2l1c"].shape == (12, 128, 128)


def test_wrong_settings(root, tmp_path):
    with pytest.raises(TerraFMError, match=r"holds no MMEarth: expected files such as .*data_100k_v001.h5"):
        MMEarthTiles(tmp_path)
    with pytest.raises(TerraFMError, match="`subset` must be one of MMEarth, MMEarth64, MMEarth100k, got 'tiny'"):
        MMEarthTiles(root, subset="tiny")
    with pytest.raises(TerraFMError, match="holds no MMEarth64"):
        MMEarthTiles(root, subset="MMEarth64")
    fake.create(tmp_path)
    (tmp_path / FOLDER / f"{FOLDER}_splits.json").unlink()
    with pytest.raises(TerraFMError, match=r"is not complete: it needs .*splits.json"):
        MMEarthTiles(tmp_path)


def test_damage_is_named(tmp_path):
    fake.create(tmp_path)
    dataset = MMEarthTiles(tmp_path)
    path = tmp_path / FOLDER / f"{FOLDER}.h5"
    with h5py.File(path) as file:
        at = file["sentinel2"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as file:
        file.seek(at + 1000)
        file.write(bytes(2000))
    with pytest.raises(DamagedTileError, match="1000013/ascending s2l2a cannot be used: sentinel2 of row 1: "):
        sample_of(dataset, 2)
    assert "image_s2l1c" in sample_of(dataset, 0)

"""Cubes of several dates, chips without a place, and the settings of a folder on the commands."""

import json

import h5py
import numpy as np
import providers as p
import pytest
import zarr

from datasets.tiny_files import sample_of
from refusals import refused
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import SentinelFolder, build_index
from terrafm_tg.datasets.scenes.find import find_scenes
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.modalities import S2L2A
from terrafm_tg.utils.trust import open_cube


@pytest.mark.parametrize("fmt", ["netcdf", "zarr"])
@pytest.mark.parametrize("bands_dim", [False, True])
def test_each_date_of_a_cube_is_a_scene(tmp_path, fmt, bands_dim):
    images = [p.optical(60, seed=s, time=f"2023030{s + 1}T000000") for s in range(3)]
    p.openeo(tmp_path, images, f"cube_L2A.{'zarr' if fmt == 'zarr' else 'nc'}", bands_dim, fmt)
    dataset = SentinelFolder(tmp_path, native=True)
    assert dataset.table.date_s2l2a.dt.day.tolist() == [1, 2, 3]
    for row, image in enumerate(images):
        sample = sample_of(dataset, row)
        for resolution, expected in p.native_groups(image, "s2l2a", at_ten=True).items():
            np.testing.assert_array_equal(sample[f"image_s2l2a_{resolution}m"], expected)


def test_a_cube_with_rows_from_the_south_is_turned(tmp_path):
    image = p.optical(60)
    path = p.openeo(tmp_path / "L2A", image)
    open_cube(path).load().isel(y=slice(None, None, -1)).to_netcdf(tmp_path / "L2A/turned.nc", engine="h5netcdf")
    path.unlink()
    dataset = SentinelFolder(tmp_path, native=True)
    np.testing.assert_array_equal(sample_of(dataset)["image_s2l2a_10m"], p.native_groups(image, "s2l2a", True)[10])


def test_scale_and_offset_of_a_cube_hold(tmp_path):
    more = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": np.uint16(0)}
    image = p.optical(60, 1000, more=more)
    p.openeo(tmp_path / "L2A", image)
    sample = sample_of(SentinelFolder(tmp_path, native=True))
    np.testing.assert_array_equal(sample["image_s2l2a_10m"], p.native_groups(image, "s2l2a", True)[10] - 1000)


class TestTrust:
    def test_a_codec_that_runs_code_is_never_met(self, tmp_path):
        store = p.openeo(tmp_path, p.optical(60), "cube_L2A.zarr", fmt="zarr")
        name = next(store.glob("B02/.zarray"), None) or store / "B02/zarr.json"
        meta = json.loads(name.read_text())
        if name.name == ".zarray":
            meta["filters"] = [{"id": "pickle"}]
        else:
            meta["codecs"] = [{"name": "numcodecs.pickle"}, *meta["codecs"]]
        name.write_text(json.dumps(meta))
        ((_, reason),) = find_scenes(tmp_path).refused
        assert "pickle', which is not read" in reason

    def test_endless_sizes(self, tmp_path):
        root = zarr.open_group(tmp_path / "a_L2A.zarr", mode="w")
        root.create_array("B02", shape=(1 << 20, 1 << 20), chunks=(1 << 16, 1 << 16), dtype="u2")
        ((_, reason),) = find_scenes(tmp_path).refused
        assert "declares chunks of 4,294,967,296 values" in reason

    def test_a_netcdf_that_leads_elsewhere(self, tmp_path):
        path = p.openeo(tmp_path, p.optical(60), "cube_L2A.nc")
        with h5py.File(path, "a") as file:
            del file["B02"]
            file["B02"] = h5py.ExternalLink("/etc/x.h5", "B02")
        ((_, reason),) = find_scenes(tmp_path).refused
        assert "keeps 'B02' in another file, which was not opened" in reason

    @pytest.mark.parametrize("name", ["a.nc", "b.zip", "c.npy"])
    def test_garbage_is_one_sentence(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        with refused(match=r"No scene .* can be used \("):
            SentinelFolder(tmp_path)


class TestChips:
    def chips(self, root, form, count=3):
        images = [p.optical(60, seed=s) for s in range(count)]
        for number, image in enumerate(images):
            pixels = np.stack([image.at_ten(b) for b in S2L2A.bands])
            vv_vh = np.stack([*p.radar(60, seed=number, unit="dB").bands.values()])
            for folder, values in (("S2L2A", pixels), ("S1", vv_vh)):
                path = root / folder / f"chip{number}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                if form == "npy":
                    np.save(path, values.transpose(1, 2, 0) if number else values)
                else:
                    import rasterio

                    how = {"count": len(values), "height": 60, "width": 60, "dtype": values.dtype}
                    with rasterio.open(path.with_suffix(".tif"), "w", driver="GTiff", **how) as file:
                        file.write(values)
        return images

    @pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
    @pytest.mark.parametrize("form", ["npy", "tif"])
    def test_taken_joined_by_name_and_said(self, tmp_path, form):
        images = self.chips(tmp_path, form)
        with pytest.warns(UserWarning, match=r"images have no place .*\(3 in all\)"):
            index = build_index(tmp_path, tile_size=60, workers=0, progress=False)
        assert (index[["land_cover", "climate", "region"]] == -1).all(axis=None)
        dataset = SentinelFolder(tmp_path, native=True, tile_size=60)
        assert len(dataset) == 3
        seen = set()
        for row in range(3):
            number = int(dataset.table.product_s2l2a[row][-1])
            seen.add(number)
            assert dataset.table.product_s1rtc[row] == f"chip{number}"
            sample = sample_of(dataset, row)
            for resolution, expected in p.native_groups(images[number], "s2l2a", True).items():
                np.testing.assert_array_equal(sample[f"image_s2l2a_{resolution}m"], expected)
            radar = p.native_groups(p.radar(60, seed=number), "s1rtc")[10]
            np.testing.assert_allclose(sample["image_s1rtc_10m"], radar, rtol=1e-5)
        assert seen == {0, 1, 2}

    @pytest.mark.filterwarnings("ignore:1 image has no place")
    def test_cut_into_tiles(self, tmp_path):
        (image,) = self.chips(tmp_path, "npy", 1)
        dataset = SentinelFolder(tmp_path, ["s2l2a"], native=True, tile_size=30)
        assert len(dataset) == 4
        whole = p.native_groups(image, "s2l2a", True)[10]
        for row in range(4):
            part = whole[:, row // 2 * 30 :][:, :30, row % 2 * 30 :][..., :30]
            np.testing.assert_array_equal(sample_of(dataset, row)["image_s2l2a_10m"], part)


class TestSettings:
    """R19: every setting of the dataset on the command, kept in the index."""

    def test_on_the_command(self, tmp_path, capsys):
        image, sar = p.optical(60, 1000, baseline=None), p.radar(60)
        order = S2L2A.bands[::-1]
        p.stack(tmp_path / "sentinel2", image, order)
        p.stack(tmp_path / "sentinel1", sar, ["VV", "VH"], names=str)
        p.stack(tmp_path / "old", p.optical(60, seed=9), name="junk_L2A")
        words = ["--folders", '{"s1rtc": "sentinel1", "s2l2a": "sentinel2"}', "--bands", json.dumps({"s2l2a": order})]
        words += ["--offset", "1000", "--unit", '{"s1rtc": "linear"}', "--max_days", "3", "--nodata", "65535"]
        main(["index", str(tmp_path), *words, "--tile_size", "60", "--figure", "false", "--workers", "0"])
        table, made_for = read_index(tmp_path / "index.parquet")
        assert len(table) == 1
        assert (made_for["offset"], made_for["max_days"], made_for["nodata"]) == (1000, 3, 65535)
        dataset = SentinelFolder(tmp_path, native=True, tile_size=60)
        sample = sample_of(dataset)
        for resolution, expected in p.native_groups(image, "s2l2a", True).items():
            np.testing.assert_array_equal(sample[f"image_s2l2a_{resolution}m"], expected - 1000)
        np.testing.assert_array_equal(sample["image_s1rtc_10m"], p.native_groups(sar, "s1rtc")[10])
        with refused(match="made for offset=1000, the dataset has 0"):
            SentinelFolder(tmp_path, tile_size=60, offset=0)

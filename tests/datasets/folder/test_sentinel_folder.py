import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from scipy.ndimage import map_coordinates
from tiny_files import EPSG, X, Y, optics, radar, sample_of, write

from refusals import damaged, refused
from terrafm_tg.datasets import SentinelFolder
from terrafm_tg.modalities import S2L2A

ORDER13 = [*S2L2A.bands[:10], "B10", *S2L2A.bands[10:]]


@pytest.fixture
def root(tmp_path):
    """One place in three multi-band files, L1C with B10 and the offset."""
    write(tmp_path / "S2L2A/place_2022.tif", optics(12), datetime="2022-06-01T10:00:00")
    write(tmp_path / "S2L1C/place_2022.tif", optics(13, offset=1000), datetime="2022-06-01T10:00:00")
    write(tmp_path / "S1RTC/place_2022.tif", radar(), datetime="2022-06-03T05:00:00")
    write(tmp_path / "LULC/place_2022.tif", np.ones((24, 24), np.uint8))
    return tmp_path


class TestMultiBandFiles:
    def test_joined_and_described(self, root):
        index = SentinelFolder(root).index
        assert len(index) == 1
        row = index.iloc[0]
        assert (row.has_s2l2a, row.has_s2l1c, row.has_s1rtc) == (True, True, True)
        assert (row.offset_s2l2a, row.offset_s2l1c) == (0, 1000)
        assert (row.epsg, row.cell) == (EPSG, "502U_107R")
        assert index.index[0] == pd.Interval(pd.Timestamp("2022-06-01 10:00"), pd.Timestamp("2022-06-03 05:00"), "both")
        assert row.geometry.centroid.coords[0] == pytest.approx((13.729, 45.145), abs=1e-2)

    def test_native_pixels_at_their_stored_size(self, root):
        sample = sample_of(SentinelFolder(root, native=True))
        for modality, pixels, order in (("s2l2a", optics(12), S2L2A.bands), ("s2l1c", optics(13), ORDER13)):
            for resolution, bands in S2L2A.native.items():
                expected = pixels[[order.index(band) for band in bands]]
                np.testing.assert_array_equal(sample[f"image_{modality}_{resolution}m"].numpy(), expected)
        np.testing.assert_allclose(sample["image_s1rtc_10m"], 10 ** (radar() / 10), rtol=1e-5)
        assert sample["transform"].tolist()[:6] == [10, 0, X, 0, -10, Y]
        assert sample["epsg"] == EPSG

    def test_ten_metres(self, root):
        sample = sample_of(SentinelFolder(root))
        np.testing.assert_array_equal(sample["image_s2l2a"], optics(12))
        np.testing.assert_allclose(sample["image_s1rtc"], radar(), rtol=1e-4)

    def test_coarse_pixels_are_enlarged_to_the_tile(self, tmp_path):
        write(tmp_path / "S2L2A/coarse.tif", optics(12), res=60)
        with pytest.warns(UserWarning, match="pixels of 60 m"):
            dataset = SentinelFolder(tmp_path, tile_size=24, native=True)
        tile = dataset[dataset.tile_slice(0)]
        assert [tile[f"image_s2l2a_{r}m"].shape[1:] for r in (10, 20, 60)] == [(24, 24), (12, 12), (4, 4)]
        places = [S2L2A.bands.index(band) for band in S2L2A.native[60]]
        np.testing.assert_array_equal(tile["image_s2l2a_60m"], optics(12)[places, :4, :4])
        places = [S2L2A.bands.index(band) for band in S2L2A.native[10]]
        pixels = optics(12)[places, :4, :4].astype(float)
        between = (np.arange(24) + 0.5) / 6 - 0.5
        grid = np.meshgrid(range(4), between, between, indexing="ij")
        inner = slice(3, 21)  # beyond, pixels of the next tile count
        expected = map_coordinates(pixels, grid, order=1, mode="nearest")[:, inner, inner]
        assert abs(tile["image_s2l2a_10m"].numpy()[:, inner, inner] - expected).max() <= 1

    def test_bands_by_description(self, root):
        names = ["B8A", *[f"b{i}" for i in range(1, 9)], "B12", "B11", "B9"]
        write(root / "S2L2A/place_2022.tif", optics(12), descriptions=names)
        got = sample_of(SentinelFolder(root))["image_s2l2a"]
        np.testing.assert_array_equal(got[S2L2A.bands.index("B8A")], optics(12)[0])
        np.testing.assert_array_equal(got[S2L2A.bands.index("B11")], optics(12)[10])

    def test_bands_by_setting(self, root):
        order = S2L2A.bands[::-1]
        got = sample_of(SentinelFolder(root, bands={"s2l2a": order}))["image_s2l2a"]
        np.testing.assert_array_equal(got, optics(12)[::-1])

    def test_large_images_are_cut(self, root):
        for name, pixels in (("S2L2A", optics(12, 40)), ("S1RTC", radar(40))):
            write(root / name / "place_2022.tif", pixels)
        dataset = SentinelFolder(root, ["s2l2a", "s1rtc"], tile_size=18)
        assert len(dataset) == 4
        for row in range(4):
            sample, window = sample_of(dataset, row), np.s_[:, row // 2 * 18 :, row % 2 * 18 :]
            np.testing.assert_array_equal(sample["image_s2l2a"], optics(12, 40)[window][:, :18, :18])
            np.testing.assert_allclose(sample["image_s1rtc"], radar(40)[window][:, :18, :18], rtol=1e-4)
            assert sample["transform"].tolist()[2::3][:2] == [X + row % 2 * 180, Y - row // 2 * 180]


class TestOneFilePerBand:
    @pytest.fixture
    def root(self, tmp_path):
        for band, res in zip(S2L2A.bands, S2L2A.resolutions, strict=True):
            name = f"S2A_MSIL2A_20220601T100000_N0400_{band}.tif"
            write(tmp_path / "S2" / name[:-8] / name, optics(1, 240 // res, 1000, seed=len(band) + res)[0], res=res)
        for band, pixels in zip(("VV", "VH"), radar(), strict=True):
            write(tmp_path / "s1" / "S1A_20220603T050000" / f"{band}.tif", pixels)
        return tmp_path

    def test_native_sizes(self, root):
        dataset = SentinelFolder(root, native=True)
        assert dataset.index.offset_s2l2a.tolist() == [1000]  # by name
        assert dataset.name(0) == "S2/S2A_MSIL2A_20220601T100000_N0400/S2A_MSIL2A_20220601T100000_N0400_*.tif"
        sample = sample_of(dataset)
        shapes = {key: tuple(value.shape) for key, value in sample.items() if "image" in key}
        assert shapes == {
            "image_s1rtc_10m": (2, 24, 24),
            "image_s2l2a_10m": (4, 24, 24),
            "image_s2l2a_20m": (6, 12, 12),
            "image_s2l2a_60m": (2, 4, 4),
        }
        np.testing.assert_array_equal(sample["image_s2l2a_20m"][3], optics(1, 12, seed=3 + 20)[0])
        np.testing.assert_array_equal(sample["image_s2l2a_60m"][0], optics(1, 4, seed=3 + 60)[0])

    def test_cut_to_native_windows(self, root):
        sample = sample_of(SentinelFolder(root, ["s2l2a"], native=True, tile_size=12), 3)
        np.testing.assert_array_equal(sample["image_s2l2a_60m"][0], optics(1, 4, seed=3 + 60)[0][2:, 2:])

    def test_short_band_names(self, root):
        for path in root.rglob("*B0*.tif"):
            path.rename(path.with_name(path.name.replace("B0", "B")))
        assert "image_s2l2a" in sample_of(SentinelFolder(root))

    def test_a_product_without_a_band_has_the_others(self, root):
        next(root.rglob("*B11.tif")).unlink()
        sample = sample_of(SentinelFolder(root, native=True))
        assert sample["bands_s2l2a"].tolist() == [band != "B11" for band in S2L2A.bands]
        assert not sample["image_s2l2a_20m"][S2L2A.native[20].index("B11")].any()

    def test_a_band_that_vanishes_is_damage(self, root):
        dataset = SentinelFolder(root)
        next(root.rglob("*B11.tif")).unlink()
        with damaged(match=r"S2/.*_\*\.tif s2l2a cannot be used: .*B11.tif: No such file"):
            sample_of(dataset)


class TestJoining:
    def test_dates_that_differ_by_sensor(self, tmp_path):
        for date in ("20220101", "20220701"):
            write(tmp_path / f"S2L2A/a_{date}.tif", optics(12))
        for date in ("20220110", "20220620", "20221201"):
            write(tmp_path / f"S1/b_{date}.tif", radar())
        index = SentinelFolder(tmp_path).index
        pairs = set(zip(index.product_s2l2a.astype(str), index.product_s1rtc, strict=True))
        joined = {("a_20220101", "b_20220110"), ("a_20220701", "b_20220620")}
        assert pairs == joined | {("a_20220701", "b_20221201")}  # one image may go with several
        near = SentinelFolder(tmp_path, max_days=10).index
        assert sorted(near.has_s2l2a & near.has_s1rtc) == [False, False, False, True]

    def test_other_places_are_not_joined(self, tmp_path):
        write(tmp_path / "S2L2A/a.tif", optics(12))
        write(tmp_path / "S1/a.tif", radar(), x=X + 200)
        assert len(SentinelFolder(tmp_path)) == 2

    def test_images_without_a_date_are_valid_for_all_time(self, tmp_path):
        write(tmp_path / "S2L2A/a.tif", optics(12))
        dataset = SentinelFolder(tmp_path)
        assert pd.Timestamp("1990-01-01") in dataset.index.index[0]
        x, y, _ = dataset.tile_slice(0)
        assert dataset.resolve((x, y, slice(pd.Timestamp("2050-01-01"), pd.Timestamp("2050-02-01")))) == 0

    def test_a_shifted_grid_is_interpolated_as_power(self, tmp_path):
        write(tmp_path / "S2L2A/a.tif", optics(12))
        write(tmp_path / "S1/a.tif", radar(28), x=X - 17, y=Y + 13)
        sample = sample_of(SentinelFolder(tmp_path, native=True))
        at = np.meshgrid(np.arange(24) + 1.3, np.arange(24) + 1.7, indexing="ij")
        expected = map_coordinates(10 ** (radar(28)[0] / 10), at, order=1)
        np.testing.assert_allclose(sample["image_s1rtc_10m"][0], expected, rtol=1e-4)


class TestOffsets:
    @pytest.fixture
    def root(self, tmp_path):
        """Snow: nothing tells whether there is an offset."""
        write(tmp_path / "S2L2A/snow.tif", optics(12) + np.uint16(6000))
        return tmp_path

    def test_unknown_is_refused_or_decided(self, root):
        with refused(match=r"s2l2a.*1 of 1 tiles.*snow.*`ambiguous_offset`"):
            SentinelFolder(root)
        assert SentinelFolder(root, harmonize=False).index.offset_s2l2a.tolist() == [-1]
        assert SentinelFolder(root, ambiguous_offset="present").index.offset_s2l2a.tolist() == [1000]

    @pytest.mark.parametrize("offset", [1000, {"s2l2a": 1000}])
    def test_given(self, root, offset):
        dataset = SentinelFolder(root, offset=offset)
        assert dataset.index.offset_s2l2a.tolist() == [1000]
        np.testing.assert_array_equal(sample_of(dataset)["image_s2l2a"], optics(12) + 5000)

    def test_wrong_settings(self, root):
        with refused(match=r"must be 0, 1000 or 'detect', got 'guess'"):
            SentinelFolder(root, offset="guess")
        with refused(match="Modality 's2' is unknown"):
            SentinelFolder(root, offset={"s2": 1000})


class TestBadInput:
    def test_root(self, tmp_path):
        with refused(match="nowhere is no folder"):
            SentinelFolder(tmp_path / "nowhere")
        (tmp_path / "optical").mkdir()
        for folders in (None, {"s2l2a": "optical"}):
            with refused(match=r"No scene .* can be used \(it holds no image\)"):
                SentinelFolder(tmp_path, folders=folders)
        with refused(match=r"radar is no folder.*`folders` for s1rtc"):
            SentinelFolder(tmp_path, folders={"s1rtc": "radar"})

    def test_units(self, root):
        with refused(match=r"linear power by `unit`.*negative.*set `unit` to 'dB'"):
            SentinelFolder(root, unit={"s1rtc": "linear"})
        with refused(match="`unit` must be one of .*, got 'watts'"):
            SentinelFolder(root, unit="watts")
        write(root / "S1RTC/place_2022.tif", 10 ** (radar() / 10))
        got = sample_of(SentinelFolder(root, unit={"s1rtc": "linear"}))["image_s1rtc"]
        np.testing.assert_allclose(got, radar(), rtol=1e-3)

    def test_reflectance(self, root):
        write(root / "S2L2A/place_2022.tif", optics(12).astype(np.float32) / 10_000)
        np.testing.assert_array_equal(sample_of(SentinelFolder(root))["image_s2l2a"], optics(12))

    def test_files_that_cannot_be_used_are_named(self, root):
        (root / "S2L2A/empty.tif").write_bytes(b"")
        write(root / "S2L2A/three.tif", optics(3))
        with pytest.warns(UserWarning, match=r"2 images below .* are left out, first S2L2A/empty.tif: "):
            assert len(SentinelFolder(root)) == 1

    def test_truncated(self, root):
        dataset = SentinelFolder(root)
        path = root / "S2L1C/place_2022.tif"
        path.write_bytes(path.read_bytes()[:-400])
        with damaged(match=r"S2L2A/place_2022.tif s2l1c cannot be used: place_2022.tif: "):
            sample_of(dataset)

    def test_nan(self, root):
        pixels = radar()
        pixels[0, 0, 0] = np.nan
        write(root / "S1RTC/place_2022.tif", pixels)
        missing = sample_of(SentinelFolder(root))["image_s1rtc"].isnan()
        assert missing.nonzero().tolist() == [[0, 0, 0]]

    def test_zero_power_is_missing(self, root):
        pixels = radar()
        pixels[0, 0, :2] = [-np.inf, -9999]
        write(root / "S1RTC/place_2022.tif", pixels)
        missing = sample_of(SentinelFolder(root))["image_s1rtc"].isnan()
        assert missing.nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]


class TestRealFolders:
    def test_terramesh(self, real_data):
        dataset = SentinelFolder(real_data / "terramesh")
        assert dataset.index.has_s1rtc.all()
        assert [name.rsplit("_", 2)[0] for name in dataset.index.product_s2l2a] == dataset.index.cell.tolist()
        offsets = dict(zip(dataset.index.cell, dataset.index.offset_s2l1c, strict=True))
        assert offsets == {"282D_485L": 1000, "433D_629L": 1000, "609U_541L": 1000, "38D_378R": 0, "637U_59R": 0}
        offsets = dict(zip(dataset.index.cell, dataset.index.offset_s2l2a, strict=True))
        assert offsets == dict.fromkeys(offsets, 0) | {"433D_629L": 1000}  # its darkest pixel is 1085, 104 in L1C
        for row in range(5):
            sample = sample_of(dataset, row)
            path = dataset.index.path_s1rtc.iat[row]
            with rasterio.open(real_data / "terramesh" / path) as src:
                np.testing.assert_allclose(sample["image_s1rtc"], src.read(), rtol=1e-4)
                assert sample["transform"].tolist()[:6] == list(src.transform)[:6]
            # short-wave infrared passes the air almost unchanged: alike once the offset of L1C is gone
            swir = S2L2A.bands.index("B12")
            assert torch.median((sample["image_s2l1c"] - sample["image_s2l2a"])[swir]).abs() < 600

    def test_ssl4eo_s12(self, real_data):
        dataset = SentinelFolder(real_data / "ssl4eo_s12", native=True)
        assert dataset.index.date_s1rtc.dt.strftime("%m%d").tolist() == ["0607", "0903"]
        assert dataset.index.date_s2l1c.dt.strftime("%m%d").tolist() == ["0604", "0823"]
        sample = sample_of(dataset)
        assert sample["image_s2l1c_60m"].shape == (2, 44, 44) or sample["image_s2l1c_60m"].shape == (2, 264, 264)
        assert sample["image_s1rtc_10m"].shape == sample["image_s2l2a_10m"][:2].shape
        assert (sample["image_s1rtc_10m"] > 0).float().mean() > 0.97  # the radar's grid starts 4 pixels further west
        assert sample["epsg"] == 4326

    def test_bigearthnet(self, real_data):
        dataset = SentinelFolder(real_data / "bigearthnet", native=True)
        both = dataset.index.has_s1rtc & dataset.index.has_s2l2a
        assert both.sum() == 6
        sample = sample_of(dataset, int(both.to_numpy().argmax()))
        assert {tuple(v.shape) for k, v in sample.items() if "image" in k} == {
            (2, 120, 120), (4, 120, 120), (6, 60, 60), (2, 20, 20),
        }  # fmt: skip

"""The same pixels in each provider's layout: read exactly, from the files that a user would have downloaded."""

import shutil
from dataclasses import replace

import numpy as np
import providers as p
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from datasets.tiny_files import sample_of
from refusals import refused
from terrafm_tg.datasets import SentinelFolder
from terrafm_tg.datasets.scenes.find import find_scenes
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pixels import read_tile
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S2L2A
from terrafm_tg.radiometry import Settings

#: Bands of these lie at 10 m in their files.
AT_TEN = {"earth_engine", "openeo", "stack"}


def read(root, settings=None, folders=None, **how):
    """The native groups of the only scene below a root, without the offset."""
    _, ((scene, verdict),) = find_judged(root, settings or Settings(), folders)
    size, crs = (scene.height, scene.width), CRS.from_epsg(scene.epsg)
    return scene, read_tile(root, scene, verdict, crs, scene.transform, size, harmonize=True, **how)


def same(groups, image, offset=0, at_ten=False, modality="s2l2a"):
    for resolution, expected in p.native_groups(image, modality, at_ten).items():
        np.testing.assert_array_equal(groups[resolution], expected - expected.dtype.type(offset))


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("provider", p.OPTICAL_WRITERS)
def test_optical(tmp_path, provider, offset):
    image = p.optical(60, offset, baseline=509 if offset else 300)
    p.OPTICAL_WRITERS[provider](tmp_path / "S2L2A", image)
    scene, groups = read(tmp_path)
    same(groups, image, offset, provider in AT_TEN)
    assert (scene.modality, scene.epsg, scene.time.strftime("%Y%m%d")) == ("s2l2a", 32633, "20230302")


@pytest.mark.parametrize("provider", p.RADAR_WRITERS)
def test_radar(tmp_path, provider):
    in_db = provider in ("earth_engine", "snap")
    p.RADAR_WRITERS[provider](tmp_path, p.radar(60, unit="dB" if in_db else "linear"))
    scene, groups = read(tmp_path)
    expected = p.native_groups(p.radar(60), "s1rtc")[10]
    np.testing.assert_allclose(groups[10], expected, rtol=1e-6 if in_db else 0)
    assert (scene.modality, scene.platform) == ("s1rtc", "sentinel-1a")


class TestSafe:
    @pytest.mark.parametrize("how", [{"zipped": True}, {"metadata": False}, {"driver": "GTiff"}])
    def test_forms(self, tmp_path, how):
        image = p.optical(60, 1000)
        p.safe(tmp_path, image, **how)
        same(read(tmp_path)[1], image, 1000)

    def test_metadata(self, tmp_path):
        p.safe(tmp_path, p.optical(60, 1000), zipped=True)
        scene = find_scenes(tmp_path).scenes[0]
        assert (scene.claims.baseline, scene.claims.offset, scene.claims.scale) == (509, -0.1, 1e-4)
        assert (scene.cloud_cover, scene.orbit_state, scene.platform) == (12.5, "descending", "sentinel-2b")
        assert scene.time.strftime("%H%M%S") == "095029"

    def test_a_name_and_metadata_that_differ(self, tmp_path):
        image = p.optical(60)
        product = p.safe(tmp_path, image)
        path = product / "MTD_MSIL2A.xml"
        path.write_text(p.xml(replace(image, baseline=209)))
        with refused(match="says baseline 509 and .*says 209: set `offset`"):
            read(tmp_path)
        same(read(tmp_path, Settings(offset=0))[1], image)

    def test_an_item_of_another_image_says_nothing(self, tmp_path):
        image = p.optical(60, baseline=300)
        folder = p.earth_search(tmp_path, image)
        claims = find_scenes(tmp_path).scenes[0].claims
        assert (claims.baseline, claims.offset_applied) == (300, False)
        assert claims.source["offset_applied"] == f"its metadata ({folder.name}.json)"
        (folder / f"{folder.name}.json").write_text(
            '{"id": "S2A_10UEV", "properties": {"s2:processing_baseline": "05.09"}}'
        )
        assert find_scenes(tmp_path).scenes[0].claims.baseline is None

    def test_level_1c_of_any_satellite(self, tmp_path):
        image = p.optical(60, level="L1C", baseline=209, platform="S2D")
        p.safe(tmp_path, image)
        scene, groups = read(tmp_path)
        same(groups, image, modality="s2l1c")
        assert (scene.modality, scene.platform, "B10" in scene.bands) == ("s2l1c", "sentinel-2d", True)

    @pytest.mark.parametrize("resolutions", [(60,), (20,), (20, 60), (10, 20)])
    def test_some_resolutions(self, tmp_path, resolutions):
        image = p.optical(120, 1000)
        p.safe(tmp_path, image, resolutions)
        scene, groups = read(tmp_path)
        for band, source in scene.bands.items():
            native = S2L2A.resolutions[S2L2A.bands.index(band)]
            res = min((r for r in resolutions if r >= native), default=0)
            assert source.path.endswith(f"{band}_{res}m.jp2")
            group = S2L2A.native[native]
            held = [b for b in group if b in scene.bands]
            step = res // native
            expected = image.bands[band][::step, ::step] - np.uint16(1000)
            np.testing.assert_array_equal(groups[native][held.index(band)], expected)

    def test_behind_a_link_that_also_leads_back(self, tmp_path):
        image = p.optical(60)
        product = p.safe(tmp_path / "archive", replace(image, baseline=300))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/linked").symlink_to(product, target_is_directory=True)
        (tmp_path / "mine/loop").symlink_to(tmp_path / "mine", target_is_directory=True)
        same(read(tmp_path / "mine")[1], image)

    def test_zipped_and_unpacked_are_one(self, tmp_path):
        image = p.optical(60, baseline=300)
        p.safe(tmp_path, image, zipped=True)
        shutil.unpack_archive(next(tmp_path.glob("*.zip")), tmp_path)
        found = find_scenes(tmp_path)
        assert len(found.scenes) == 1
        assert "is the same product as" in found.refused[0][1]


class TestNames:
    """R2: names that hold one band each are obeyed in any order and spelling."""

    SPELLINGS = (
        lambda b: f"0_{b}", lambda b: f"{b}_10m", lambda b: f"S2_{b}", lambda b: f"{b} surface reflectance",
        lambda b: b.replace("B0", "B"), p.COMMON.__getitem__, str.lower,
    )  # fmt: skip

    @pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
    def test_optical(self, tmp_path, spelling):
        image = p.optical(60, baseline=300)
        order = np.random.default_rng(spelling).permutation(S2L2A.bands).tolist()
        p.stack(tmp_path, image, order, self.SPELLINGS[spelling])
        same(read(tmp_path)[1], image, at_ten=True)

    @pytest.mark.parametrize(
        "names", [("Sigma0_VH_db", "Sigma0_VV_db"), ("VH_dB", "VV_dB"), ("0_VH", "0_VV"), ("vh", "vv")]
    )
    def test_radar(self, tmp_path, names):
        p.snap(tmp_path, p.radar(60, unit="dB"), names)
        np.testing.assert_allclose(read(tmp_path)[1][10], p.native_groups(p.radar(60), "s1rtc")[10], rtol=1e-6)

    def test_toBands_with_image_names(self, tmp_path):
        image = p.optical(60, baseline=None)
        p.earth_engine(tmp_path, image, prefix="20230302T095029_20230302T095345_T33UXP_")
        same(read(tmp_path)[1], image, at_ten=True)

    def test_a_list_of_another_length_is_not_passed_over(self, tmp_path):
        image = p.optical(60, baseline=300)
        p.stack(tmp_path, image, names=lambda band: "")
        with refused(match="it has 12 bands, and `bands` names 3: correct it"):
            read(tmp_path, Settings(bands=["B02", "B03", "B04"]))

    @pytest.mark.parametrize(
        ("names", "why"),
        [
            (lambda b: f"layer {b[1:]}", "names no band: set `bands`"),
            (lambda b: "B02" if b == "B03" else b, "both name B02"),
            (lambda b: "" if b == "B03" else b, "only 11 of its 12 bands are named"),
            (lambda b: f"SR_{b}", "Landsat"),
        ],
    )
    def test_others_ask_for_bands_and_no_order_is_taken(self, tmp_path, names, why):
        image = p.optical(60, baseline=300)
        p.stack(tmp_path, image, names=names)
        with refused(match=why):
            read(tmp_path)
        same(read(tmp_path, Settings(bands=S2L2A.bands))[1], image, at_ten=True)

    def test_bands_decides_against_names_and_says_so(self, tmp_path):
        image = p.optical(60, baseline=300)
        p.stack(tmp_path, image, names=lambda b: {"B02": "B04", "B04": "B02"}.get(b, b))
        with pytest.warns(UserWarning, match="read as `bands` says"):
            same(read(tmp_path, Settings(bands=S2L2A.bands))[1], image, at_ten=True)

    def test_a_file_per_band_in_any_folders(self, tmp_path):
        image = p.optical(60, baseline=None)
        for band in image.bands:
            p.tiff(tmp_path / "l2a" / band / "site_20230302.tif", image, image.bands[band], image.res(band))
        same(read(tmp_path)[1], image)


class TestMissing:
    """R8, R9: masks, alpha, NaN and declared values are missing pixels."""

    def masked(self, root, form):
        image = p.optical(60, baseline=300)
        pixels, gone = np.stack([image.at_ten(b) for b in S2L2A.bands]), np.zeros((60, 60), bool)
        gone[:30] = True
        path = root / f"{image.product}.tif"
        stored = np.where(gone, 7 if form in ("mask", "alpha") else 65535, pixels).astype(np.uint16)
        if form == "mask":
            p.tiff(path, image, stored, mask=~gone)
        elif form == "alpha":
            stored = np.concatenate([stored, np.where(gone, 0, 65535)[None].astype(np.uint16)])
            p.tiff(path, image, stored)
            with rasterio.open(path, "r+") as file:
                file.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 11, ColorInterp.alpha]
        elif form == "tag":
            p.tiff(path, image, stored, nodata=65535)
        else:
            values = np.where(gone, np.nan if form == "nan" else -9999, pixels / 10_000)
            p.tiff(path, image, values.astype(np.float32))
        return image, gone

    @pytest.mark.parametrize("form", ["mask", "alpha", "tag", "nan", "fill"])
    def test_optical(self, tmp_path, form):
        image, gone = self.masked(tmp_path, form)
        groups = read(tmp_path)[1]
        for resolution, expected in p.native_groups(image, "s2l2a", at_ten=True).items():
            np.testing.assert_array_equal(groups[resolution], np.where(gone, 0, expected))

    def test_an_alpha_channel_in_the_middle_is_odd(self, tmp_path):
        """GDAL's ALPHA=YES names the second band so, whatever it holds."""
        image = p.optical(60, baseline=300)
        pixels = np.stack([*(image.at_ten(b) for b in S2L2A.bands), np.full((60, 60), 65535, np.uint16)])
        p.tiff(tmp_path / f"{image.product}.tif", image, pixels, photometric="minisblack", alpha="yes")
        with refused(match="one in the middle is declared an alpha channel: set `bands`"):
            read(tmp_path)

    def test_radar_mask(self, tmp_path):
        image, keep = p.radar(60, unit="dB"), np.ones((60, 60), bool)
        keep[:, 40:] = False
        stored = np.where(keep, np.stack([*image.bands.values()]), 0).astype(np.float32)
        p.tiff(tmp_path / "S1/a_20230303.tif", image, stored, names=["VV", "VH"], mask=keep)
        assert ((read(tmp_path)[1][10] == -32768) == ~keep).all()

    def test_clouds_where_asked(self, tmp_path):
        image = p.optical(60, baseline=300)
        product = p.safe(tmp_path, image, driver="GTiff")
        scl = np.full((30, 30), 4, np.uint8)
        scl[:10], scl[10:12] = 9, 3
        path = next(product.rglob("*SCL_20m.jp2"))
        p.tiff(path, image, scl, 20)
        same(read(tmp_path)[1], image)
        groups = read(tmp_path, cloudy=True)[1]
        for resolution, rows in ((10, 24), (20, 12), (60, 4)):
            there = (groups[resolution] > 0).all(axis=(0, 2))
            np.testing.assert_array_equal(there, np.arange(len(there)) >= rows)


class TestRadarForms:
    def test_asf_in_lower_case_and_any_unit(self, tmp_path):
        for scale, unit in (("p", "linear"), ("d", "dB"), ("a", "amplitude")):
            root = tmp_path / unit
            p.asf(root, p.radar(60, unit=unit), lower=True, scale=scale)
            np.testing.assert_allclose(read(root)[1][10], p.native_groups(p.radar(60), "s1rtc")[10], rtol=1e-5)

    @pytest.mark.parametrize("platform", ["S1A", "S1B", "S1C", "S1D"])
    def test_one_polarization_of_any_satellite(self, tmp_path, platform):
        image = p.radar(60, platform=platform)
        p.asf(tmp_path, p.without(image, "VH"))
        scene, groups = read(tmp_path)
        assert (list(scene.bands), scene.platform) == (["VV"], f"sentinel-{platform[1:].lower()}")
        np.testing.assert_array_equal(groups[10], image.bands["VV"][None])
        sample = sample_of(SentinelFolder(tmp_path, native=True))
        assert sample["bands_s1rtc"].tolist() == [True, False]
        assert (sample["image_s1rtc_10m"][1] == -32768).all()

    def test_bursts_of_another_day_or_track_stay_apart(self, tmp_path):
        p.opera(tmp_path / "a", p.radar(60), bursts=3)
        p.opera(tmp_path / "b", p.radar(60, time="20230315T051031"))
        scenes = find_scenes(tmp_path).scenes
        assert sorted(len(scene.parts) for scene in scenes) == [2, 3]
        assert {scene.height for scene in scenes} == {60}

    def test_what_is_not_on_the_ground(self, tmp_path):
        corners = [(0, 0, 14.0, 49.0), (0, 60, 14.1, 49.0), (60, 0, 14.0, 48.9), (60, 60, 14.1, 48.9)]
        gcps = [GroundControlPoint(*corner) for corner in corners]
        path = tmp_path / "S1A_IW_GRDH_1SDV_20230303T051031_x.SAFE/measurement/s1a-iw-grd-vv-20230303t051031-001.tiff"
        path.parent.mkdir(parents=True)
        how = {"driver": "GTiff", "count": 1, "height": 60, "width": 60, "dtype": "uint16"}
        with rasterio.open(path, "w", **how, gcps=gcps, crs=CRS.from_epsg(4326)) as file:
            file.write(np.full((1, 60, 60), 90, np.uint16))
        with refused(match="geometry of the radar.*HyP3 or SNAP"):
            read(tmp_path)


@pytest.mark.parametrize("names", [None, ("HH", "HV"), ("Sigma0_HH",)], ids=["file", "two", "one"])
def test_polarizations_that_no_stem_knows(tmp_path, names):
    pixels = np.stack([*p.radar(60).bands.values()])[: len(names or "1")]
    p.tiff(tmp_path / f"S1A_EW_20230303T051031_RTC{'' if names else '_HH'}.tif", p.radar(60), pixels, names=names)
    with refused(match="of polarization HH: the radar stem knows VV and VH"):
        read(tmp_path)


def test_other_sensors_are_refused(tmp_path):
    image = p.optical(60)
    p.stack(tmp_path / "S2L2A", image, name="LC08_L2SP_193024_20230302_20230309_02_T1", names=str)
    p.stack(tmp_path / "S2L2A", image, name="HLS.L30.T33UXP.2023061T095029.v2.0", names=str)
    found = find_scenes(tmp_path)
    assert not found.scenes
    assert len(found.refused) == 2
    assert all("another sensor" in reason for _, reason in found.refused)


def test_a_level_that_nothing_says_is_concluded_or_asked_for(tmp_path):
    land, snow = p.optical(60, baseline=None), p.optical(60, 6000, baseline=None)
    p.stack(tmp_path / "land", land, names=str)
    scene, groups = read(tmp_path / "land")
    same(groups, land, at_ten=True)
    assert (scene.modality, scene.claims.modality) == ("s2l2a", None)
    p.stack(tmp_path / "snow/mine", snow, names=str)
    with refused(match=r"Nothing tells whether .* is L1C or L2A: set `folders`"):
        read(tmp_path / "snow")
    scene, groups = read(tmp_path / "snow", Settings(offset=0), folders={"s2l1c": "mine"})
    same(groups, snow, at_ten=True, modality="s2l1c")
    assert scene.modality == "s2l1c"
    with pytest.raises(TerraFMError, match="mine2 is no folder"):
        find_scenes(tmp_path, folders={"s2l2a": "mine2"})


@pytest.mark.parametrize("provider", p.OPTICAL_WRITERS)
def test_real_pixels(tmp_path, real_data, provider):
    """Five sites of TerraMesh, one of them with the offset, as each provider would have laid them out."""
    paths = sorted((real_data / "terramesh/S2L2A").glob("*.tif"))
    assert len(paths) == 5
    outcomes = []
    for path in paths:
        offset = 1000 if path.stem.startswith("433D") else 0
        with rasterio.open(path) as src:
            pixels = src.read()[:, :222, :222].astype(np.uint16)
        steps = dict(zip(S2L2A.bands, (res // 10 for res in S2L2A.resolutions), strict=True))
        bands = {b: x[:: steps[b], :: steps[b]] for b, x in zip(S2L2A.bands, pixels, strict=True)}
        image = p.Image(bands, baseline=509 if offset else 300)
        p.OPTICAL_WRITERS[provider](tmp_path / path.stem / "S2L2A", image)
        try:
            groups = read(tmp_path / path.stem)[1]
        except TerraFMError as error:
            outcomes.append(str(error))
            continue
        for resolution, expected in p.native_groups(image, "s2l2a", provider in AT_TEN).items():
            harmonized = np.where(expected > 0, np.maximum(expected, offset + 1) - np.uint16(offset), 0)
            np.testing.assert_array_equal(groups[resolution], harmonized)
        outcomes.append("exact")
    assert outcomes == ["exact"] * 5

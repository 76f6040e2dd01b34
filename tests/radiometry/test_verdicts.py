"""Faults that people met, each with the right verdict: reading, rows R1, R3 to R7, R9 to R11 and R15."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from real_tiles import THIRTEEN, TWELVE, Tile, optical_tiles, radar_tiles, stack

from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import UNKNOWN, Claims, ContradictionError, Settings, Verdict, judge, native, settle
from terrafm_tg.transforms import Normalize

LATE = "S2B_MSIL2A_20230302T095029_N0509_R079_T33UXP_20230302T104753"
OLD = LATE.replace("N0509", "N0300")
NAMED = {"bands": "their names"}


@pytest.fixture
def tiles(real_data) -> dict[tuple[str, str], Tile]:
    return {(tile.modality, tile.name.split("_")[0]): tile for tile in optical_tiles(real_data, 224)[:10]}


def held(tile: Tile, offset: int = 0) -> dict[str, np.ndarray]:
    return {band: np.where(x > 0, x + offset, 0).astype(np.uint16) for band, x in tile.bands.items()}


def bright(modality: str, low: int, high: int, bands=TWELVE) -> dict[str, np.ndarray]:
    """All cloud, or all snow: no dark pixel, a spectrum of neither plant nor water."""
    rng = np.random.default_rng(0)
    levels = np.linspace(high, low, len(bands))
    return {
        b: rng.normal(level, 60, (64, 64)).clip(low).astype(np.uint16) for b, level in zip(bands, levels, strict=True)
    }


class TestOffset:
    """R1, R10, R11, R12."""

    @pytest.mark.parametrize("offset", ["detect", 1000])
    def test_harmonized_pixels_under_a_late_name(self, tiles, offset) -> None:
        match = r"0 DN by its pixels .*set `offset` to 0" if offset == "detect" else "correct `offset` to 0"
        with pytest.raises(ContradictionError, match=match):
            judge(Claims("s2l2a", LATE, source=NAMED), held(tiles["s2l2a", "637U"]), Settings(offset=offset))

    def test_the_setting_decides(self, tiles) -> None:
        verdict = judge(Claims("s2l2a", LATE), held(tiles["s2l2a", "637U"]), Settings(offset=0))
        assert (verdict.offset, "`offset`" in verdict.proof) == (0, True)
        verdict = judge(Claims("s2l2a", LATE, offset_applied=True), held(tiles["s2l2a", "637U"]))
        assert verdict.offset == 0

    @pytest.mark.parametrize(
        "claim", [{"offset_applied": True}, {"baseline": 214}, {"product": LATE.replace("N0509", "N0301")}]
    )
    def test_pixels_with_an_offset_that_is_said_to_be_gone(self, tiles, claim) -> None:
        with pytest.raises(ContradictionError, match=r"1000 DN by its pixels .*set `offset` to 1000"):
            judge(Claims("s2l2a", source=NAMED, **claim), held(tiles["s2l2a", "637U"], 1000))

    def test_claims_that_contradict_each_other_are_settled_by_pixels(self, tiles) -> None:
        """Earth Search has flagged offsets as applied and given the offset in `raster:bands`, both at once."""
        claims = Claims("s2l2a", LATE, None, True, 0.0001, -0.1, source=NAMED)
        for offset in (0, 1000):
            assert judge(claims, held(tiles["s2l2a", "637U"], offset)).offset == offset
        with pytest.raises(ContradictionError, match=r"do not tell .*set `offset` to 0 or 1000"):
            judge(claims, bright("s2l2a", 3000, 6000))

    @pytest.mark.parametrize("level", ["s2l1c", "s2l2a"])
    @pytest.mark.parametrize("offset", [0, 1000])
    @pytest.mark.parametrize("told", [{"scale": 10_000}, {"unit": "reflectance"}, {}])
    def test_reflectance_gets_the_verdict_of_its_digital_numbers(self, tiles, level, offset, told) -> None:
        tile = tiles[level, "637U"]
        stored = {band: (x / 10_000).astype(np.float32) for band, x in held(tile, offset).items()}
        verdict = judge(Claims(level, source=NAMED), stored, Settings(**told))
        assert (verdict.scale, verdict.offset) == (10_000, offset)
        for band, x in tile.bands.items():
            np.testing.assert_array_equal(native(stored[band], verdict, harmonize=True), x)

    def test_reflectance_of_which_the_offset_was_taken_may_be_negative(self, tiles) -> None:
        """The fill of the digital numbers, 0, is -0.1 then."""
        numbers = {band: x - 40 for band, x in tiles["s2l2a", "637U"].bands.items()}
        stored = {band: (x / 10_000).astype(np.float32) for band, x in numbers.items()}
        for x in stored.values():
            x[:9] = -0.1
        verdict = judge(Claims("s2l2a", LATE, offset_applied=True, source=NAMED), stored)
        got = native(stored["B02"], verdict, harmonize=True)
        assert not got[:9].any()
        np.testing.assert_array_equal(got[9:], np.where(numbers["B02"] == 0, 0, numbers["B02"].clip(1))[9:])

    @pytest.mark.parametrize("share", [0.02, 0.2])
    @pytest.mark.parametrize("dark", [850, 700])
    def test_water_below_zero(self, tiles, share, dark) -> None:
        """Sen2Cor takes too much air off over water: -0.015 or -0.03 in the blue."""
        stored = held(tiles["s2l2a", "637U"], 1000)
        stored["B02"][: int(224 * share)] = dark
        assert judge(Claims("s2l2a", source=NAMED), stored).offset in (1000, UNKNOWN)
        assert judge(Claims("s2l2a", LATE, source=NAMED), stored).offset in (1000, UNKNOWN)

    def test_without_a_dark_pixel_nobody_can_tell(self) -> None:
        for low, high in ((3000, 7000), (1400, 2600), (900, 9000)):
            for name in ("", LATE, OLD, LATE.replace("N0509", "N9999")):
                assert judge(Claims("s2l2a", name, source=NAMED), bright("s2l2a", low, high)).offset == UNKNOWN

    def test_the_archive_settles_what_an_image_cannot(self, tiles) -> None:
        images = [held(tiles["s2l2a", "637U"], 1000), bright("s2l2a", 3000, 6000), bright("s2l2a", 3000, 6000)]
        claims = [Claims("s2l2a", LATE, source=NAMED)] * 2 + [
            Claims("s2l2a", LATE.replace("N0509", "N0300"), source=NAMED)
        ]
        verdicts = [judge(claim, image) for claim, image in zip(claims, images, strict=True)]
        assert [v.offset for v in verdicts] == [1000, UNKNOWN, UNKNOWN]
        settled = settle(claims, verdicts)
        assert [v.offset for v in settled] == [1000, 1000, UNKNOWN]
        assert "as the archive's other images" in settled[1].proof
        mixed = [*verdicts, replace(verdicts[0], offset=0)]
        assert settle([*claims, claims[0]], mixed)[1].offset == UNKNOWN

    def test_the_product_of_its_producer_is_believed(self) -> None:
        xml = {"offset": "its metadata (MTD_MSIL2A.xml)"}
        for offset, found in ((-0.1, 1000), (0.0, 0)):
            claims = Claims("s2l2a", LATE, scale=0.0001, offset=offset, source=xml | NAMED)
            if found:
                assert judge(claims, bright("s2l2a", 3000, 6000)).offset == found
            else:
                with pytest.raises(ContradictionError, match="`offset`"):
                    judge(claims, bright("s2l2a", 3000, 6000))


class TestLevelAndOrder:
    """R3, R4, R5."""

    def test_cirrus_is_of_l1c(self, tiles) -> None:
        stored = held(tiles["s2l1c", "637U"])
        assert judge(Claims(source=NAMED), stored).modality == "s2l1c"
        with pytest.raises(ContradictionError, match=r"L2A by its folder and L1C by B10.*set `folders`"):
            judge(Claims("s2l2a", source=NAMED), stored)

    @pytest.mark.parametrize(("claimed", "real"), [("s2l2a", "s2l1c"), ("s2l1c", "s2l2a")])
    @pytest.mark.parametrize("offset", [0, 1000])
    def test_the_other_level_without_cirrus(self, tiles, claimed, real, offset) -> None:
        stored = {band: x for band, x in held(tiles[real, "637U"], offset).items() if band != "B10"}
        for claims in (
            Claims(claimed, source=NAMED),
            Claims(product=LATE.replace("L2A", claimed[2:].upper()), source=NAMED),
        ):
            with pytest.raises(ContradictionError, match=r"B09 has .*set `folders`|dark blue.*set `folders`"):
                judge(claims, stored)

    @pytest.mark.parametrize("values", [np.full((224, 224), 255), np.arange(224 * 224).reshape(224, 224) % 4 + 4])
    def test_a_mask_counted_as_a_band(self, tiles, values) -> None:
        bands = [*held(tiles["s2l2a", "637U"]).values(), values.astype(np.uint16)]
        with pytest.raises(ContradictionError, match=r"B10 .*bright|B12 holds.*set `bands`"):
            judge(Claims(), dict(zip(THIRTEEN, bands, strict=True)))

    @pytest.mark.parametrize("offset", [0, 1000])
    def test_b8a_last(self, tiles, offset) -> None:
        for site in ("637U", "38D", "433D"):
            stored = held(tiles["s2l1c", site], offset)
            order = [band for band in THIRTEEN if band != "B8A"] + ["B8A"]
            wrong = dict(zip(THIRTEEN, (stored[band] for band in order), strict=True))
            with pytest.raises(ContradictionError, match=r"set `bands` to .* \(likely B8A last\)"):
                judge(Claims(), wrong)
            assert judge(Claims(), stored, Settings(bands=order)).offset == offset


class TestFill:
    """R6, R7, R9."""

    @pytest.mark.parametrize("fill", [-9999, -10000, -32768, -999, -1, 0])
    @pytest.mark.parametrize("kind", [np.int16, np.float32])
    def test_optics(self, tiles, fill, kind) -> None:
        tile = tiles["s2l2a", "637U"]
        stored = {band: x.astype(kind) for band, x in tile.bands.items()}
        for x in stored.values():
            x[:30] = fill
        verdict = judge(Claims("s2l2a", source=NAMED), stored)
        for band, x in tile.bands.items():
            got = native(stored[band], verdict, harmonize=True)
            assert not got[:30].any()
            np.testing.assert_array_equal(got[30:], x[30:])

    @pytest.mark.parametrize("fill", [65535, 32767, 9999])
    def test_fill_of_unsigned_numbers(self, tiles, fill) -> None:
        stored = held(tiles["s2l2a", "637U"])
        for x in stored.values():
            x[:30] = fill
        assert not native(stored["B02"], judge(Claims("s2l2a", source=NAMED), stored))[:30].any()

    def test_a_few_nan_and_a_setting(self, tiles) -> None:
        stored = {band: x.astype(np.float32) for band, x in tiles["s2l2a", "637U"].bands.items()}
        stored["B02"][3, 4:6] = np.nan, np.inf
        stored["B02"][5, 5] = 1234
        verdict = judge(Claims("s2l2a", source=NAMED), stored, Settings(nodata=1234))
        assert native(stored["B02"], verdict)[[3, 3, 5], [4, 5, 5]].tolist() == [0, 0, 0]
        assert np.count_nonzero(native(stored["B02"], verdict) == 0) == 3 + np.count_nonzero(stored["B02"] == 0)

    def test_a_mask(self) -> None:
        mask = np.array([[True, False]])
        assert native(np.array([[7, 8]], np.uint16), Verdict("s2l2a", "DN"), mask).tolist() == [[0, 8]]
        assert native(np.array([[1.0, 0.5]], np.float32), Verdict("s1rtc", "linear"), mask).tolist() == [[-32768, 0.5]]


class TestUnits:
    """R15."""

    def test_whole_decibels_filled_with_a_power_of_two(self, real_data) -> None:
        tile = radar_tiles(real_data, 224)[0]
        stored = {band: np.rint(x).astype(np.int32) for band, x in tile.bands.items()}
        stored["VV"][:, :9] = -65536
        verdict = judge(Claims("s1rtc"), stored)
        assert verdict.unit == "dB"
        assert (native(stored["VV"], verdict)[:, :9] == -32768).all()

    def test_one_negative_pixel_makes_no_decibels(self, real_data) -> None:
        tile = radar_tiles(real_data, 224)[0]
        stored = {band: (10 ** (x / 10)).astype(np.float32) for band, x in tile.bands.items()}
        stored["VV"][4, 4] = -1e-5
        verdict = judge(Claims("s1rtc"), stored)
        assert verdict.unit == "linear"
        assert native(stored["VV"], verdict)[4, 4] == -32768

    def test_digital_numbers_of_grd(self, real_data) -> None:
        tile = radar_tiles(real_data, 224)[0]
        stored = {band: (10 ** (x / 20) * 475).astype(np.uint16) for band, x in tile.bands.items()}
        for unit in ("linear", "amplitude", "dB"):
            with pytest.raises(ContradictionError, match=r"in [\w ]+ by `unit`.*20 \* log10\(number\) - 83"):
                judge(Claims("s1rtc"), stored, Settings(unit=unit))

    @pytest.mark.parametrize("modality", ["s1rtc", "s2l2a"])
    def test_pictures_of_8_bits(self, modality) -> None:
        picture = np.random.default_rng(0).integers(14, 51, (99, 99)).astype(np.uint8)
        band = "VV" if modality == "s1rtc" else "B02"
        with pytest.raises(ContradictionError, match=r"8-bit numbers.*`scale`"):
            judge(Claims(modality), {band: picture})

    def test_tags_that_do_not_hold(self, tiles) -> None:
        stored = {band: (x / 10_000).astype(np.float32) for band, x in tiles["s2l2a", "637U"].bands.items()}
        claims = Claims("s2l2a", scale=0.0001, source=NAMED)
        with pytest.raises(
            ContradictionError, match=r"reflectance by its numbers.* scale of 0.0001 by its tags: set `unit`"
        ):
            judge(claims, stored)
        assert judge(claims, stored, Settings(unit="reflectance")).scale == 10_000

    def test_numbers_of_no_unit(self, tiles) -> None:
        image = tiles["s2l2a", "637U"].bands
        for name, make, match in (
            ("percent", lambda x: x / 100, "set `scale`"),
            ("0 to 255", lambda x: x / 10_000 * 255, "set `scale`"),
            ("ten times", lambda x: x * 10, "set `scale`"),
            ("standardized", lambda x: (x - 1500) / 1200, "below reflectance -0.1.*set `nodata`"),
        ):
            with pytest.raises(ContradictionError, match=match):
                judge(Claims("s2l2a", name, source=NAMED), {b: make(x.astype(np.float32)) for b, x in image.items()})
        for kind in (bool, np.complex64):
            with pytest.raises(TerraFMError, match="take its detected power"):
                judge(Claims("s1rtc"), {"VV": np.ones((9, 9), kind)})

    def test_a_dark_sea_is_no_picture(self) -> None:
        rng = np.random.default_rng(0)
        levels = {"B01": 120, "B02": 110, "B04": 40, "B08": 18, "B8A": 15, "B09": 14, "B11": 12, "B12": 11}
        sea = {band: (level + rng.integers(-8, 9, (99, 99))).astype(np.uint16) for band, level in levels.items()}
        assert judge(Claims("s2l2a", source=NAMED), sea).offset == 0
        with pytest.raises(ContradictionError, match="set `unit` to 'DN' if they are that"):
            judge(Claims("s2l2a", source=NAMED), dict.fromkeys(("B02", "B04", "B08"), sea["B01"]))

    def test_settings_that_cannot_be(self, tiles) -> None:
        for setting in ({"unit": "db"}, {"offset": 500}, {"scale": 0}, {"unit": {"s2": "DN"}}):
            with pytest.raises(TerraFMError, match=r"unit|offset|scale|unknown"):
                Settings(**setting)
        with pytest.raises(ContradictionError, match=r"set `unit` to 'reflectance'"):
            judge(Claims("s2l2a"), {"B02": np.full((50, 50), 0.2)}, Settings(unit="DN"))


def test_a_verdict_goes_through_an_index() -> None:
    verdict = Verdict("s2l1c", "DN", 1e4, -3.5, 1000, (0.0, -1.0), "x")
    assert Verdict.from_json(verdict.to_json()) == verdict
    good = json.loads(verdict.to_json())
    for bad in (
        {"unit": "m"},
        {"scale": float("inf")},
        {"offset": 7},
        {"fill": [[]]},
        {"fill": [0] * 99},
        {"modality": "s3"},
        {"more": 1},
    ):
        with pytest.raises(TerraFMError, match="no verdict"):
            Verdict.from_json(json.dumps(good | bad))
    with pytest.raises(TerraFMError, match="no verdict"):
        Verdict.from_json("[" * 100_000)


class TestNormalize:
    """R27, and issue 15's part 7: what the encoder's door says, once."""

    def said(self, modality: str, images: list[dict[str, np.ndarray]], bands) -> list[str]:
        normalize = Normalize(modality, bands)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for image in images:
                normalize(np.stack([image[band] for band in bands]))
        return [str(warning.message) for warning in caught]

    def test_right_pixels_bring_no_word(self, real_data) -> None:
        for tile in optical_tiles(real_data, 120):
            image = stack(tile)
            assert self.said(tile.modality, [image], [b for b in THIRTEEN if b in image]) == []
        for tile in radar_tiles(real_data, 120):
            assert self.said("s1rtc", [tile.bands], ("VV", "VH")) == []

    def test_level_offset_and_order(self, tiles) -> None:
        l1c, l2a = stack(tiles["s2l1c", "637U"]), stack(tiles["s2l2a", "637U"])
        cloud = {band: np.full_like(x, 6000) for band, x in l2a.items()}
        for modality, image, match in (
            ("s2l2a", l1c, "looks like Sentinel-2 L1C by water vapor .*`modality='s2l1c'`"),
            ("s2l1c", l2a, "looks like Sentinel-2 L2A by .*`modality='s2l2a'`"),
            ("s2l2a", {b: np.where(x > 0, x + 1000, 0) for b, x in l2a.items()}, "the .1000 .*take 1000 off"),
            ("s2l1c", {b: np.where(x > 0, x + 1000, 0) for b, x in l1c.items()}, "the .1000"),
        ):
            (words,) = self.said(modality, [cloud, image, image], TWELVE)
            assert re.search(match, words), words

    def test_polarizations(self, real_data) -> None:
        tile = radar_tiles(real_data, 120)[0]
        (words,) = self.said("s1rtc", [{"VV": tile.bands["VH"], "VH": tile.bands["VV"]}] * 2, ("VV", "VH"))
        assert "exchange them" in words

    @pytest.mark.parametrize(("above", "warns"), [(-7.0, 0), (0.0, 0), (0.9, 0), (1.1, 1), (7.0, 1)])
    def test_polarizations_are_doubted_where_vh_is_clearly_above(self, above, warns) -> None:
        vv = np.random.default_rng(0).normal(-12, 2, (40, 40)).astype(np.float32)
        assert len(self.said("s1rtc", [{"VV": vv, "VH": vv + np.float32(above)}], ("VV", "VH"))) == warns

    @pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32, np.float64])
    def test_fill_is_missing(self, kind) -> None:
        fills = [0, -9999, -32768] if kind != np.uint16 else [0]
        for modality, bands in (("s2l2a", ["B02"]), ("s1rtc", ["VV"])):
            got = Normalize(modality, bands)(np.array([[fills]], kind))
            assert got.flatten().tolist() == [0.5] * len(fills)

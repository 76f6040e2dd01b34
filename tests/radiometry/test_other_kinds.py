"""Further cases of the faults in reading: stretched pictures, fill among usual numbers, levels of few bands."""

import numpy as np
import pytest
from real_tiles import THIRTEEN, TWELVE, optical_tiles, radar_tiles

from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import Claims, ContradictionError, Settings, judge, native

NAMED = {"bands": "their names"}
RGBN = ("B02", "B03", "B04", "B08")
TEN = tuple(band for band in TWELVE if band not in ("B01", "B09"))
FLOAT = np.float32


@pytest.fixture
def tiles(real_data):
    return {(tile.modality, tile.name.split("_")[0]): tile for tile in optical_tiles(real_data, 224)[:10]}


@pytest.fixture
def land(tiles) -> dict[str, np.ndarray]:
    return {band: x.astype(np.uint16) for band, x in tiles["s2l2a", "637U"].bands.items()}


@pytest.fixture
def decibels(real_data) -> dict[str, np.ndarray]:
    return radar_tiles(real_data, 224)[0].bands


STRETCHED = {
    "up to 3,000, cut off, to 0..1": (lambda x: np.clip(x / 3000, 0, 1).astype(FLOAT), "exactly 1 .*`unit` to 'refl"),
    "each band to 0..1": (lambda x: ((x - x.min()) / np.ptp(x.astype(int))).astype(FLOAT), "exactly 1 .*stretch"),
    "8 bits to 0..1": (lambda x: ((x / 3000 * 255).clip(0, 255) // 1 / 255).astype(FLOAT), "divided by 255"),
    "uint16 to 0..1": (lambda x: (x / 65535).astype(FLOAT), "divided by 65,535: set `scale` to 65535"),
    "12 bits": (lambda x: (x / 3000 * 4095).clip(0, 4095).astype(np.uint16), "exactly 4095 .*`unit` to 'DN'"),
    "reflectance times 1,000": (lambda x: (x / 10).astype(FLOAT), "set `scale`"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRETCHED)
def test_a_stretched_picture_is_no_reflectance(land, name) -> None:
    make, match = STRETCHED[name]
    stored = {band: make(x) for band, x in land.items()}
    with pytest.raises(ContradictionError, match=match):
        judge(Claims("s2l2a", source=NAMED), stored)


def test_what_a_setting_says_of_a_stretch_is_believed(land) -> None:
    stored = {band: (x / 65535).astype(FLOAT) for band, x in land.items()}
    verdict = judge(Claims("s2l2a", source=NAMED), stored, Settings(scale=65535))
    for band, x in land.items():
        np.testing.assert_array_equal(native(stored[band], verdict), np.where(x > 0, x, 0))
    cut = {band: np.clip(x * 2.5 / 10_000, 0, 1).astype(FLOAT) for band, x in land.items()}
    assert judge(Claims("s2l2a", source=NAMED), cut, Settings(unit="reflectance")).scale == 10_000


def test_numbers_below_zero_without_a_sign(land) -> None:
    stored = {band: (x.astype(int) - 15).astype(np.uint16) for band, x in land.items()}
    for x in stored.values():
        x[x > 60_000] = 70
    stored["B02"][:1, :200] = 65_530  # less than a hundredth
    with pytest.raises(ContradictionError, match="stored without a sign: store them as int16"):
        judge(Claims("s2l2a", source=NAMED), stored)


@pytest.mark.parametrize("fill", [5, 255, 2222])
@pytest.mark.parametrize("kind", [np.uint16, FLOAT])
def test_fill_among_usual_numbers_is_told_by_all_bands_at_once(tiles, fill, kind) -> None:
    tile = tiles["s2l2a", "637U"]
    stored = {band: x.astype(kind) for band, x in tile.bands.items()}
    for x in stored.values():
        x[: len(x) // 6] = fill
    verdict = judge(Claims("s2l2a", source=NAMED), stored)
    assert f"missing where {fill}" in verdict.proof
    for band, x in tile.bands.items():
        got = native(stored[band], verdict, harmonize=True)
        assert not got[: len(x) // 6].any()
        rest = x[len(x) // 6 :]
        np.testing.assert_array_equal(got[len(x) // 6 :], np.where(rest == fill, 0, rest))


def test_black_is_not_missing(land) -> None:
    """Dark pixels of which the offset was taken are 1 DN in all bands, and count."""
    for x in land.values():
        x[:30] = 1
    verdict = judge(Claims("s2l2a", source=NAMED), land)
    assert (native(land["B02"], verdict)[:30] == 1).all()


@pytest.mark.parametrize(
    "values", [np.full((224, 224), 65535), np.arange(224 * 224).reshape(224, 224) // 25_000 * 65535]
)
def test_an_alpha_channel_of_16_bits_counted_as_a_band(land, values) -> None:
    side = max(map(len, land.values()))
    at_ten = [np.kron(x, np.ones((side // len(x),) * 2, np.uint16)) for x in land.values()]
    with pytest.raises(ContradictionError, match=r"B12 holds only \d different numbers?, as a mask .*set `bands`"):
        judge(Claims(), dict(zip(THIRTEEN, [*at_ten, values.astype(np.uint16)[:side, :side]], strict=True)))


@pytest.mark.parametrize("bands", [RGBN, TEN], ids=len)
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("claimed", "real"), [("s2l2a", "s2l1c"), ("s2l1c", "s2l2a")])
def test_the_other_level_of_few_bands(tiles, bands, offset, claimed, real) -> None:
    """R5: no B10 and no water vapor; the air above plants tells."""
    for site in ("637U", "282D"):
        image = tiles[real, site].bands
        stored = {b: np.where(image[b] > 0, image[b] + offset, 0).astype(np.uint16) for b in bands}
        match = "L1C by the air above plants .*set `folders`" if real == "s2l1c" else "L2A by .*set `folders`"
        if real == "s2l1c" or site == "637U":
            with pytest.raises(ContradictionError, match=match):
                judge(Claims(claimed, source=NAMED), stored)
        assert judge(Claims(real, source=NAMED), stored).modality == real


@pytest.mark.parametrize("fill", [-50.0, -60.0, -99.0])
def test_a_floor_of_decibels_is_missing(decibels, fill) -> None:
    """R7: nothing is measured below the noise."""
    stored = {band: x.copy() for band, x in decibels.items()}
    for x in stored.values():
        x[:60] = fill
    verdict = judge(Claims("s1rtc"), stored)
    got = native(stored["VV"], verdict)
    assert (got[:60] == -32768).all()
    np.testing.assert_allclose(got[60:], 10 ** (decibels["VV"][60:].astype(float) / 10), rtol=1e-6)


@pytest.mark.parametrize("fill", [1e-10, 1e-6, -1.0, 255.0, 1e20])
def test_fill_of_linear_power_is_missing(decibels, fill) -> None:
    power = {band: (10 ** (x.astype(float) / 10)).astype(FLOAT) for band, x in decibels.items()}
    stored = {band: x.copy() for band, x in power.items()}
    for x in stored.values():
        x[:60] = fill
    verdict = judge(Claims("s1rtc"), stored)
    assert verdict.unit == "linear"
    got = native(stored["VH"], verdict)
    assert (got[:60] == -32768).all()
    np.testing.assert_array_equal(got[60:], power["VH"][60:])


def test_natural_logarithms_are_no_decibels(real_data) -> None:
    for tile in radar_tiles(real_data, 224):
        stored = {band: (x * (np.log(10) / 10)).astype(FLOAT) for band, x in tile.bands.items()}
        with pytest.raises(TerraFMError, match=r"natural logarithms of power: take 4\.343|set `unit`"):
            judge(Claims("s1rtc", tile.name), stored)

"""Verdicts on every real tile, with an offset and without: never the wrong one."""

from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from real_tiles import THIRTEEN, TWELVE, Tile, optical_tiles, radar_tiles, stack

from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import UNKNOWN, Claims, ContradictionError, Settings, judge, level_by_pixels, offset_beside

#: Bands of usual stacks.
SUBSETS = {"all": THIRTEEN, "HLS": ["B02", "B03", "B04", "B8A", "B11", "B12"], "RGBN": ["B02", "B03", "B04", "B08"]}
NAMED = {"bands": "their names"}


def stored(tile: Tile, offset: int, bands=THIRTEEN) -> dict[str, np.ndarray]:
    return {b: np.where(x > 0, x + offset, 0).astype(np.uint16) for b, x in tile.bands.items() if b in bands}


def test_no_offset_is_wrong_and_most_are_found(real_data) -> None:
    """The counts stand in docs/radiometry.md."""
    count = Counter()
    for tile in optical_tiles(real_data, 240, True):
        for offset in (0, 1000):
            for name, bands in SUBSETS.items():
                found = judge(Claims(tile.modality, source=NAMED), stored(tile, offset, bands)).offset
                assert found in (offset, UNKNOWN), (tile.name, offset, name)
                count[name, offset, found == offset] += 1
    found = {(name, o): count[name, o, True] for name in SUBSETS for o in (0, 1000)}
    assert found == {
        ("all", 0): 77, ("all", 1000): 72, ("HLS", 0): 73, ("HLS", 1000): 55, ("RGBN", 0): 72, ("RGBN", 1000): 0,
    }  # fmt: skip
    assert len(optical_tiles(real_data, 240, True)) == 78


def test_no_level_is_wrong(real_data) -> None:
    count = Counter()
    for tile in optical_tiles(real_data, 240, True):
        for offset in (0, 1000):
            numbers = {b: np.where(x, x, np.nan).astype(float) for b, x in stored(tile, offset, TWELVE).items()}
            found, _ = level_by_pixels(numbers)
            assert found in (tile.modality, ""), (tile.name, offset)
            count[tile.modality, bool(found)] += 1
    assert (count["s2l1c", True], count["s2l2a", True]) == (69, 79)
    assert count.total() == 156


@pytest.mark.parametrize("bands", [SUBSETS["RGBN"], [b for b in TWELVE if b not in ("B01", "B09")]], ids=len)
def test_no_level_is_wrong_without_water_vapor(real_data, bands) -> None:
    count = Counter()
    for tile in optical_tiles(real_data, 240, True):
        for offset in (0, 1000):
            numbers = {b: np.where(x, x, np.nan).astype(float) for b, x in stored(tile, offset, bands).items()}
            found, _ = level_by_pixels(numbers)
            assert found in (tile.modality, ""), (tile.name, offset)
            count[tile.modality, bool(found)] += 1
    assert (count["s2l1c", True], count["s2l2a", True]) == (52, 50)


def test_l1c_beside_l2a(real_data) -> None:
    tiles = optical_tiles(real_data, 224)
    found = 0
    for l1c, l2a in zip(tiles[:5], tiles[5:10], strict=True):
        assert l1c.name == l2a.name
        for offset in (0, 1000):
            numbers = {b: np.where(x > 0, x + offset, np.nan) for b, x in l2a.bands.items()}
            found += (got := offset_beside(numbers, l1c.bands)) == offset
            assert got in (offset, UNKNOWN), l1c.name
    assert found == 10


#: Orders of stacks without names, beside the usual one.
ORDERS = {
    "B8A last": (*TWELVE[:8], "B09", "B11", "B12", "B8A"),
    "B8A before B08": (*TWELVE[:7], "B8A", "B08", "B09", "B11", "B12"),
    "by resolution": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"),
    "alphabetical": ("B01", "B11", "B12", *TWELVE[1:10]),
    "reversed": TWELVE[::-1],
    "and classes": (*TWELVE, "SCL"),
    "and alpha": (*TWELVE, "alpha"),
}


def test_another_order_of_a_stack_without_names_is_refused_but_at_sea(real_data) -> None:
    taken = Counter()
    tiles = [t for t in optical_tiles(real_data, 120) if len({*(120 % len(x) for x in t.bands.values())}) == 1]
    for tile in tiles:
        bands = stack(tile)
        usual = THIRTEEN if "B10" in bands else TWELVE
        judge(Claims(tile.modality), {band: bands[band] for band in usual})
        for order in ORDERS.values():
            names = TWELVE if len(order) == 12 else THIRTEEN
            claims = Claims(None if len(order) == 13 else tile.modality)
            with suppress(ContradictionError):
                judge(claims, dict(zip(names, (bands[band] for band in order), strict=True)))
                taken[tile.name] += 1
    assert len(tiles) == 15
    assert {*taken} == {"S2A_MSIL2A_20180225T114351_N9999_R123_T29UPU_90_54"}  # nothing but water


@pytest.mark.parametrize("unit", ["dB", "linear", "amplitude"])
def test_units_of_radar(real_data, unit) -> None:
    """Decibels and power are told by their numbers; amplitude asks for the setting. None is taken for another."""
    for tile in radar_tiles(real_data, 224):
        power = {b: 10 ** (x.astype(np.float64) / 10) for b, x in tile.bands.items()}
        pixels = tile.bands if unit == "dB" else {b: x ** (0.5 if unit == "amplitude" else 1) for b, x in power.items()}
        if unit == "amplitude":
            with pytest.raises(ContradictionError, match="linear power or amplitude: set `unit` to"):
                judge(Claims("s1rtc"), pixels)
        else:
            assert judge(Claims("s1rtc"), pixels).unit == unit
        assert judge(Claims("s1rtc"), pixels, Settings(unit=unit)).unit == unit
        for wrong in {"dB", "amplitude"} - {unit}:
            with pytest.raises(TerraFMError, match="`unit`"):
                judge(Claims("s1rtc", unit=wrong), pixels)

"""Every way in which real pixels are stored and described: exact native pixels or a refusal, never other pixels.

The counts stand in docs/radiometry.md.
"""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from real_tiles import Tile, optical_tiles, radar_tiles

from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import UNKNOWN, Claims, Settings, judge, native

METADATA = ("true", "absent", "lying")
BASELINES = (209, 214, 301, 400, 509, 511, 9999)
NAMED = {"bands": "their names"}
STAC = {**NAMED, "offset": "STAC `raster:bands` offset", "offset_applied": "STAC flag"}
XML = {**NAMED, "offset": "its metadata (MTD_MSIL2A.xml)"}
PAGE = (Path(__file__).parents[2] / "docs/radiometry.md").read_text()


def ending(claims: Claims, stored: dict[str, np.ndarray], truth: dict[str, np.ndarray], settings=None) -> str:
    """``exact``, ``refused``, ``asks`` (the offset is not known) or ``wrong``."""
    try:
        verdict = judge(claims, stored, settings)
    except TerraFMError as error:
        named = any(f"`{name}`" in str(error) for name in ("offset", "unit", "scale", "bands", "folders"))
        return "refused" if named else f"wrong: {error}"
    if verdict.offset == UNKNOWN:
        return "asks"
    exact = (np.array_equal(native(stored[band], verdict, harmonize=True), truth[band]) for band in stored)
    return "exact" if all(exact) else "wrong"


def described(tile: Tile, baseline: int, held: int) -> dict[str, list[tuple[dict, str, dict]]]:
    """Claims by their truth: keywords, the product's name, and sources."""
    name = f"S2A_MSI{tile.modality[2:].upper()}_20230101T101031_N{baseline:04}_R022_T33UUP_20230101T101608"
    tag = {"scale": 0.0001, "offset": -0.1}
    late, old = baseline >= 400, baseline < 400
    true: list[tuple[dict, str, dict]] = []
    if held and late:
        true = [({}, name, NAMED), (tag, name, STAC), (tag, name, XML), ({"offset_applied": False}, name, STAC)]
    elif not held:
        true = [({"offset_applied": True}, name, STAC)] + [({}, name, NAMED)] * old
    lies = [({"offset_applied": True}, name, STAC)] if held else [(tag, name, STAC)]
    lies += [({}, name, NAMED)] * (old if held else late and baseline != 9999)
    return {"true": true, "absent": [({}, "", NAMED)], "lying": lies}


@pytest.mark.parametrize(
    "form", ["uint16", *(pytest.param(x, marks=pytest.mark.soak) for x in ("int16 filled with -9999", "reflectance"))]
)
def test_optics(real_data, form) -> None:
    count: Counter[tuple[str, str]] = Counter()
    for tile in optical_tiles(real_data, 96):
        truth = {band: x.astype(np.uint16) for band, x in tile.bands.items()}
        for band, gap in ((band, len(x) // 6) for band, x in truth.items()):
            truth[band] = x = truth[band].copy()
            x[:gap, :gap] = 0
        for held in (0, 1000):
            numbers = {band: np.where(x > 0, x + held, 0) for band, x in tile.bands.items()}
            for band, x in numbers.items():
                x[truth[band] == 0] = 0
            if form == "reflectance":
                stored = {b: np.where(x > 0, x / 10_000, np.nan).astype(np.float32) for b, x in numbers.items()}
            else:
                kind, fill = (np.uint16, 0) if form == "uint16" else (np.int16, -9999)
                stored = {b: np.where(x > 0, x.clip(0, 32000), fill).astype(kind) for b, x in numbers.items()}
            for baseline in BASELINES:
                for metadata, claims in described(tile, baseline, held).items():
                    for said, name, source in claims:
                        if form == "reflectance" and said.get("scale"):
                            said = said | {"scale": 1.0}
                        count[metadata, ending(Claims(tile.modality, name, source=source, **said), stored, truth)] += 1
    assert not [case for case in count if case[1].startswith("wrong")]
    ends = ("exact", "refused", "asks")
    rows = [f"| {form} | {said} | {' | '.join(f'{count[said, end]:,}' for end in ends)} |" for said in METADATA]
    assert not [row for row in rows if row not in PAGE]


FORMS = ("dB", "linear", "amplitude", "int16 hundredths, tagged", "int16 hundredths", "uint16 amplitude")


def radar_as(power: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers, and the power that they are."""
    if form == "linear":
        return (x := power.astype(np.float32)), x
    if form == "amplitude":
        return (x := np.sqrt(power).astype(np.float32)), x.astype(np.float64) ** 2
    if form == "uint16 amplitude":
        x = np.rint(np.sqrt(power) * 10 ** (83 / 20)).astype(np.uint16)
        return x, (x * 7.08e-5) ** 2
    level = 10 * np.log10(power)
    if form == "dB":
        return (x := level.astype(np.float32)), 10 ** (x.astype(np.float64) / 10)
    return (x := np.rint(level * 100).astype(np.int16)), 10 ** (x / 1000)


@pytest.mark.parametrize("form", FORMS)
def test_radar(real_data, form) -> None:
    count: Counter[tuple[str, str]] = Counter()
    unit = "dB" if "dB" in form or "hundredths" in form else form.rpartition(" ")[2]
    told = Settings(unit=unit, scale=7.08e-5 if "uint16" in form else 0.01 if form == FORMS[4] else None)
    fills = (
        [np.nan, 0, -9999, -32768, -999, np.inf]
        if form in FORMS[:3]
        else [0, -9999, -32768]
        if "int16 " in form
        else [0]
    )
    fills = [x for x in fills if not ("uint16" in form and x != 0)]
    tag = {"scale": 0.01} if "tagged" in form else {}
    for tile, fill in product(radar_tiles(real_data, 120), fills):
        pairs = {band: radar_as(10 ** (x.astype(np.float64) / 10), form) for band, x in tile.bands.items()}
        stored = {band: x.copy() for band, (x, _) in pairs.items()}
        truth = {band: power.astype(np.float32) for band, (_, power) in pairs.items()}
        for band in stored:
            for array, missing in ((stored[band], fill), (truth[band], -32768)):
                array[:50] = missing
                array[60:64, 5] = missing
        swapped = {"VV": stored["VH"], "VH": stored["VV"]}
        for pixels, order in ((stored, "right"), (swapped, "exchanged")):
            for said, settings in (({"unit": unit}, None), ({}, None), ({}, told)):
                for source in ({}, NAMED):
                    claims = Claims("s1rtc", source=source, **tag, **said)
                    count[order, ending(claims, pixels, truth, settings)] += 1
    assert not [case for case in count if case[1].startswith("wrong")]
    cells = [f"{count[order, end]:,}" for order in ("right", "exchanged") for end in ("exact", "refused")]
    assert f"| {form} | {' | '.join(cells)} |" in PAGE

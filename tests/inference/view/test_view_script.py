"""The page's arithmetic in JavaScript, beside NumPy and PROJ."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyproj import CRS, Geod, Transformer

from inference.view.maps import content_of, cosines_of, layer_of, stored_of, vectors_of
from terrafm_tg.inference.view import Written
from terrafm_tg.inference.view.page import lonlat_lattice

Script = Callable[..., Any]
#: Reads a layer as the page does.
UNPACK = "{const layer = given.layer; layer.values = new Int8Array((await inflate(layer.data)).buffer);"


@pytest.fixture(scope="module")
def layer(written: Written) -> dict[str, Any]:
    return layer_of(content_of(written.path), "embeddings")


def test_similarity_is_that_of_the_stored_vectors(script: Script, layer: dict[str, Any]) -> None:
    row, column = 11, 29
    pixel = row * layer["width"] + column
    given = {"layer": layer, "pixel": pixel}
    found = script(UNPACK + "return [...cosines(layer, vectorAt(layer, given.pixel))]}", given)
    expected = cosines_of(vectors_of(layer), row, column).ravel()
    assert found[0] is None  # JSON's word for NaN: the corner is missing
    assert_allclose(np.array(found, float), expected, atol=1e-6)


def test_a_missing_pixel_has_no_vector_and_no_color(script: Script, layer: dict[str, Any]) -> None:
    found = script(
        UNPACK + "return [vectorAt(layer, 0), vectorAt(layer, 10).length, componentPaint(layer)(0)]}", {"layer": layer}
    )
    assert found == [None, len(layer["scale"]), None]


def test_colors_are_components_between_their_percentiles(script: Script, layer: dict[str, Any]) -> None:
    found = script(UNPACK + "return [...painted(layer.width * layer.height, componentPaint(layer))]}", {"layer": layer})
    shown = np.array(found).reshape(layer["height"], layer["width"], 4)
    vectors = vectors_of(layer)
    for channel, (k, low, high) in enumerate(layer["colors"]):
        expected = np.clip(255 * (vectors[..., k] - low) / (high - low), 0, 255)
        there = np.isfinite(expected)
        assert np.abs(shown[..., channel][there] - expected[there]).max() <= 0.5 + 1e-9
        assert_array_equal(shown[..., 3], there * 255)


def plain_nearest(similarities: np.ndarray, own: tuple[int, int], count: int, apart: int) -> list[int]:
    """One after the other, the best pixel that is not near one taken before."""
    left = np.where(np.isnan(similarities), -np.inf, similarities)
    rows, columns = np.indices(left.shape)
    found, last = [], own
    while len(found) < count:
        left[np.maximum(abs(rows - last[0]), abs(columns - last[1])) < apart] = -np.inf
        if left.max() == -np.inf:
            break
        last = np.unravel_index(int(left.argmax()), left.shape)
        found.append(int(np.ravel_multi_index(last, left.shape)))
    return found


@pytest.mark.parametrize(("count", "apart"), [(8, 4), (3, 1), (200, 9)])
def test_nearest_places_are_the_best_that_lie_apart(script: Script, count: int, apart: int) -> None:
    numbers = np.random.default_rng(count).normal(size=(31, 47)).astype(np.float32)
    numbers += np.exp(-np.hypot(*np.mgrid[-15:16, -20:27]) / 5)  # one hill: its best pixels lie together
    numbers[3:9] = np.nan
    given = {"n": [None if x != x else float(x) for x in numbers.ravel()], "width": 47, "own": 15 * 47 + 20}
    found = script(
        "{const n = Float32Array.from(given.n, (x) => x ?? NaN);"
        f"return nearest(n, given.width, given.own, {count}, {apart})}}",
        given,
    )
    assert found == plain_nearest(numbers, (15, 20), count, apart)


def test_ends_of_the_scale_leave_out_the_lowest_and_what_is_missing(script: Script) -> None:
    numbers = "Float32Array.from([3, NaN, -5, 1, 2, 4])"
    assert script(f"[ends({numbers}, 0), ends({numbers}, .25), ends(Float32Array.of(NaN), .1)]") == [
        [-5, 4],
        [1, 4],
        [0, 0],
    ]


@pytest.mark.parametrize(
    ("crs", "bounds"),
    [
        ("EPSG:32633", (400_000, 5_390_000, 509_800, 5_499_800)),
        ("EPSG:32719", (300_000, 8_190_220, 409_800, 8_300_020)),
        ("EPSG:32601", (199_980, 0, 309_780, 109_800)),
        ("EPSG:32760", (750_000, 5_000_000, 859_800, 5_109_800)),  # over 180°
        ("EPSG:32633", (399_960, 9_190_220, 509_760, 9_300_020)),  # 83° N
        ("EPSG:4326", (179.5, -10.0, 180.5, -9.0)),
        ("EPSG:3035", (4_000_000, 3_000_000, 4_200_000, 3_200_000)),
    ],
)
def test_coordinates_agree_with_proj(script: Script, crs: str, bounds: tuple[float, ...]) -> None:
    """To 1 m over a scene of 110 km, a tenth of its pixels of 10 m."""
    scene = {"bounds": bounds, **lonlat_lattice(CRS(crs), bounds)}
    u = np.random.default_rng(0).uniform(size=(200, 2))
    u[:4] = [[0, 0], [1, 1], [0, 1], [1, 0]]
    x, y = (bounds[k] + u[:, k] * (bounds[k + 2] - bounds[k]) for k in (0, 1))
    found = np.array(
        script("given.at.map(([x, y]) => lonLat(given.scene, x, y))", {"scene": scene, "at": np.c_[x, y].tolist()})
    )
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    _, _, meters = Geod(ellps="WGS84").inv(*found.T, lon, lat)
    assert np.abs(found[:, 0]).max() <= 180
    assert meters.max() < 1


def test_a_place_that_the_crs_does_not_know_has_no_coordinates(script: Script) -> None:
    bounds = (-5e7, -5e7, 5e7, 5e7)
    scene = {"bounds": bounds, **lonlat_lattice(CRS("EPSG:3035"), bounds)}
    assert scene["lon"] is None
    assert script("lonLat(given, 0, 0)", scene) is None


def test_a_pixel_is_found_at_its_middle_and_nowhere_outside(script: Script) -> None:
    layer = {"place": [500_000, 5_500_000, 160, 80], "width": 7, "height": 5}
    found = script(
        "[Array.from({length: 35}, (_, p) => pixelAt(given, ...placeOf(given, p))), pixelAt(given, 499999, 5499999),"
        "pixelAt(given, 500001, 5500001), pixelAt(given, 501121, 5499999), pixelAt(given, 500001, 5499599),"
        "placeOf(given, 8), pixelAt(given, 500000, 5500000)]",
        layer,
    )
    assert found == [list(range(35)), None, None, None, None, [500_240, 5_499_880], 0]


@pytest.mark.parametrize("aspect", [1.0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 2.5, 0.8])
def test_what_lies_under_the_cursor_stays_there(script: Script, aspect: float, factor: float) -> None:
    scene = {"bounds": [0, 0, 1000, 800], "aspect": aspect, "pixel": 10}
    given = {"scene": scene, "from": [120, 90], "to": [150, 110], "factor": factor, "size": [400, 300]}
    before, after = script(
        "{const {scene, size, from, to, factor} = given, view = fit(scene, ...size);"
        "const next = moved(view, scene, size, from, to, factor);"
        "return [toMap(view, scene, size, ...from), toMap(next, scene, size, ...to)]}",
        given,
    )
    assert_allclose(after, before, atol=1e-9)
    there = script(
        "{const {scene, size} = given, view = fit(scene, ...size);"
        "return toScreen(view, scene, size, ...toMap(view, scene, size, 33, 44))}",
        given,
    )
    assert_allclose(there, [33, 44], atol=1e-9)


def test_zoom_and_move_end(script: Script) -> None:
    scene = {"bounds": [0, 0, 1000, 800], "aspect": 1, "pixel": 10}
    near, wide, far = script(
        "[moved(fit(given, 400, 300), given, [400, 300], [0, 0], [0, 0], 1e9),"
        "moved(fit(given, 400, 300), given, [400, 300], [0, 0], [0, 0], 1e-9),"
        "moved(fit(given, 400, 300), given, [400, 300], [0, 0], [1e7, -1e7], 1)]",
        scene,
    )
    assert near["unit"] == 10 / 64
    assert wide["unit"] == pytest.approx(4 * 1.04 * 800 / 300)
    assert (far["x"], far["y"]) == (0, 0)


def test_lengths_of_the_scale_are_round(script: Script) -> None:
    assert script("[1, 1.9, 2, 4.99, 7, 999, 0.03].map(round125)") == [1, 1, 2, 2, 5, 500, pytest.approx(0.02)]


def test_scores_are_painted_by_the_table(script: Script, written: Written) -> None:
    layer = layer_of(content_of(written.path), "scores")
    ((_, low, high),) = layer["bands"]
    numbers, colors = script(
        "{const layer = given.layer; layer.values = await inflate(layer.data); const numbers = scoresOf(layer, 0);"
        "const table = Uint8Array.from({length: 768}, (_, i) => Math.floor(i / 3));"
        "const paint = rampPaint(table, numbers, given.low, given.high);"
        "return [[...numbers], [...numbers].map((_, p) => paint(p)?.[0])]}",
        {"layer": layer, "low": low, "high": high},
    )
    stored = stored_of(layer).ravel().astype(float)
    expected = np.where(stored, (stored - 1) / 254, np.nan)
    assert_allclose(np.array(numbers, float), low + expected * (high - low), rtol=1e-6)
    there = np.isfinite(expected)
    assert_allclose(np.array(colors, float)[there], 255 * expected[there], atol=0.51)
    assert np.isnan(np.array(colors, float)[~there]).all()

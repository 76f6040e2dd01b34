"""The page in a real browser: what is drawn, clicked, zoomed and typed; skipped where no browser is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.testing import assert_allclose

from inference.view.browser import Page
from inference.view.maps import content_of, cosines_of, layer_of, vectors_of, write
from terrafm_tg.inference.view import Written, write_page

DESKTOP, PHONE = (1280, 800), (390, 844)
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
SIMILARITY = "state.layers.find((layer) => layer.kind === 'similarity')"


def load(browser: Page, written: Written, size: tuple[int, int], dark: bool = False) -> None:
    """Opens the page anew."""
    browser.logged.clear()
    browser.requests.clear()
    browser.open(written.path, *size, dark)


def window(browser: Page) -> tuple[float, float, float, float]:
    """Left, top, width and height of the map on the screen."""
    return tuple(browser.run("(({x, y, width, height}) => [x, y, width, height])(canvas.getBoundingClientRect())"))


def screen(browser: Page, row: float, column: float) -> tuple[float, float]:
    """The point of the screen over the middle of a pixel of the embeddings."""
    left, top, *_ = window(browser)
    place = f"placeOf({SIMILARITY}.source, {row} * {SIMILARITY}.source.width + {column})"
    x, y = browser.run(f"toScreen(state.view, state.scene, state.size, ...{place})")
    return left + x, top + y


def under(browser: Page, x: float, y: float) -> list[float]:
    """The place in the CRS under a point of the screen."""
    left, top, *_ = window(browser)
    return browser.run(f"toMap(state.view, state.scene, state.size, {x - left}, {y - top})")


def color(browser: Page, row: int, column: int) -> list[int]:
    """Red, green, blue and alpha of the canvas over a pixel."""
    left, top, *_ = window(browser)
    x, y = screen(browser, row, column)
    browser.settle()
    return browser.run(
        f"[...context.getImageData({x - left} * devicePixelRatio, {y - top} * devicePixelRatio, 1, 1).data]"
    )


def tap(browser: Page, x: float, y: float, size: tuple[int, int]) -> None:
    """Clicks, or taps where the window is a phone's."""
    if size == DESKTOP:
        browser.click(x, y)
    else:
        browser.touch("touchStart", (x, y))
        browser.touch("touchEnd")


def switch(browser: Page, kind: str) -> None:
    """Clicks the switch of a layer."""
    browser.run(f"document.querySelector('[data-kind={kind}] input[type=checkbox]').click()")


@SIZES
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_loads_without_an_error_or_a_request_and_fits(
    browser: Page, written: Written, size: tuple[int, int], dark: bool
) -> None:
    load(browser, written, size, dark)
    browser.settle()
    assert not browser.logged
    assert browser.requests == [written.path.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    left, _, width, height = window(browser)
    assert (left, width) == ((0, size[0]) if size == PHONE else (0, size[0] - 336))
    assert height > 400
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, back[4:-1].split(","))) < 60) is dark
    assert color(browser, 20, 25)[3] == 255


@SIZES
def test_a_click_compares_all_pixels_with_that_one(browser: Page, written: Written, size: tuple[int, int]) -> None:
    load(browser, written, size)
    row, column = 17, 31
    tap(browser, *screen(browser, row, column), size)
    browser.wait(f"{SIMILARITY}.numbers !== null")
    vectors = vectors_of(layer_of(content_of(written.path), "embeddings"))
    expected = cosines_of(vectors, row, column).ravel()
    found = np.array(browser.run(f"[...{SIMILARITY}.numbers].map((x) => x === x ? x : null)"), float)
    assert_allclose(found, expected, atol=1e-6)
    assert browser.run("state.query.pixel") == row * 50 + column
    listed = browser.run("[...document.querySelectorAll('#places i')].map((node) => Number(node.textContent))")
    assert len(listed) == 8
    assert listed == sorted(listed, reverse=True)
    assert "similarity 1.0000" in browser.run("document.getElementById('where').textContent")
    # The place that was asked about is the brightest of the ramp, and a ring marks it.
    assert browser.run("document.querySelectorAll('#marks .asked').length") == 1
    assert min(color(browser, row, column)[:2]) > 190
    assert not browser.logged


def test_a_place_of_the_list_is_shown(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    tap(browser, *screen(browser, 17, 31), DESKTOP)
    browser.wait("state.places.length === 8")
    browser.run("document.querySelector('#places button').click()")
    assert browser.run("[state.view.x, state.view.y]") == browser.run("state.places[0].slice(0, 2)")
    browser.run("document.getElementById('forget').click()")
    assert browser.run("[state.query, state.places.length, $('places').children.length]") == [None, 0, 0]


def test_a_missing_place_is_said(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    tap(browser, *screen(browser, 1, 1), DESKTOP)
    browser.wait("document.getElementById('asked').textContent.includes('no embedding')")


def test_layers_are_switched_and_fade(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    at = (20, 25)
    first = color(browser, *at)
    switch(browser, "components")
    base = color(browser, *at)
    assert base != first
    switch(browser, "picture")
    assert color(browser, *at) == [0, 0, 0, 0]
    switch(browser, "classes")
    classes = layer_of(content_of(written.path), "classes")
    palette = {tuple(rgb) for _, rgb in classes["classes"]}
    red, green, blue, alpha = color(browser, *at)
    assert min(np.abs(np.subtract((red, green, blue), rgb)).max() for rgb in palette) <= 2
    assert alpha == pytest.approx(255 * 0.75, abs=1)
    set_opacity = (
        "{const slider = document.querySelector('[data-kind=classes] input[type=range]'); slider.value = 30;"
        "slider.dispatchEvent(new Event('input'))}"
    )
    browser.run(set_opacity)
    assert color(browser, *at)[3] == pytest.approx(255 * 0.3, abs=1)
    assert browser.run("document.querySelector('[data-kind=classes] output').textContent") == "30 %"


def test_the_legend_names_classes_and_ends_of_scores(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    names = browser.run("[...document.querySelectorAll('[data-kind=classes] .legend li')].map((x) => x.textContent)")
    assert names == ["Water", "Forest", "Crops", "Town"]
    ends = browser.run("[...document.querySelectorAll('[data-kind=scores] .ends span')].map((x) => +x.textContent)")
    (band,) = layer_of(content_of(written.path), "scores")["bands"]
    assert_allclose(ends, band[1:], rtol=0.01)


def test_a_band_is_chosen(browser: Page, tmp_path: Path) -> None:
    shares = np.stack([np.linspace(0, 1, 2000), np.linspace(1, 0, 2000)]).reshape(2, 40, 50).astype(np.float32)
    path = write(tmp_path / "a_probabilities.tif", shares, Affine(160, 0, 500_000, 0, -160, 5_500_000))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ["Water", "Town"]
    load(browser, write_page(path, tmp_path / "page.html"), DESKTOP)
    left, top, *_ = window(browser)
    corner = browser.run("toScreen(state.view, state.scene, state.size, 500080, 5499920)")
    browser.mouse("mouseMoved", left + corner[0], top + corner[1])
    assert browser.run("$('where').textContent").endswith("Water 0")
    browser.run(
        "{const band = document.querySelector('.bands select'); band.value = '1';"
        "band.dispatchEvent(new Event('change'))}"
    )
    browser.mouse("mouseMoved", left + corner[0] + 1, top + corner[1])
    assert browser.run("$('where').textContent").endswith("Town 1")
    assert browser.run("document.querySelector('.bands select').value") == "1"


def test_scenes_chosen_in_haste_leave_the_last(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    for scene in ("1", "0", "1"):
        browser.run(f"$('scene').value = '{scene}', $('scene').dispatchEvent(new Event('change'))")
    browser.wait("$('wait').textContent === '' && state.scene === content.scenes[1]")
    browser.settle()
    assert browser.run("canvas.getAttribute('aria-label')") == "Map of march"


def test_the_wheel_zooms_at_the_cursor(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    x, y = map(round, screen(browser, 10, 12))  # as events of a wheel have it
    before, unit = under(browser, x, y), browser.run("state.view.unit")
    for _ in range(3):
        browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-240)
    browser.wait(f"state.view.unit < {unit / 2}")
    assert_allclose(under(browser, x, y), before, atol=1e-3)


def test_dragging_moves_the_map_and_asks_nothing(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    x, y = screen(browser, 20, 25)
    before = under(browser, x, y)
    browser.mouse("mousePressed", x, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", x + 60, y - 40, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 60, y - 40, button="left", clickCount=1)
    assert_allclose(under(browser, x + 60, y - 40), before, atol=1e-3)
    assert browser.run("state.query") is None


def test_two_fingers_keep_what_they_hold(browser: Page, written: Written) -> None:
    load(browser, written, PHONE)
    unit = browser.run("state.view.unit")
    a, b = screen(browser, 15, 20), screen(browser, 25, 32)
    held = under(browser, *a), under(browser, *b)
    browser.touch("touchStart", a)
    browser.touch("touchStart", a, b)
    wide = (a[0] - 50, a[1] - 50 * (b[1] - a[1]) / (b[0] - a[0])), b
    browser.touch("touchMove", *wide)
    browser.touch("touchEnd")
    assert browser.run("state.view.unit") < unit * 0.8
    assert_allclose(under(browser, *wide[0]), held[0], atol=1)
    assert_allclose(under(browser, *wide[1]), held[1], atol=1)
    assert browser.run("state.query") is None


def test_two_fingers_that_rest_ask_nothing(browser: Page, written: Written) -> None:
    load(browser, written, PHONE)
    a, b = screen(browser, 15, 20), screen(browser, 25, 32)
    browser.touch("touchStart", a)
    browser.touch("touchStart", a, b)
    browser.touch("touchEnd")
    browser.settle()
    assert browser.run("state.query") is None


def test_keys_do_what_the_mouse_does(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    browser.run("canvas.focus()")
    start = browser.run("state.view")
    browser.key("ArrowRight", 39)
    browser.key("ArrowUp", 38)
    moved = browser.run("state.view")
    assert (moved["x"] - start["x"], moved["y"] - start["y"]) == pytest.approx((40 * start["unit"], 40 * start["unit"]))
    browser.key("+", 187, "+")
    assert browser.run("state.view.unit") == pytest.approx(start["unit"] / 1.5)
    browser.settle()
    assert browser.run("document.querySelectorAll('#marks .cross').length") == 1
    browser.key("Enter", 13, "\r")
    pixel = browser.run(f"pixelAt({SIMILARITY}.source, state.view.x, state.view.y)")
    assert browser.run("state.query.pixel") == pixel
    browser.key("0", 48, "0")
    assert browser.run("state.view") == start
    browser.key("Escape", 27)
    assert browser.run("state.query") is None


def test_the_query_goes_along_to_another_scene(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    row, column = 17, 31
    tap(browser, *screen(browser, row, column), DESKTOP)
    browser.wait("state.query !== null")
    browser.run(
        "{const box = document.getElementById('scene'); box.value = '1'; box.dispatchEvent(new Event('change'))}"
    )
    browser.wait(f"state.scene === content.scenes[1] && {SIMILARITY}.numbers !== null")
    content = content_of(written.path)
    asked = vectors_of(layer_of(content, "embeddings"))[row, column]
    others = vectors_of(layer_of(content, "embeddings", scene=1))
    expected = others @ asked / np.linalg.norm(others, axis=-1) / np.linalg.norm(asked)
    found = np.array(browser.run(f"[...{SIMILARITY}.numbers].map((x) => x === x ? x : null)"), float)
    assert_allclose(found, expected.ravel(), atol=1e-6)
    assert "in july" in browser.run("document.getElementById('asked').textContent")


def test_coordinates_are_read_out(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    browser.mouse("mouseMoved", *screen(browser, 20, 25))
    said = browser.run("document.getElementById('where').textContent").split(" · ")
    assert said[1].startswith("EPSG:32633: 5040")
    assert said[0].startswith("49.6")
    assert said[2] == "row 20, column 25"


def test_every_control_has_a_name(browser: Page, written: Written) -> None:
    load(browser, written, DESKTOP)
    tap(browser, *screen(browser, 17, 31), DESKTOP)
    browser.wait("state.places.length === 8")
    tree: list[dict[str, Any]] = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = ("button", "checkbox", "slider", "combobox", "application")
    found = [(x["role"]["value"], x["name"]["value"]) for x in tree if x.get("role", {}).get("value") in controls]
    assert {role for role, _ in found} == {*controls}
    assert all(name for _, name in found)
    assert len({name for _, name in found}) == len(found)


def test_a_hostile_name_runs_nothing(browser: Page, tmp_path: Path, maps: Path) -> None:
    evil = tmp_path / "<img src=x onerror=document.title='ran'>.tif"
    evil.write_bytes((maps / "july.tif").read_bytes())
    load(browser, write_page(evil, tmp_path / "page.html"), DESKTOP)
    browser.settle()
    assert browser.run("document.title") == f"{evil.stem}: map"
    assert not browser.logged

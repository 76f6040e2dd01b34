"""Catalogs on disk and behind servers, and searches of an API: what is found, what is refused, and what is opened."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.range_server import Fault, RangeServer
from datasets.scenes.stac_world import SearchServer, change_item, write_world
from refusals import refused
from terrafm_tg.datasets.scenes.stac import catalog as stac
from terrafm_tg.datasets.scenes.stac.catalog import open_stac, sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch, boxes_meet
from terrafm_tg.utils import remote

INSIDE = [11.72, 48.09, 11.78, 48.12]
COLLECTIONS = ["sentinel-2-l2a", "sentinel-1-rtc"]
MAY = StacSearch(COLLECTIONS, INSIDE, "2023-05")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stac") / "world"
    write_world(folder)
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy whose images are links, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tif")))


def days(found: stac.StacScenes) -> list[tuple[str, int]]:
    return [(scene.modality, scene.time.day) for scene in found.scenes]


ALL = [("s1rtc", 2), ("s2l2a", 1), ("s2l2a", 20)]


def test_a_catalog_on_disk(world: Path) -> None:
    for source in (world / "catalog.json", f"file://{world}/catalog.json"):
        found = open_stac(source)
        assert (days(found), found.refused, found.root, found.sources) == (ALL, [], world, ())
        assert all((world / file).is_file() for scene in found.scenes for file in scene.files)
    collection = open_stac(world / "catalog.json", StacSearch(["sentinel-1-rtc"]))
    assert days(collection) == ALL[:1]
    with refused(match="does not lie below .* name the catalog's top folder"):
        open_stac(world / "sentinel-1-rtc/collection.json")  # its images lie above


@pytest.mark.parametrize("methods", [("POST",), ("GET",), ("GET", "POST")])
def test_a_search_of_an_api(methods: tuple[str, ...], world: Path) -> None:
    with SearchServer(world, methods) as server:
        found = open_stac(f"{server.url}/api", MAY)
        assert (days(found), found.root, found.sources) == (ALL, None, (f"{server.url}/",))
        assert len(server.asked) == 3  # pages
        assert server.asked[0]["datetime"] == "2023-05-01T00:00:00Z/2023-05-31T23:59:59Z"
        assert days(open_stac(f"{server.url}/api/", StacSearch(["sentinel-2-l2a"], INSIDE))) == ALL[1:]
        across = open_stac(f"{server.url}/api", StacSearch(COLLECTIONS, [11.7, 48, -170, 49], "2023-05-02/2023-05-10"))
        assert days(across) == ALL[:1]
        assert [asked["bbox"] for asked in server.asked[-2:]] != [[11.7, 48, -170, 49]] * 2
        for search in (StacSearch(bbox=INSIDE), StacSearch(COLLECTIONS)):
            with refused(match="is the API of a whole archive: give `collections`"):
                open_stac(f"{server.url}/api", search)


def test_conditions_hold_whatever_a_server_sends(world: Path) -> None:
    for search, expected in (
        (StacSearch(dates="2023-05-01/2023-05-19"), ALL[:2]),
        (StacSearch(dates="2023-05-20/.."), ALL[2:]),
        (StacSearch(dates="2023-05-02"), ALL[:1]),
        (StacSearch(max_cloud=20), ALL[:2]),
        (StacSearch(["sentinel-2-l2a"], INSIDE, "2023", 5), ALL[1:2]),
        (StacSearch(bbox=[-170, 48, 11.75, 49]), ALL),
    ):
        assert days(open_stac(world / "catalog.json", search)) == expected
    for search in (StacSearch(bbox=[100, 48, 101, 49]), StacSearch(dates="2024"), StacSearch(["landsat"])):
        with refused(match="holds no item that meets the conditions: widen"):
            open_stac(world / "catalog.json", search)
    with refused(match="more than `max_scenes` 2 items that fit: narrow"):
        open_stac(world / "catalog.json", StacSearch(max_scenes=2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dates": "may"}, "`dates` is 'may': give a day, month or year"),
        ({"dates": "2023-06/2023-05"}, "ends before it begins"),
        ({"dates": "../.."}, "`dates`"),
        ({"dates": "2023-01-01/2023-02-01/2023-03-01"}, "`dates`"),
        ({"bbox": [1.0, 2.0, 3.0]}, "`bbox` has 3 numbers"),
        ({"bbox": [10.0, 50.0, 11.0, 49.0]}, "is empty or not on the globe"),
        ({"max_cloud": 101}, "`max_cloud`"),
        ({"collections": ["a\nb"]}, "which is no name"),
        ({"max_scenes": 0}, "`max_scenes`"),
    ],
)
def test_settings_that_cannot_be(settings: dict, said: str) -> None:
    with refused(match=said):
        StacSearch(**settings)


@given(*[st.floats(-180, 180).map(lambda x: round(x, 3))] * 4, st.floats(-179, 179))
def test_boxes_meet_on_a_circle(west: float, east: float, w: float, e: float, turn: float) -> None:
    """Sampled meridians as the oracle; a turn of the globe changes nothing."""
    meridians = set(range(-1800, 1800))

    def inside(a: float, b: float) -> set[int]:
        return {x for x in meridians if ((x / 10 - a) % 360) <= ((b - a) % 360 or 360)}

    meet = boxes_meet((west, 0, east, 1), [w, 0, e, 1])
    if inside(west, east) & inside(w, e):
        assert meet
    turned = [((x + turn + 180) % 360) - 180 for x in (west, east, w, e)]
    gap = min(abs((a - b + 180) % 360 - 180) for a in (west, east) for b in (w, e))
    if gap > 1e-6 and abs(east - west) % 360 > 1e-6 and abs(e - w) % 360 > 1e-6:
        assert boxes_meet((turned[0], 0, turned[1], 1), [turned[2], 0, turned[3], 1]) == meet
    assert not boxes_meet((west, 2, east, 3), [w, 0, e, 1])


def test_older_processings_are_left_out_and_said(copy: Path) -> None:
    path = change_item(copy, "20230501", lambda item: None)
    old = json.loads(path.read_text())
    old["id"] += "_old"
    old["properties"] |= {
        "s2:processing_baseline": "03.00",
        "s2:product_uri": old["id"].replace("_R065", "_N0300_R065"),
    }
    items = [json.loads(p.read_text()) for p in sorted((copy / "sentinel-2-l2a").rglob("S*.json"))] + [old]
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = asset["href"].replace("../../", "")
    (copy / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = open_stac(copy / "items.json")
    assert days(found) == ALL[1:]
    assert {scene.claims.baseline for scene in found.scenes} == {509}
    assert found.said == ["1 of 3 items are older processings of others, and left out."]


OUTSIDE = ["/etc/passwd", "file:///etc/passwd", "../../../x.tif", "memory://x"]
OUTSIDE += ["dask://h:1/x::file:///y", "reference://x", "simplecache::https://h/x", "https://a/b://c", "x\0.tif", "", 3]


@pytest.mark.parametrize("href", OUTSIDE)
def test_an_item_leads_nowhere_else(href: object, copy: Path) -> None:
    path = change_item(copy, "20230501", lambda item: item["assets"]["B02"].update(href=href))
    named = "names|is no address that is read|no GeoTIFF"
    with refused(match=named):
        open_stac(path)
    found = open_stac(copy / "catalog.json")
    assert (len(found.refused), days(found)) == (1, [ALL[0], ALL[2]])
    with RangeServer(copy) as server:
        found = open_stac(f"{server.url}/catalog.json")
        assert days(found) in ([ALL[0], ALL[2]], ALL)  # below a server a path is the server's
        for file in (file for scene in found.scenes for file in scene.files):
            assert file.startswith(server.url), file


@pytest.mark.parametrize("href", ["/etc/passwd", "file:///etc/passwd", "../other/catalog.json", "ssh://h/x"])
def test_a_catalog_leads_nowhere_else(href: str, copy: Path) -> None:
    content = json.loads((copy / "catalog.json").read_text())
    content["links"].append({"rel": "child", "href": href})
    (copy / "catalog.json").write_text(json.dumps(content))
    with refused(match="was not opened|is no address that is read"):
        open_stac(copy / "catalog.json")
    with (
        RangeServer(copy) as server,
        refused(match="is no address|cannot: get its files|does not exist|cannot be read"),
    ):
        open_stac(f"{server.url}/catalog.json")


def test_a_redirect_to_a_file_or_a_private_network_is_not_followed(world: Path, monkeypatch) -> None:
    for to in ("file:///etc/passwd", "ftp://h/x"):
        fault = Fault(status=302, headers=(("Location", to),))
        with RangeServer(world, lambda *_, f=fault: f) as server, refused(match="which was not opened"):
            open_stac(f"{server.url}/catalog.json")
    monkeypatch.setattr(remote, "_is_private", _only_the_second_is_private)
    change = {"href": "http://10.0.0.1/B02.tif"}
    with SearchServer(world) as server:
        server.items[-1]["assets"]["B02"] = change | {"type": "image/tiff"}
        server.found = lambda asked, ask=server.found: _as_it_is(ask(asked), change)
        with refused(match="in a private network, which was not opened"):
            open_stac(f"{server.url}/api", StacSearch(["sentinel-2-l2a"], INSIDE, "2023-05-20"))


async def _only_the_second_is_private(url) -> bool:
    return url.host.startswith("10.")


def _as_it_is(page: dict, change: dict) -> dict:
    for item in page["features"]:
        item["assets"]["B02"] |= change
    return page


def test_a_catalog_in_a_circle_ends(copy: Path) -> None:
    content = json.loads((copy / "sentinel-2-l2a/collection.json").read_text())
    content["links"] += [{"rel": "child", "href": "../catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    (copy / "sentinel-2-l2a/collection.json").write_text(json.dumps(content))
    assert days(open_stac(copy / "catalog.json")) == ALL


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"type": "x"}', b"\xff\xfe", b'{"type": "FeatureCollection"}', b"[" * 99999]
)
def test_what_is_no_stac_is_one_sentence(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(body)
    with refused(match="is no STAC|holds no item"):
        open_stac(tmp_path / "x.json")
    with refused(match="is no STAC .*No such file"):
        open_stac(tmp_path / "none.json")
    with RangeServer(tmp_path) as server, refused(match="is no STAC|holds no item|cannot be read"):
        open_stac(f"{server.url}/x.json")


def test_busy_and_slow_services_are_waited_for(world: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(remote, "_FIRST", 0.01)
    faults = {0: Fault(status=429, headers=(("Retry-After", "1"),)), 1: Fault(status=503)}
    busy = SearchServer(world, fault=lambda path, number: faults.get(number))
    with caplog.at_level("INFO", "terrafm_tg"), busy as server:
        assert days(open_stac(f"{server.url}/api", MAY)) == ALL
    assert caplog.text.count("waiting") == 4
    wrong = SearchServer(world, fault=lambda path, number: Fault(status=400) if "search" in path else None)
    with wrong as server, refused(match=r"/api/search cannot be read \(400 Bad Request\)"):
        open_stac(f"{server.url}/api", MAY)


def test_a_page_without_end_is_cut_off(world: Path, monkeypatch) -> None:
    monkeypatch.setattr(stac, "_MOST_DOCUMENT", 2000)
    with SearchServer(world) as server, refused(match="answers with more than 2,000 bytes"):
        open_stac(f"{server.url}/api", MAY)


def test_items_are_kept_and_read_back(world: Path, tmp_path: Path) -> None:
    with SearchServer(world) as server:
        found = open_stac(f"{server.url}/api", MAY)
    found.save_in(tmp_path)
    again = stac.read_items(tmp_path / stac.ITEMS, found.sources)
    assert again.bbox == tuple(INSIDE)
    assert again.scenes == found.scenes
    assert again.sources == found.sources


def test_addresses_are_signed_by_the_library(monkeypatch) -> None:
    class Signs:
        @staticmethod
        def sign(url: str) -> str:
            return f"{url}?st={pd.Timestamp.now().year}"

    monkeypatch.setattr(stac, "import_module", lambda name: Signs)
    assert "?st=" in sign_blob("https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/x.tif")
    for other in ("https://h/x.tif", "https://sentinel2l2a01.blob.core.windows.net.evil.org/x.tif"):
        assert sign_blob(other) == other


@pytest.mark.parametrize("name", ["pystac_client", "planetary_computer"])
def test_an_extra_that_is_missing_is_one_sentence(name: str, world: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with SearchServer(world) as server, refused(match=r"needs p.*: run pip install 'terrafm-tg\[stac\]'"):
        if name == "pystac_client":
            open_stac(f"{server.url}/api", MAY)
        sign_blob("https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/x.tif")


def test_the_users_word_on_items_that_say_nothing(copy: Path) -> None:
    def quiet(item: dict) -> None:
        item.update(id="Sx", collection="mine")
        item["properties"] = {"datetime": item["properties"]["datetime"]}

    change_item(copy, "20230501", quiet)
    collection = json.loads((copy / "sentinel-2-l2a/collection.json").read_text()) | {"id": "mine"}
    (copy / "sentinel-2-l2a/collection.json").write_text(json.dumps(collection))
    with refused(match="set `modality`"):
        open_stac(copy / "catalog.json", StacSearch(["mine"]))
    found = open_stac(copy / "catalog.json", StacSearch(["mine"], modality="s2l1c"))
    assert days(found) == [("s2l1c", 1)]
    found.save_in(copy)
    assert days(stac.read_items(copy / stac.ITEMS, ())) == [("s2l1c", 1)]
    with refused(match="landsat"):
        StacSearch(modality="landsat")

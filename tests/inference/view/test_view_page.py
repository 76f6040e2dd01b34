"""The page as a file: what it holds and refuses, that nothing in it reaches out, and that no name becomes code."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from numpy.testing import assert_allclose

from data.embedding_products import values, write_cog, write_zarr
from inference.view.maps import COLORS, NAMES, content_of, layer_of, vectors_of, write, write_scene
from refusals import refusal, refused
from terrafm_tg.cli.main import main
from terrafm_tg.inference.view import Written, write_page

#: A name that would end the script, and one that would be markup.
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.open = tag
        self.texts.get(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, text: str) -> None:
        if self.open in self.texts:
            self.texts[self.open][-1] += text


def test_the_page_holds_all_layers_of_both_scenes(written: Written) -> None:
    content = content_of(written.path)
    assert written.scenes == ("july", "march")
    assert [scene["name"] for scene in content["scenes"]] == ["july", "march"]
    for number, name in enumerate(written.scenes):
        layers = [content["layers"][place] for place in content["scenes"][number]["layers"]]
        ends = {"picture": ".preview", "embeddings": "", "classes": ".classes", "scores": ".change"}
        assert [(x["kind"], x["name"]) for x in layers] == [(kind, f"{name}{end}.tif") for kind, end in ends.items()]
    assert [name for name, _ in layer_of(content, "classes")["classes"]] == NAMES
    assert content["scenes"][0]["bounds"] == [500_000, 5_493_600, 508_000, 5_500_000]
    assert len(written.notes) == 1
    assert re.fullmatch(r"Embeddings of 24 .* shown in 16 of 8 bits, which keep \d\d\.\d% .*", written.notes[0])


def test_nothing_in_the_page_reaches_out(written: Written) -> None:
    parsed = Parsed(written.path)
    found = [value for _, attributes in parsed.tags for name, value in attributes.items() if name in ("src", "href")]
    assert found == ["data:,"]
    assert "http:" not in written.path.read_text()
    assert not re.search(r"https?://|\bimport\b|url\(", "".join(parsed.texts["script"][1:] + parsed.texts["style"]))


def test_its_policy_admits_its_own_script_and_style_alone(written: Written) -> None:
    parsed = Parsed(written.path)
    (policy,) = (a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, text in (("script", parsed.texts["script"][-1]), ("style", parsed.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    names = {name for _, attributes in parsed.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    place, zeros = Affine(160, 0, 500_000, 0, -160, 5_500_000), np.zeros((1, 9, 9), np.uint8)
    name = EVIL.replace("/", "∕")  # a file's name has no slash
    tags = {"classes": '{"0": "</script><script>alert(3)</script>"}'}
    path = write(tmp_path / f"{name}.tif", zeros, place, colors=COLORS, tags=tags)
    parsed = Parsed(write_page(path, tmp_path / "page.html").path)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in parsed.tags]
    content = content_of(tmp_path / "page.html")
    assert content["title"] == name
    assert content["layers"][0]["classes"][0][0] == "</script><script>alert(3)</script>"


def test_each_control_has_a_name(written: Written) -> None:
    """Those that the script makes are looked at in the browser."""
    text = written.path.read_text()
    for tag, attributes in Parsed(written.path).tags:
        if tag in ("canvas", "select", "button"):
            label = attributes.get("aria-label") or attributes["id"] in ("scene", "forget")
            assert label, attributes
    assert re.search(r"<label id=\"choose\">Scene\s*<select id=\"scene\">", text)


@pytest.mark.parametrize("limit", [0.9, 2.0])
def test_a_large_map_is_reduced_to_the_limit_and_that_is_said(tmp_path: Path, limit: float) -> None:
    path = write_scene(tmp_path, height=300, width=310)
    found = write_page(path, limit_mb=limit)
    assert found.path == tmp_path / "scene.html"
    assert found.size == found.path.stat().st_size <= limit * 1e6
    assert found.size > 0.2 * limit * 1e6
    layer = layer_of(content_of(found.path), "embeddings")
    factor = layer["factor"]
    assert factor > 1
    assert (layer["height"], layer["width"]) == (-(-300 // factor), -(-310 // factor))
    assert f"scene.tif is shown in cells of {factor} × {factor} of its pixels." in found.notes
    assert f"scene.tif is shown in cells of {factor} × {factor} of its pixels." in found.path.read_text()


def test_further_layers_lie_over_the_scene_that_they_overlap(tmp_path: Path) -> None:
    path = write_scene(tmp_path)
    apart = tmp_path / "other"
    apart.mkdir()
    near = write(apart / "near.tif", np.zeros((1, 9, 9), np.float32), Affine(160, 0, 501_000, 0, -160, 5_499_000))
    far = write(apart / "far.tif", np.zeros((1, 9, 9), np.float32), Affine(160, 0, 901_000, 0, -160, 5_499_000))
    found = write_page(path, layers=[near, far])
    assert found.scenes == ("scene", "far")
    content = content_of(found.path)
    names = [[content["layers"][place]["name"] for place in scene["layers"]] for scene in content["scenes"]]
    assert names == [["scene.preview.tif", "scene.tif", "near.tif"], ["far.tif"]]


def test_a_map_of_classes_takes_the_preview_of_its_scene(tmp_path: Path) -> None:
    write_scene(tmp_path)
    content = content_of(write_page(tmp_path / "scene.classes.tif").path)
    assert [layer["kind"] for layer in content["layers"]] == ["picture", "classes"]


def test_a_map_belongs_to_the_scene_of_its_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "a_2")):
        write_scene(tmp_path, name, seed=seed)
    place = Affine(160, 0, 500_000, 0, -160, 5_500_000)
    for name in ("a_2_entropy", "a_entropy", "change"):
        write(tmp_path / f"{name}.tif", np.zeros((1, 40, 50), np.float32), place)
    content = content_of(write_page(tmp_path).path)
    names = {x["name"]: {content["layers"][i]["name"] for i in x["layers"]} for x in content["scenes"]}
    ends = (".preview", "", ".classes", ".change", "_entropy")
    assert names == {name: {"change.tif", *(f"{name}{end}.tif" for end in ends)} for name in ("a", "a_2")}


def test_a_zarr_store_shows_what_a_geotiff_shows(tmp_path: Path) -> None:
    found = values()
    paths = write_cog(tmp_path / "map.tif", found), write_zarr(tmp_path / "map.zarr", found)
    assert write_page(paths[1]).path == tmp_path / "map.html"
    pages = [content_of(write_page(path, tmp_path / "page.html").path) for path in paths]
    one, other = (layer_of(page, "embeddings") for page in pages)
    assert_allclose(vectors_of(one), vectors_of(other), atol=0.02)  # one step of the 8 bits
    assert one["place"] == other["place"]
    for page in pages:
        facts = dict(page["scenes"][0]["facts"])
        assert facts["Model"] == "terrafm_tiny"
        assert facts["Dates"] == "s2l2a: 2024-05-01T10:00:00"
        assert facts["CRS"] == "EPSG:32633, WGS 84 / UTM zone 33N"
    both = content_of(write_page(tmp_path, tmp_path / "both.html").path)
    assert [scene["name"] for scene in both["scenes"]] == ["map", str(tmp_path / "map.zarr")]


def test_embeddings_of_two_models_are_not_compared(tmp_path: Path) -> None:
    for name in ("base", "large", "again"):
        write_cog(tmp_path / f"{name}.tif", values(), about={"model": name.replace("again", "base")})
    layers = content_of(write_page(tmp_path).path)["layers"]
    bases = {layer["name"]: layer["basis"] for layer in layers}
    assert bases["base.tif"] == bases["again.tif"] != bases["large.tif"]


def test_mistakes_are_said(tmp_path: Path, maps: Path) -> None:
    with refused(match=r"nowhere does not exist"):
        write_page(tmp_path / "nowhere")
    with refused(match=r"holds no \.tif and no \.zarr"):
        write_page(tmp_path)
    with refused(match=r"may is no scene of .*: it has july, march"):
        write_page(maps, scene=["may"])
    with refused(match=r"limit_mb is 0\.1, too little for 8 maps"):
        write_page(maps, limit_mb=0.1)
    with refused(match=r"`dimensions` is 1"):
        write_page(maps, dimensions=1)
    with refused(match=r"`limit_mb` is nan"):
        write_page(maps, limit_mb=float("nan"))


def test_the_command_writes_the_page_and_says_so(
    tmp_path: Path, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "here" / "page.html"
    main(["view", str(maps), f"--page={page}", "--scene=[march]", "--limit_mb=0.3"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{page}: 1 scene, 0.")
    assert [scene["name"] for scene in content_of(page)["scenes"]] == ["march"]
    assert "is no scene" in refusal(capsys, "view", str(maps), "--scene=[june]")

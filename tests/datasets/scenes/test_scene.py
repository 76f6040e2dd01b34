"""Sources of a scene in a tile index, which may be a stranger's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm_tg.datasets.scenes.names import OPTICAL
from terrafm_tg.datasets.scenes.scene import BandSource, Scene, files_from_columns, files_to_columns

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\\%:~/", exclude_categories=["C"]), min_size=1).filter(
    lambda text: text.strip(".")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
SOURCES = st.builds(
    BandSource, PATHS, st.integers(1, 20), st.sampled_from(["", "B02", "r10m/b02"]), st.none() | st.integers(0, 9)
)
IMAGES = st.builds(
    lambda bands, masks: Scene("s2l2a", "", None, bands, masks=masks),
    st.dictionaries(st.sampled_from(OPTICAL), SOURCES, min_size=1),
    st.dictionaries(st.sampled_from(["SCL", "alpha"]), SOURCES),
)


@given(IMAGES, st.lists(IMAGES, max_size=3))
def test_round_trip(image, parts):
    scene = Scene(image.modality, "", None, image.bands, masks=image.masks, parts=(image, *parts) if parts else ())
    back = files_from_columns("s2l2a", *files_to_columns(scene))
    for held, given_ in zip(back.images, scene.images, strict=True):
        assert (held.bands, held.masks) == (given_.bands, given_.masks)


def test_the_pattern_of_a_product():
    files = {b: f"S2A_X.SAFE/GRANULE/L2A/IMG_DATA/R{r}m/T33_{b}_{r}m.jp2" for b, r in (("B02", 10), ("B11", 20))}
    scene = Scene("s2l2a", "", None, {band: BandSource(file) for band, file in files.items()})
    assert files_to_columns(scene)[0] == "S2A_X.SAFE/GRANULE/L2A/IMG_DATA/{}.jp2"
    stack = Scene("s1rtc", "", None, {"VH": BandSource("a.tif"), "VV": BandSource("a.tif", 2)})
    assert files_to_columns(stack) == ("a.tif", '[[{"VH":[],"VV":["",2]},{}]]')


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a_{}.tif", '[[{"B02":["../../x"]},{}]]'), ("../a.tif", '[[{"B02":[]},{}]]'),
        ("{}", '[[{"B02":["https://h/x.tif"]},{}]]'), ("a.tif", '[[{"B02":["",0]},{}]]'),
        ("a.tif", '[[{"B02":["",true]},{}]]'), ("a.tif", '[[{"VV":[]},{}]]'), ("a.tif", "[]"), ("a.tif", "{}"),
        ("a.tif", '[[{},{}]]'), ("a.tif", "[" * 5000), ("a.tif", '[[{"B02":["",1,"../x"]},{}]]'),
        ("a.tif", '[[{"B02":["",1,"",-1]},{}]]'), ("a.tif", '[[{"B02":5},{}]]'), ("a.tif", '[[{"B02":[]},{"x":[]}]]'),
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused(pattern, text):
    with pytest.raises(ValueError, match=r"it (describes|names) "):
        files_from_columns("s2l2a", pattern, text)

"""Tiles and pairs of sensors: places against shapely in a plane around each, dates by hand."""

import warnings

import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from refusals import refused
from terrafm_tg.datasets.scenes.pairs import cover, join_products

DEGREE = 10 / 111_320


def scene(modality, at, epsg, side=132, date=None, res=None, off=(0.0, 0.0), name=None):
    """A scene of ``side`` pixels around a place (longitude, latitude), moved by meters or degrees."""
    x, y = at if epsg == 4326 else pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(*at)
    res = res or (DEGREE if epsg == 4326 else 10.0)
    x, y = x - side * res / 2 + off[0], y + side * res / 2 + off[1]
    row = {"modality": modality, "path": name or f"{modality}/{date}_{epsg}.tif", "files": "[]", "bands": None}
    row |= {
        "verdict": "{}",
        "offset": 0,
        "product": f"{modality} {date}",
        "date": pd.Timestamp(date) if date else pd.NaT,
    }
    return row | {
        "epsg": epsg,
        "x": x,
        "y": y,
        "xres": res,
        "yres": res,
        "height": side,
        "width": side,
        "steps": "1 2 6",
        "number": 0,
    }


def join(*scenes, tile_size=132, **settings):
    table = pd.DataFrame(scenes)
    table["date"] = table["date"].astype("datetime64[us]")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiles = join_products(table.sort_values(["date", "path"], ignore_index=True), tile_size, **settings)
    return tiles, [str(w.message) for w in said]


PLACES = {
    "Bergen": ((5.3, 60.4), 32632),
    "Svalbard": ((15.6, 78.2), 32633),
    "Fiji": ((180.0, -17.0), 32701),
    "Fiji, west": ((179.9999, -17.0), 32760),
    "Chukotka": ((-179.9999, 66.2), 32601),
    "North Pole": ((0.0, 90.0), 32661),
    "South Pole": ((0.0, -90.0), 3031),
}


@pytest.mark.parametrize("place", PLACES)
def test_sensors_of_one_place_are_one_tile(place):
    """Beside each other by 30 m, in the same CRS, in the next zone or another map of the pole, and in degrees."""
    at, epsg = PLACES[place]
    next_zone = {32661: 3413, 3031: 32761, 32701: 32760, 32760: 32701, 32601: 32660}.get(epsg, epsg + 1)
    others = [scene("s1rtc", at, epsg, off=(30, -30)), scene("s1rtc", at, next_zone, off=(30, -30))]
    if abs(at[1]) < 89:  # of 10 m along both axes
        others.append(scene("s1rtc", at, 4326, side=int(140 / np.cos(np.radians(at[1]))), off=(DEGREE, 0)))
    for other in others:
        tiles, said = join(scene("s2l2a", at, epsg), other)
        assert len(tiles) == 1
        assert tiles[["has_s2l2a", "has_s1rtc"]].to_numpy().all()
        assert tiles["epsg"].tolist() == [epsg]
        warped = other["epsg"] != epsg
        assert tiles.attrs["pairing"]["warped"] == {"s2l2a": 0, "s1rtc": int(warped)}
        assert said == ["s1rtc is in the tile, warped to the tile's grid."] * warped


@pytest.mark.parametrize("place", PLACES)
def test_a_scene_gives_all_its_tiles(place):
    at, epsg = PLACES[place]
    for east in (0, 2000):
        tiles, said = join(
            scene("s2l2a", at, epsg, off=(east, 0)), scene("s1rtc", at, epsg, off=(east + 30, 0)), tile_size=66
        )
        assert len(tiles) == 4
        assert tiles["has_s1rtc"].all()
        assert said == []
        assert tiles["x"].nunique() == tiles["y"].nunique() == 2


def test_elsewhere_is_not_joined_but_counted():
    at, epsg = PLACES["Fiji"]
    far = (at[0] - 359.9, at[1])  # a tenth of a degree east
    tiles, said = join(
        scene("s2l2a", at, epsg), scene("s1rtc", far, epsg), scene("s1rtc", at, epsg, off=(700, 0), name="b")
    )
    assert tiles["has_s1rtc"].tolist() == [False, True, True]
    assert said == ["No tile shows two sensors: in 3 of 3 tiles no image of another sensor covers half of the tile."]


class TestDates:
    AT, EPSG = (11.5, 48.1), 32632

    def s1(self, date, **more):
        return scene("s1rtc", self.AT, self.EPSG, date=date, **more)

    def s2(self, date, modality="s2l2a"):
        return scene(modality, self.AT, self.EPSG, date=date)

    def pairs(self, *scenes, **settings):
        tiles, said = join(*scenes, **settings)
        names = [n for n in ("s2l2a", "s2l1c", "s1rtc") if f"date_{n}" in tiles]
        dates = zip(
            *(tiles[f"date_{n}"].dt.strftime("%m-%d").where(tiles[f"has_{n}"], "-") for n in names), strict=True
        )
        return list(dates), said

    def test_nearest_and_each_in_one_sample(self):
        scenes = [self.s2(f"2021-{d}") for d in ("03-01", "06-01", "09-01")]
        scenes += [self.s1(f"2021-{d}") for d in ("02-25", "03-04", "06-03", "08-20")]
        assert self.pairs(*scenes)[0] == [
            ("03-01", "03-04"), ("06-01", "06-03"), ("09-01", "08-20"), ("03-01", "02-25"),
        ]  # fmt: skip

    def test_all_within_days(self):
        scenes = [self.s2(f"2021-{d}") for d in ("03-01", "06-01")]
        scenes += [self.s1(f"2021-{d}") for d in ("02-25", "03-04", "06-03", "08-20")]
        found, said = self.pairs(*scenes, max_days=10, join="all")
        assert found == [("03-01", "03-04"), ("03-01", "02-25"), ("06-01", "06-03"), ("-", "08-20")]
        assert said == [
            "s2l2a is in 3 of 4 tiles; not in 1 where the nearest image of it is more than 10 days "
            "(`max_days`) away, 80 at the least."
        ]
        assert len(self.pairs(*scenes, join="all")[0]) == 8

    def test_too_far_apart(self):
        found, said = self.pairs(self.s2("2021-03-01"), self.s1("2021-04-01"), max_days=30)
        assert found == [("03-01", "-"), ("-", "04-01")]
        assert said == [
            "No tile shows two sensors: in 2 of 2 tiles the nearest image of another sensor is more than 30 days "
            "(`max_days`) away, 31 at the least."
        ]
        assert self.pairs(self.s2("2021-03-01"), self.s1("2021-04-01"), max_days=31)[0] == [("03-01", "04-01")]

    def test_without_dates(self):
        tiles, _ = join(self.s2(None), self.s1("2021-04-01"), max_days=1)
        assert tiles[["has_s2l2a", "has_s1rtc"]].to_numpy().all()

    def test_levels_and_radar(self):
        """L1C beside L2A of the day; an L1C without L2A has the L2A nearest in time, on that one's grid."""
        scenes = [self.s2("2021-03-01"), self.s2("2021-03-01", "s2l1c"), self.s2("2021-05-01", "s2l1c")]
        found, _ = self.pairs(*scenes, self.s1("2021-03-02"), self.s1("2021-05-02"))
        assert found == [("03-01", "03-01", "03-02"), ("03-01", "05-01", "05-02")]
        found, _ = self.pairs(*scenes, self.s1("2021-03-02"), self.s1("2021-05-02"), max_days=5)
        assert found == [("03-01", "03-01", "03-02"), ("-", "05-01", "05-02")]

    def test_radar_left_over_lies_on_the_optical_grid(self):
        radar = scene("s1rtc", self.AT, 4326, side=220, date="2021-04-01")
        tiles, _ = join(self.s2("2021-03-01"), self.s1("2021-03-01"), radar)
        assert tiles["epsg"].tolist() == [self.EPSG] * 2
        assert tiles["x"].nunique() == 1
        assert tiles["date_s1rtc"].dt.month.tolist() == [3, 4]
        assert tiles["datetime_stop"].dt.month.tolist() == [3, 4]

    def test_settings(self):
        with refused(match="`join` must be 'nearest' or 'all', got 'every'"):
            join(self.s2("2021-03-01"), join="every")


def test_share_of_a_tile_at_the_pole():
    """A place of the lattice on the pole, where latitude has no slope, at the very edge of a scene in degrees."""
    tile = {"epsg": 32661, "x": 2_000_000 - 7.5 * 82.5, "y": 2_000_000 + 7.5 * 82.5, "xres": 10.0, "yres": 10.0}
    east = {"epsg": 4326, "x": 0.0, "y": 90.0, "xres": 1.0, "yres": 0.1, "height": 5, "width": 180}
    got = cover(pd.DataFrame([tile | {"height": 132, "width": 132}]), pd.DataFrame([east]))[0]
    assert got == pytest.approx(8.5 / 16, abs=0.01)


def test_a_radar_scene_over_many_optical_ones():
    at, epsg = PLACES["Bergen"]
    optical = [scene("s2l2a", at, epsg, off=(x, y), name=f"{x}{y}") for x in (0, 1320) for y in (0, -1320)]
    radar = scene("s1rtc", at, epsg + 1, side=1000)
    tiles, said = join(*optical, radar, tile_size=66)
    assert len(tiles) == 16
    assert tiles["has_s1rtc"].all()
    assert said == ["s1rtc is in 16 of 16 tiles, in all of them warped to the tile's grid."]


def test_coarse_pixels_alone_are_cut_at_ten_meters():
    tiles, (sentence,) = join(scene("s2l2a", (11.5, 48.1), 32632, side=60, res=20.0), tile_size=60)
    assert sentence.startswith("1 image has pixels of 20 m (first ")
    assert len(tiles) == 4
    assert tiles[["xres", "yres", "height", "width"]].drop_duplicates().to_numpy().tolist() == [[10, 10, 60, 60]]


class TestSmall:
    def scenes(self, *sides):
        return [
            scene("s2l2a", (11.5 + i / 10, 48.1), 32632, side=side, name=f"{side}.tif") for i, side in enumerate(sides)
        ]

    def test_all_of_one_size_are_used_whole(self):
        tiles, said = join(*self.scenes(224, 224), tile_size=534)
        assert tiles["height"].tolist() == [224, 224]
        assert said == []

    def test_several_sizes_advise_one_that_works(self):
        advice = "3 of 3 s2l2a images are smaller than the default tile of 534 pixels (down to 256; first 256.tif, "
        with refused(
            match=r"3 of 3 s2l2a images.*set `tile_size` to 252, which all hold, or `small_images` to 'pad'"
        ) as error:
            join(*self.scenes(256, 264, 300), tile_size=534)
        assert str(error.value).startswith(advice)
        tiles, _ = join(*self.scenes(256, 264, 300), tile_size=252)
        assert tiles["height"].tolist() == [252] * 3

    def test_partners_may_be_of_any_size(self):
        optical = self.scenes(300)[0]
        radar = [scene("s1rtc", (11.5, 48.1), 32632, side=side, name=f"r{side}") for side in (310, 280)]
        tiles, said = join(optical, radar[0], tile_size=534)
        assert (len(tiles), bool(tiles["has_s1rtc"].all()), said) == (1, True, [])
        tiles, said = join(optical, radar[1], tile_size=534)
        assert (len(tiles), bool(tiles["has_s1rtc"].all()), said) == (1, True, [])

    def test_left_out_or_padded_by_choice(self):
        tiles, said = join(*self.scenes(300, 256, 264), tile_size=300)
        assert tiles["path_s2l2a"].tolist() == ["300.tif"]
        assert said == [
            "2 of 3 s2l2a images are smaller than a tile of 300 pixels (down to 256; first 256.tif, 256 x 256): they "
            "are left out; to use all, set `tile_size` to 252, which all hold, or `small_images` to 'pad'."
        ]
        tiles, said = join(*self.scenes(300, 256, 264), tile_size=300, small_images="pad")
        assert tiles[["height", "width"]].to_numpy().tolist() == [[300, 300]] * 3
        assert "filled up with missing pixels" in said[0]
        with refused(match="`small_images` must be 'drop' or 'pad', got 'crop'"):
            join(*self.scenes(300), small_images="crop")


@settings(max_examples=80, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-83, 83), st.floats(-1500, 1500), st.floats(-1500, 1500), st.integers(60, 400),
    st.sampled_from(["zone", "next", "degrees", "polar"]),
)  # fmt: skip
def test_shares_are_those_of_the_plane(lon, lat, east, north, side, kind):
    """Against polygons with many corners in an equal-area plane around the place."""
    zone = (32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1
    next_zone = zone + 1 if zone % 100 < 60 else zone - 59
    other = {"zone": zone, "next": next_zone, "degrees": 4326, "polar": 3413 if lat > 0 else 3031}[kind]
    if kind == "polar" and abs(lat) < 60:
        other = zone
    tile = scene("s2l2a", (lon, lat), zone)
    scale = DEGREE if other == 4326 else 10
    radar = scene("s1rtc", (lon, lat), other, side=side, off=(east * scale / 10, north * scale / 10))
    plane = pyproj.CRS.from_proj4(f"+proj=laea +lat_0={lat} +lon_0={lon} +datum=WGS84")
    polygons = []
    for grid_of in (tile, radar):
        ring = shapely.segmentize(
            shapely.box(
                grid_of["x"], grid_of["y"] - grid_of["height"] * grid_of["yres"],
                grid_of["x"] + grid_of["width"] * grid_of["xres"], grid_of["y"],
            ), grid_of["xres"] * 4,
        )  # fmt: skip
        to_plane = pyproj.Transformer.from_crs(grid_of["epsg"], plane, always_xy=True).transform
        polygons.append(shapely.transform(ring, lambda points, to=to_plane: np.transpose(to(*points.T))))
    expected = polygons[0].intersection(polygons[1]).area / polygons[0].area
    got = cover(pd.DataFrame([tile]), pd.DataFrame([radar]))[0]
    assert got == pytest.approx(expected, abs=1e-3 if zone == other else 5e-3)

"""Footprints and queries where longitude turns over and at the poles, against pyproj in the tiles' own CRS."""

import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.tiny_files import Places
from terrafm_tg.datasets.tiles.outlines import BOX, boxes, outlines
from terrafm_tg.datasets.tiles.table import TIMES

GEOD = pyproj.Geod(ellps="WGS84")


def tiles_at(epsg: int, x: float, y: float, side: int = 534, res: float = 10.0, count: int = 2) -> Places:
    """``count`` x ``count`` tiles of ``side`` pixels whose common middle lies at (x, y)."""
    step = np.arange(count) * side * res - count * side * res / 2
    left, top = (part.ravel() for part in np.meshgrid(x + step, y - step))
    table = pd.DataFrame({"cell": "0U_0R", "quadrant": 0, "epsg": epsg, "x": left, "y": top, "has_s2l2a": True})
    table = table.assign(xres=res, yres=res, height=side, width=side)
    table = table.assign(**boxes(table), **dict.fromkeys(TIMES, np.datetime64("2021-06-01", "us")))
    return Places(table, tile_size=side // 6 * 6)


def project(epsg: int):
    return pyproj.Transformer.from_crs(4326, epsg, always_xy=True)


def middle_of(epsg, lon, lat):
    return project(epsg).transform(lon, lat)


PLACES = {
    "Fiji, zone 60": (32760, 179.999, -17.0),
    "Fiji, zone 1": (32701, -179.999, -17.0),
    "Chukotka": (32601, -179.99, 66.2),
    "Bergen": (32632, 5.3, 60.4),
    "Svalbard": (32633, 15.6, 78.2),
    "North Pole, UPS": (32661, 0.0, 90.0),
    "South Pole, Antarctic polar": (3031, 0.0, -90.0),
    "beside the pole": (3413, 12.0, 89.98),
    "UTM at the pole": (32633, 15.0, 89.99),
    "Fiji, map grid": (3460, 179.99, -17.0),
}


@pytest.mark.parametrize("place", PLACES)
def test_any_turn_of_any_place_finds_its_tile(place):
    """Points in and around the tiles; which tile it is, its own CRS tells."""
    epsg, lon, lat = PLACES[place]
    x, y = middle_of(epsg, lon, lat)
    tiles = tiles_at(epsg, x, y)
    table, random = tiles.table, np.random.default_rng(1)
    found = 0
    for dx, dy in random.uniform(-7000, 7000, (60, 2)):
        over = (table.x <= x + dx) & (x + dx <= table.x + 5340) & (table.y >= y + dy) & (y + dy >= table.y - 5340)
        east, north = project(epsg).transform(x + dx, y + dy, direction="INVERSE")
        for turn in (-360, 0, 360):
            query = slice(east + turn - 1e-9, east + turn + 1e-9), slice(north - 1e-9, north + 1e-9)
            if over.any():
                assert tiles.resolve(query) == over.argmax()
                found += 1
            else:
                with pytest.raises(IndexError, match="not found"):
                    tiles.resolve(query)
    assert 60 < found < 180


@pytest.mark.parametrize("place", PLACES)
def test_outlines_are_those_of_the_ground(place):
    """Area on the ellipsoid, and each point in the outline where its CRS has it."""
    epsg, lon, lat = PLACES[place]
    x, y = middle_of(epsg, lon, lat)
    tiles = tiles_at(epsg, x, y, count=3)  # so that a tile has the pole in it
    shapes, table = outlines(tiles.table), tiles.table
    assert shapely.is_valid(shapes).all()
    np.testing.assert_array_equal(table[list(BOX)], shapely.bounds(shapes))
    assert table.xmin.between(-180, 180, inclusive="left").all()
    assert (table.xmax - table.xmin <= 360).all()
    edge = np.linspace(0, 5340, 200)
    for row, shape in zip(table.itertuples(), shapes, strict=True):
        around = [(row.x + edge, row.y), (row.x + 5340, row.y - edge), (row.x + edge[::-1], row.y - 5340)]
        around.append((row.x, row.y - edge[::-1]))
        ring = project(epsg).transform(*np.hstack([np.broadcast_arrays(*side) for side in around]), direction="INVERSE")
        true = abs(GEOD.polygon_area_perimeter(*ring)[0])  # on the ellipsoid, a pole inside and all
        flat = shapely.segmentize(shape, 0.01)
        assert geodesic_area(flat) == pytest.approx(true, rel=2e-3)
    union = shapely.union_all(shapes)
    assert shapely.area(shapes).sum() == pytest.approx(union.area, rel=1e-3)  # they do not overlap


def geodesic_area(polygon: shapely.Polygon) -> float:
    """Area of a polygon in longitude and latitude, its edges straight there: by the sphere of equal area's integral."""
    lon, lat = np.radians(shapely.get_coordinates(polygon)).T
    a, e2 = GEOD.a, GEOD.es
    e, sin = np.sqrt(e2), np.sin(lat)
    q = (1 - e2) * (sin / (1 - e2 * sin**2) + np.arctanh(e * sin) / e)
    return abs(a**2 / 2 * ((q[1:] + q[:-1]) / 2 * np.diff(lon)).sum())


@pytest.mark.parametrize("place", PLACES)
def test_a_slice_of_a_tile_is_that_tile(place):
    epsg, lon, lat = PLACES[place]
    tiles = tiles_at(epsg, *middle_of(epsg, lon, lat), count=3)
    for row in range(9):
        assert tiles.resolve(tuple(tiles.tile_slice(row))) == row
    pole = abs(lat) > 89
    assert tiles.bounds[0].stop - tiles.bounds[0].start < (360.001 if pole else 0.8)


def test_a_box_over_180_degrees_in_either_writing():
    x, y = middle_of(32701, 180.0, -17.0)
    tiles = tiles_at(32701, x, y, count=1)
    west, east = 179.99, -179.99
    for query in ((west, east), (west, east + 360), (west - 360, east)):
        assert tiles.resolve((slice(*query), slice(-17.01, -16.99))) == 0
        box = tiles._footprints.in_tile_crs(0, slice(*query), slice(-17.001, -16.999))
        expected = project(32701).transform([west, east, west, east], [-17.001, -17.001, -16.999, -16.999])
        np.testing.assert_allclose(box, [*np.min(expected, axis=1), *np.max(expected, axis=1)], atol=0.5)
    with pytest.raises(IndexError):
        tiles.resolve((slice(-179.99, 179.99), slice(-17.01, -16.99)))  # its center lies at Greenwich


def test_degrees_that_go_on_beyond_180():
    """Tiles of rasters in longitude and latitude, whichever turn they are written in."""
    for x in (179.95, 179.95 - 360, 539.95):
        tiles = tiles_at(4326, x + 0.05, -17.0, side=600, res=1 / 6000, count=1)
        assert tiles.table[list(BOX)].iloc[0].tolist() == pytest.approx([179.95, -17.05, 180.05, -16.95])
        for lon in (179.96, -179.96, 180.04, -180.04):
            assert tiles.resolve((slice(lon - 1e-3, lon + 1e-3), slice(-17.0, -16.99))) == 0
            box = tiles._footprints.in_tile_crs(0, slice(lon - 1e-3, lon + 1e-3), slice(-17.0, -16.99))
            assert x <= box[0] < box[2] <= x + 0.1, lon
        with pytest.raises(IndexError):
            tiles.resolve((slice(179.9, 179.9), slice(-17.0, -17.0)))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-84, 84), st.integers(6, 600), st.sampled_from(["own", "next"]), st.integers(0, 99)
)
def test_a_tile_lies_in_its_box_and_finds_itself(lon, lat, side, zone, seed):
    """Anywhere on the globe, in the zone of the place or the next."""
    number = int((lon + 180) // 6 + (zone == "next")) % 60 + 1
    epsg = (32600 if lat >= 0 else 32700) + number
    x, y = middle_of(epsg, lon, lat)
    tiles = tiles_at(epsg, x, y, side, count=1)
    west, south, east, north = tiles.table[list(BOX)].iloc[0]
    assert -180 <= west < 180
    assert 0 < east - west < 180
    random = np.random.default_rng(seed).uniform(-0.49, 0.49, (8, 2)) * side * 10
    for dx, dy in random:
        at = project(epsg).transform(x + dx, y + dy, direction="INVERSE")
        assert south - 1e-3 <= at[1] <= north + 1e-3
        assert tiles.resolve((slice(at[0], at[0]), slice(at[1], at[1]))) == 0

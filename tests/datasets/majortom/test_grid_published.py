"""The grid against Major-TOM's published code: names, zones and corners of its cells, as digests of what that gives.

The digests are of lines such as ``672U_29R 32632 60.359281437 5.267406660``, cells from south to north and west to
east, written by the published class for cells of 10 km between 85 degrees south and north (revision of 7 January 2025).
"""

from hashlib import sha256

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj.database import query_utm_crs_info

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.grid import GridCell

COUNT = 5_094_350
ALL = "561d93a2649abaeaf15a6147e9985afb0082c84f11a8cffdaae3b51559bdbd0e"
SAMPLE = "e559564e190b5c3de49c89dfbf00a5bff66e5cf804495d201b4dd1b5144e3cac"
ROWS = np.arange(-946, 947)


def lines(rows, cols):
    """The cells with some corners, by way of their places: each is found again, named, and has its zone."""
    lat, lon = grid.corners(rows, cols)
    epsg = grid.utm_zones(lat, lon)
    names = grid.names(*grid.cells_at(lat + 1e-7, lon + 1e-7))
    values = zip(names, epsg.tolist(), lat.tolist(), lon.tolist(), strict=True)
    return [f"{name} {code} {south:.9f} {west:.9f}\n" for name, code, south, west in values]


def test_a_sample_drawn_by_hash():
    """Twelve cells of each row."""
    rows = np.repeat(ROWS, 12)
    counts = grid.cells_per_row(rows).tolist()
    draws = [int(sha256(f"{row} {i % 12}".encode()).hexdigest(), 16) for i, row in enumerate(rows.tolist())]
    cols = np.array([draw % count for draw, count in zip(draws, counts, strict=True)])
    assert sha256("".join(lines(rows, cols)).encode()).hexdigest() == SAMPLE


@pytest.mark.soak
def test_all_cells():
    digest, total = sha256(), 0
    for rows in np.array_split(ROWS, 40):
        counts = grid.cells_per_row(rows)
        all_rows = np.repeat(rows, counts)
        cols = np.concatenate([np.arange(count) for count in counts])
        lon = grid.corners(all_rows, cols)[1]
        order = np.lexsort((lon, all_rows))
        digest.update("".join(lines(all_rows[order], cols[order])).encode())
        total += len(cols)
    assert total == COUNT
    assert digest.hexdigest() == ALL


@pytest.mark.parametrize(
    ("place", "name", "epsg"),
    [
        ((60.4, 5.3), "672U_29R", 32632),  # Bergen
        ((55.99, 3.5), "623U_21R", 32631),  # the sea, south of Norway's zone
        ((78.2, 15.6), "870U_35R", 32633),  # Longyearbyen
        ((78.9, 11.9), "878U_25R", 32633),  # Ny-Ålesund
        ((71.99, 20.0), "801U_69R", 32634),  # south of Svalbard's
        ((-17.0, 179.95), "190D_1915R", 32760),  # Fiji
        ((66.2, 179.9), "737U_808R", 32660),  # Chukotka
        ((66.2, -179.9), "737U_809L", 32601),
        ((-84.66, 179.9), "943D_185R", 32760),
        ((-84.66, -179.9), "943D_185R", 32760),  # the same cell, which 180 degrees cuts
        ((-84.66, -179.4), "943D_185L", 32701),
        ((-46.75, -179.9999), "521D_1372R", 32701),  # a corner that the published rounding puts east of 180 degrees
        ((-46.9, -179.9999), "523D_1367R", 32760),
        ((-83.26, -119.9999), "927D_157L", 32711),  # and one on the border of two zones
        ((84.9, 0.5), "945U_0R", 32631),
    ],
)
def test_places(place, name, epsg):
    row, col = grid.cells_at(*place)
    assert grid.names(row, col) == [name]
    cell = GridCell(int(row), int(col))
    assert (cell.name, cell.epsg) == (name, epsg)
    lat, lon = cell.corner
    assert lat <= place[0] < lat + 180 / grid.ROWS
    assert 0 <= (place[1] - lon + 1e-9) % 360 < 360 / grid.cells_per_row(row) + 1e-9


def test_zones_against_the_registry_of_epsg():
    """In its zone a cell lies within the few degrees for which the registry of EPSG has that zone; Norway's wider."""
    random = np.random.default_rng(3)
    areas = {info.code: info.area_of_use for info in query_utm_crs_info("WGS 84")}
    for lat, lon in np.column_stack([random.uniform(-79, 83.5, 2000), random.uniform(-180, 179.9, 2000)]).tolist():
        if (56 <= lat < 64 and 3 <= lon < 12) or (lat >= 72 and 0 <= lon < 42):
            continue
        area = areas[str(grid.utm_zones(lat, lon))]
        assert area.west <= lon <= area.east
        assert area.south <= lat <= area.north
    for lat, lon in ((60.4, 5.3), (78.2, 15.6), (78.9, 8.9)):
        transform = pyproj.Transformer.from_crs(4326, int(grid.utm_zones(lat, lon)), always_xy=True)
        assert 150_000 < transform.transform(lon, lat)[0] < 850_000


def test_poles_lie_in_cells():
    """Beyond the published rows too: every place on Earth has a cell, of its row."""
    rows, cols = grid.cells_at([90, 89.99, -90, -89.999], [0, -170, 12, 179.9])
    assert rows.tolist() == [1001, 1001, -1002, -1002]
    assert (np.abs(cols) <= grid.cells_per_row(rows)).all()
    south, west = grid.corners(rows, cols)
    assert (np.isfinite(south) & np.isfinite(west)).all()


@given(
    st.floats(-180, 180), st.floats(-90, 89), st.floats(0.01, 3), st.floats(0.01, 0.9), st.sampled_from([-360, 0, 360])
)
def test_cells_over_a_box(west, south, wide, high, turn):
    """Those of a lattice of places in it, each once, in whatever turn or order its sides are given."""
    east, north = west + wide, south + high
    cells = grid.cells_over(west, south, east, north)
    lon, lat = np.meshgrid(np.linspace(west, east, 90), np.linspace(south, north, 30))
    names = {cell.name for cell in cells}
    assert len(names) == len(cells)
    assert names >= {*grid.names(*grid.cells_at(lat.ravel(), lon.ravel()))}
    rows = (int(high * grid.ROWS / 180) + 2) * (int(wide * grid.cells_per_row(cells[0].row) / 360) + 2)
    assert len(cells) <= 2 * rows
    assert names == {cell.name for cell in grid.cells_over(west + turn, south, east + turn, north)}
    assert names == {cell.name for cell in grid.cells_over(west, south, (east + 180) % 360 - 180, north)}


def test_cells_around_a_pole():
    cells = grid.cells_over(-180, 89.7, 180, 90)
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.row for cell in cells] == [
        row for row in (998, 999, 1000, 1001) for _ in range(grid.cells_per_row(row))
    ]

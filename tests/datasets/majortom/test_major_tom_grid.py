import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusals import refused
from terrafm_tg.datasets.majortom import grid

LAT, LON = st.floats(-89.9, 89.9), st.floats(-180, 179.999)


@given(LAT, LON, st.integers(-3, 3))
def test_a_place_lies_in_its_cell_whose_name_and_corner_lead_back(lat, lon, turns):
    rows, cols = grid.cells_at([lat], [lon])
    south, west = grid.corners(rows, cols)
    assert south[0] - 1e-9 <= lat <= south[0] + 180 / grid.ROWS + 1e-9
    assert west[0] - 1e-9 <= lon <= west[0] + 360 / grid.cells_per_row(rows)[0] + 1e-9
    np.testing.assert_array_equal(grid.parse(grid.names(rows, cols)), (rows, cols))
    # a row with an odd number of cells begins with one whose corner lies beyond the date line
    np.testing.assert_array_equal(grid.cells_at(south, west.clip(-180)), (rows, cols))
    lon = round(lon, 6)  # a turn of the globe changes nothing
    np.testing.assert_array_equal(grid.cells_at([lat], [lon + 360 * turns]), grid.cells_at([lat], [lon]))


def test_written_out_by_the_published_recipe():
    radius, distance = 6378.137, 10
    n = np.ceil(np.pi * radius / distance)
    for lat, lon in [(48.2, 11.5), (-33.9, 18.4), (0.04, 17.9), (78.2, -15.6), (-0.01, -0.01)]:
        row = np.floor(lat / (180 / n))
        m = np.ceil(2 * np.pi * radius * np.cos(np.radians(row * 180 / n)) / distance)
        col = np.floor(lon * m / 360)
        name = f"{abs(row):.0f}{'U' if row >= 0 else 'D'}_{abs(col):.0f}{'R' if col >= 0 else 'L'}"
        assert grid.names(*grid.cells_at(lat, lon)) == [name]


def test_names_of_published_cells(real_data):
    metadata = pq.read_table(real_data / "major_tom/Core-S2L2A/metadata.parquet").to_pandas()
    assert grid.names(*grid.cells_at(metadata.centre_lat, metadata.centre_lon)) == list(metadata.grid_cell)
    rows, cols = grid.parse(metadata.grid_cell)
    assert rows.tolist() == metadata.grid_row_u.tolist()
    assert cols.tolist() == metadata.grid_col_r.tolist()


@pytest.mark.parametrize("name", ["", "12U", "12X_3R", "U_3R", "12U_R", "u4pruyd"])
def test_other_names_are_refused(name):
    with refused(match="no Major-TOM cell"):
        grid.parse([name])

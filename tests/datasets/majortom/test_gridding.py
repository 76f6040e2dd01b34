import multiprocessing
import time

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from scipy.ndimage import map_coordinates

from data.scenes import data as fake
from datasets.tiny_files import product, write_major_tom
from refusals import refused
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.datasets.majortom.gridding import grid_scenes
from terrafm_tg.datasets.majortom.pictures import cells_under, picture_grid
from terrafm_tg.datasets.scenes.scene import Scene
from terrafm_tg.modalities import MODALITIES

LAT, LON = st.floats(-89.9, 89.9), st.floats(-180, 180)


@given(LAT, LON, st.integers(-3, 3))
def test_a_place_lies_in_its_cell_whose_name_and_corner_lead_back(lat, lon, turns):
    rows, cols = grid.cells_at([lat], [lon])
    south, west = grid.corners(rows, cols)
    assert south[0] - 1e-9 <= lat <= south[0] + 180 / grid.ROWS + 1e-9
    # the last cell of a row with an odd number goes on beyond the date line
    assert (lon - west[0] + 1e-9) % 360 <= 360 / grid.cells_per_row(rows)[0] + 2e-9
    np.testing.assert_array_equal(grid.parse(grid.names(rows, cols)), (rows, cols))
    np.testing.assert_array_equal(grid.cells_at(south, west), (rows, cols))
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


CELL = GridCell(540, 99)
SIZE, SIDE = 60, 348  # 10 m pixels across the cell's picture and the scene


@pytest.fixture(scope="module", autouse=True)
def _scene_over_the_cell():
    """The scenes' corner: the cell's middle lies in them, on Sentinel-2's 60 m raster."""
    middle = CELL.transform(12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "EPSG", CELL.epsg)
        patch.setattr(fake, "X", round(middle.c / 60) * 60 - 1740)
        patch.setattr(fake, "Y", round(middle.f / 60) * 60 + 1740)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    fake.safe(folder, "L2A", SIDE)
    fake.safe(folder, "L1C", SIDE)
    fake.rtc(folder, SIDE)
    return folder


@pytest.fixture(scope="module")
def root(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gridded")
    table = run(scenes, folder)
    assert table.cells.tolist() == [1, 1, 1]
    return folder


def run(scenes, out, *args, **settings):
    return grid_scenes(scenes, out, *args, **{"cell_size": SIZE, "workers": 0, "progress": False} | settings)


def opened(root, *args, **settings):
    return MajorTOM(root, *args, tile_size=SIZE // 2, **settings)


def grid_of(band: str, metres: int) -> tuple[int, int]:
    """Row and column of the scene's pixel in the picture's corner."""
    t = picture_grid(CELL, SIZE, metres)
    row, column = (fake.Y - t.f) / metres, (t.c - fake.X) / metres
    assert (row, column) == (round(row), round(column))
    return round(row), round(column)


class TestPixels:
    def test_copied_bit_for_bit(self, root):
        """Sentinel-2's 10 and 20 m bands and radar, through the dataset."""
        dataset = opened(root, native=True)
        sample = dataset[dataset.tile_slice(3)]  # the south-eastern quarter
        for name, stored in (("s2l1c", fake.optics), ("s2l2a", fake.optics), ("s1rtc", fake.radar)):
            offset = 0 if name == "s1rtc" else 1000  # N0400
            for metres in (10, 20):
                for i, band in enumerate(MODALITIES[name].native.get(metres, ())):
                    row, column = grid_of(band, metres)
                    side, half = SIZE * 10 // metres, SIZE * 5 // metres
                    whole = stored(band, SIDE)[row : row + side, column : column + side]
                    expected = whole[half:, half:] - whole.dtype.type(offset)
                    np.testing.assert_array_equal(
                        sample[f"image_{name}_{metres}m"][i], expected, err_msg=f"{name} {band}"
                    )

    def test_sixty_metres_are_interpolated(self, root):
        part = next((root / "Core-S2L2A/images").glob("own_*.parquet"))
        t = picture_grid(CELL, SIZE, 60)
        rows, columns = (fake.Y - t.f) / 60 + np.arange(SIZE // 6), (t.c - fake.X) / 60 + np.arange(SIZE // 6)
        expected = map_coordinates(
            fake.optics("B09", SIDE).astype(float), np.meshgrid(rows, columns, indexing="ij"), order=1
        )
        blob = pq.ParquetFile(part).read_row_group(0, ["B09"])["B09"][0].as_py()
        with MemoryFile(blob) as memory, memory.open() as src:
            np.testing.assert_allclose(src.read(1), expected, atol=0.51)

    def test_corner_near_major_toms(self):
        for cell in (CELL, GridCell(0, 199), GridCell(-300, -17), GridCell(800, 3)):
            exact, here = cell.transform(), picture_grid(cell, 1068, 20)
            assert max(abs(exact.c - here.c), abs(exact.f - here.f)) <= 10
            assert here.c % 20 == here.f % 20 == 0

    @pytest.mark.parametrize("unit", ["dB", "amplitude"])
    def test_units_become_linear_power(self, root, tmp_path, unit):
        fake.rtc(tmp_path, SIDE, fake.GRD, unit)
        run(tmp_path, tmp_path / "out", unit=unit)
        got, expected = (opened(path, ["s1rtc"], native=True) for path in (tmp_path / "out", root))
        np.testing.assert_allclose(*(d[d.tile_slice(0)]["image_s1rtc_10m"] for d in (got, expected)), rtol=1e-5)

    def test_another_zone_is_warped(self, tmp_path):
        """A field that is smooth in latitude and longitude, stored in the neighbouring zone."""
        x, y = pyproj.Transformer.from_crs(4326, CELL.epsg - 1, always_xy=True).transform(
            *CELL.lonlat(SIZE, [(0.5, 0.5)])[0]
        )
        x, y = round(x / 10) * 10 - 1500, round(y / 10) * 10 + 1500

        def power(epsg, east, north):
            lon, lat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(east, north)
            return 0.02 * (2 + np.sin(lon * 300) + np.cos(lat * 300))

        centre = np.arange(300) * 10 + 5
        field = power(CELL.epsg - 1, *np.meshgrid(x + centre, y - centre)).astype(np.float32)
        for band in ("VV", "VH"):
            path = tmp_path / "a" / f"{fake.RTC}_{band}.tif"
            fake.write(path, field, 10, x, y, CELL.epsg - 1)
        run(tmp_path / "a", tmp_path / "b")
        dataset = opened(tmp_path / "b", native=True)
        t, near = picture_grid(CELL, SIZE), np.arange(SIZE // 2) * 10 + 5
        expected = power(CELL.epsg, *np.meshgrid(t.c + near, t.f - near))
        np.testing.assert_allclose(dataset[dataset.tile_slice(0)]["image_s1rtc_10m"][0], expected, atol=6e-5)

    def test_missing_pixels(self, tmp_path):
        fake.rtc(tmp_path, SIDE)
        row, column = grid_of("VV", 10)
        with rasterio.open(next(tmp_path.rglob("*VV.tif"))) as src:
            pixels = src.read(1)
        pixels[row : row + 3, column : column + 20] = np.nan
        pixels[row + 3 : row + 6, column : column + 20] = 0
        fake.write(next(tmp_path.rglob("*VV.tif")), pixels, 10)
        for least, cells in ((0.9, 1), (0.97, 0)):  # 120 of 3,600 pixels are missing
            out = tmp_path / f"out{least}"
            table = run(tmp_path, out, least)
            assert table.cells.tolist() == [cells]
        metadata = pd.read_parquet(tmp_path / "out0.9/Core-S1RTC/metadata.parquet")
        assert metadata.nodata.tolist() == pytest.approx([100 * 120 / 3600])


class TestRoot:
    def test_layout_is_major_toms(self, root):
        metadata = gpd.read_parquet(root / "Core-S2L2A/metadata.parquet")
        row = metadata.iloc[0]
        assert (row.grid_cell, row.product_id, row.cloud_cover, row.nodata) == (CELL.name, fake.L2A, 12.5, 0)
        assert row.crs == f"EPSG:{CELL.epsg}"
        assert row.timestamp == pd.Timestamp("2022-03-06 10:20:21")
        assert row.geometry.centroid.distance(opened(root).index.geometry.union_all().centroid) < 1e-4
        folder = root / "Core-S2L1C"
        part = pq.ParquetFile(folder / gpd.read_parquet(folder / "metadata.parquet").parquet_url[0])
        columns = {"product_id", "grid_cell", "product_datetime", "thumbnail", "B01", "B10", "B12"}
        assert columns <= set(part.schema.names)
        assert part.num_row_groups == 1
        assert "geometry" not in pd.read_parquet(root / "Core-S1RTC/metadata.parquet")
        table = opened(root).table
        assert len(table) == 4
        assert (table.offset_s2l2a == 1000).all()
        assert table[["has_s1rtc", "has_s2l1c", "has_s2l2a"]].all(axis=None)

    def test_same_bytes_and_nothing_is_read_twice(self, scenes, root, tmp_path):
        part = tmp_path / "Core-S2L2A/images" / f".own_{fake.L2A}.parquet.0.tmp"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"what an interrupted run left")
        first = run(scenes, tmp_path)
        assert not part.exists()
        written = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.parquet")}
        assert len(written) == 6
        for name, path in written.items():
            assert path.read_bytes() == (root / name).read_bytes(), name
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("own_*")}
        again = run(scenes, tmp_path)
        assert (again.kept & ~first.kept).all()
        assert {path: path.stat().st_mtime_ns for path in times} == times
        assert not run(scenes, tmp_path, 0.5).kept.any()

    def test_added_to_what_is_there(self, scenes, tmp_path):
        there = ["540U_97R", "541U_99R"]
        rows = [product("s2l2a", cell, epsg=CELL.epsg, size=SIZE) for cell in there]
        write_major_tom(tmp_path, {"s2l2a": rows})
        run(scenes, tmp_path)
        dataset = opened(tmp_path, native=True)
        assert sorted(dataset.table.cell.unique()) == sorted([*there, CELL.name])
        for row in range(len(dataset)):
            assert "image_s2l2a_60m" in dataset[dataset.tile_slice(row)]
        run(scenes, tmp_path)
        assert len(pd.read_parquet(tmp_path / "Core-S2L2A/metadata.parquet")) == 3

    def test_cells_of_a_scene(self):
        """Against the names of random places in it, also across the date line."""
        for lat, lon in ((48.5, 9.0), (-16.5, 179.97)):
            cell = GridCell(*(int(v) for v in grid.cells_at(lat, lon)))
            t = cell.transform()
            place = Affine(100, 0, t.c - 10_000, 0, -100, t.f + 10_000)
            scene = Scene("s1rtc", "", None, {}, epsg=cell.epsg, transform=place, height=300, width=300)
            found = {c.name for c in cells_under(scene)}
            back = pyproj.Transformer.from_crs(cell.epsg, 4326, always_xy=True)
            x, y = np.random.default_rng(0).uniform(0, 30_000, (2, 500))
            lons, lats = back.transform(t.c - 10_000 + x, t.f + 10_000 - y)
            assert set(grid.names(*grid.cells_at(lats, lons))) <= found
            assert len(found) <= 30


class TestFinding:
    def test_files_without_a_product_folder(self, tmp_path):
        """The pixels tell the offset, which is taken off; no invented baseline."""
        fake.cogs(tmp_path, SIDE)
        table = run(tmp_path, tmp_path / "out", offset=1000)
        assert table["product"].tolist() == [f"S2_MSIL2A_{fake.DATE}_N0000_{fake.TILE}_{fake.DATE}"]
        dataset = opened(tmp_path / "out", native=True)
        assert dataset.table.offset_s2l2a.tolist() == [0] * 4
        row, column = grid_of("B02", 10)
        expected = fake.optics("B02", SIDE)[row : row + SIZE // 2, column : column + SIZE // 2] - np.uint16(1000)
        np.testing.assert_array_equal(dataset[dataset.tile_slice(0)]["image_s2l2a_10m"][0], expected)

    def test_one_polarization(self, tmp_path):
        fake.rtc(tmp_path, SIDE)
        next(tmp_path.rglob("*_VH.tif")).unlink()
        run(tmp_path, tmp_path / "out")
        dataset = opened(tmp_path / "out", native=True)
        sample = dataset[dataset.tile_slice(0)]
        assert (sample["image_s1rtc_10m"][0] > 0).all()
        assert (sample["image_s1rtc_10m"][1] == -32768).all()

    def test_folders(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["grid", str(tmp_path / "nowhere"), str(tmp_path / "out")])
        assert "nowhere is no folder: give one with Sentinel-1 or Sentinel-2 images" in capsys.readouterr().err
        (tmp_path / "photo.tif").write_bytes(b"")
        with refused(match=r"No scene .* can be used \(1 images, first photo.tif: it cannot be read"):
            run(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_units(self, tmp_path):
        fake.rtc(tmp_path / "named", SIDE)
        fake.rtc(tmp_path / "plain", SIDE, fake.GRD, "dB")
        for name, unit, message in (
            ("named", "watts", "`unit` must be one of .*, got 'watts'"),
            ("named", "dB", "in dB by `unit`, but .*set `unit` to 'linear'"),
            ("plain", "linear", "in linear power by `unit`, but .* negative.*: set `unit` to 'dB'"),
        ):
            with refused(match=message):
                run(tmp_path / name, tmp_path / "out", unit=unit)

    def test_what_cannot_be_gridded(self, tmp_path):
        for band in ("VV", "VH"):
            path = tmp_path / "a" / f"{fake.GRD}_{band}.tif"
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(path, "w", driver="GTiff", height=9, width=9, count=1, dtype="float32") as file:
                file.write(np.full((1, 9, 9), 0.1 if band == "VV" else 0.02, np.float32))
        with refused(match=r"has no place on the ground"):
            run(tmp_path / "a", tmp_path / "out", unit="linear")
        fake.rtc(tmp_path / "b", SIDE)
        path = next((tmp_path / "b").rglob("*_VH.tif"))
        path.write_bytes(path.read_bytes()[:5000])
        with refused(match=rf"1 of 1 scenes are left out, first: Tile {fake.RTC} s1rtc cannot be used"):
            run(tmp_path / "b", tmp_path / "out")
        fake.rtc(tmp_path / "b", SIDE, fake.RTC.replace("4E2A", "0001"))
        with pytest.warns(UserWarning, match="1 of 2 scenes are left out"):
            table = run(tmp_path / "b", tmp_path / "out")
        assert table.cells.tolist() == [1, 0]
        assert not list(tmp_path.rglob("*.tmp"))


def test_command(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main(["grid", str(scenes), str(tmp_path), "--cell_size", str(SIZE), "--workers", "0"])
    shown = capsys.readouterr().out
    lines = [line.replace("│", " ").split() for line in shown.splitlines() if "Sentinel-" in line]
    assert [(line[1], *line[2:4]) for line in lines] == [("RTC", "1", "1"), ("L1C", "1", "1"), ("L2A", "1", "1")]
    assert f"terrafm index {tmp_path}" in shown


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(scenes, root, tmp_path, kills):
    random = np.random.default_rng(kills)
    for i in range(kills):
        out = tmp_path / str(i)
        child = multiprocessing.get_context("fork").Process(target=run, args=(scenes, out))
        child.start()
        while not out.exists():
            time.sleep(0.001)
        time.sleep(random.uniform(0, 2))
        child.kill()
        child.join()
        run(scenes, out)
        for path in root.rglob("*.parquet"):
            assert (out / path.relative_to(root)).read_bytes() == path.read_bytes()
        assert not list(out.rglob("*.tmp"))

import multiprocessing
import pickle
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from datasets.range_server import RangeServer
from datasets.tiny_files import band_pixels, corner_of, product, write_major_tom
from refusals import damaged, refused
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.modalities import S1RTC, S2L2A

FULL, NO_RADAR = "536U_101R", "537U_98R"
X, Y = corner_of(FULL, 32633)
B05 = product("s2l2a", FULL)["bands"]["B05"]
BLACK = {band: 0 * band_pixels("s2l2a", band) for band in S2L2A.bands}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two cells, one without S1; L2A with the offset in the first, L1C without."""
    return write_major_tom(
        tmp_path_factory.mktemp("major_tom"),
        {
            "s2l2a": [product("s2l2a", NO_RADAR), product("s2l2a", FULL, "N0400", "20220601T101031")],
            "s2l1c": [product("s2l1c", FULL, "N0205", "20220601T101031"), product("s2l1c", NO_RADAR)],
            "s1rtc": [product("s1rtc", FULL, date="20220604T050000")],
        },
    )


def tiny(root, **settings):
    return MajorTOM(root, tile_size=12, **settings)


def first(root, **settings):
    dataset = tiny(root, **settings)
    return dataset[dataset.tile_slice(0)]


def test_four_tiles_per_cell_joined_by_grid_cell(root):
    index = tiny(root).index
    assert index.cell.tolist() == [FULL] * 4 + [NO_RADAR] * 4
    assert index.quadrant.tolist() == [0, 1, 2, 3] * 2
    assert index.has_s1rtc.tolist() == [True] * 4 + [False] * 4
    assert index.has_s2l1c.all()
    assert index.has_s2l2a.all()
    assert set(index.epsg) == {32633}
    assert index.index.name == "datetime"
    assert index.index[0] == pd.Interval(pd.Timestamp("2022-06-01 10:10:31"), pd.Timestamp("2022-06-04 05:00"), "both")
    assert index.offset_s2l2a.tolist() == [1000] * 4 + [0] * 4
    assert index.offset_s2l1c.tolist() == [0] * 8


@pytest.mark.parametrize("quadrant", range(4))
def test_native_pixels_are_the_stored_ones_of_the_quarter(root, quadrant):
    dataset = tiny(root, native=True)
    sample = dataset[dataset.tile_slice(quadrant)]
    down, across = divmod(quadrant, 2)
    for modality in dataset.modalities:
        offset = 1000 if modality is S2L2A else 0
        for resolution, bands in modality.native.items():
            size = 120 // resolution
            window = np.s_[down * size : (down + 1) * size, across * size : (across + 1) * size]
            expected = np.stack([band_pixels(modality.name, band)[window] for band in bands]) - offset
            got = sample[modality.native_key(resolution)]
            assert got.dtype == (torch.float32 if modality is S1RTC else torch.uint16)
            np.testing.assert_array_equal(got.numpy(), expected)
    assert sample["transform"].tolist() == pytest.approx([10, 0, X + across * 120, 0, -10, Y - down * 120, 0, 0, 1])
    assert sample["bounds"].tolist()[:6] == pytest.approx(
        [X + across * 120, X + across * 120 + 120, 10, Y - down * 120 - 120, Y - down * 120, 10]
    )
    assert sample["epsg"] == 32633
    assert sample["row"] == quadrant


def test_a_cell_without_a_product_lacks_its_key(root):
    dataset = tiny(root)
    sample = dataset[dataset.tile_slice(4)]
    assert "image_s1rtc" not in sample
    assert sample["image_s2l2a"].shape == (12, 12, 12)
    assert len(tiny(root, modalities=["s1rtc"])) == 4  # tiles with none of the modalities are left out


def test_ten_metres_float_in_the_units_of_the_encoder(root):
    sample = first(root)
    assert {key: value.dtype for key, value in sample.items() if "image" in key} == dict.fromkeys(
        ["image_s1rtc", "image_s2l1c", "image_s2l2a"], torch.float32
    )
    np.testing.assert_allclose(sample["image_s1rtc"][1], 10 * np.log10(band_pixels("s1rtc", "VH")[:12, :12]), rtol=1e-5)
    red = S2L2A.bands.index("B04")
    np.testing.assert_array_equal(sample["image_s2l2a"][red], band_pixels("s2l2a", "B04")[:12, :12] - 1000.0)


def test_footprints_are_those_of_the_pictures(root):
    dataset = tiny(root)
    corners = dataset.index.to_crs(32633).geometry[:4].union_all().bounds
    assert corners == pytest.approx((X, Y - 240, X + 240, Y), abs=1e-6)


def test_offset_is_kept_where_asked(root):
    kept, removed = first(root, harmonize=False), first(root)
    assert torch.equal(kept["image_s2l2a"][1] - 1000, removed["image_s2l2a"][1])
    assert torch.equal(kept["image_s2l1c"], removed["image_s2l1c"])


def test_dark_pixels_stay_valid_and_missing_ones_missing(tmp_path):
    pixels = band_pixels("s2l2a", "B02")
    pixels[0, :3] = [0, 1000, 990]
    write_major_tom(tmp_path, {"s2l2a": [product("s2l2a", FULL, "N0510", pixels={"B02": pixels})]})
    blue = first(tmp_path, native=True)["image_s2l2a_10m"][0, 0]
    assert blue[:3].tolist() == [0, 1, 1]
    assert first(tmp_path)["image_s2l2a"][1, 0, 0].isnan()


def test_an_ambiguous_offset_is_decided_by_the_setting_and_recorded(tmp_path):
    snow = {band: np.full_like(pixels, 6000) for band, pixels in BLACK.items()}
    unclear = product("s2l2a", FULL, "N9999", pixels=snow)
    root = write_major_tom(tmp_path, {"s2l2a": [unclear, product("s2l2a", NO_RADAR)]})
    for setting, said in (("error", r"4 of 8 tiles.*N9999.*ambiguous_offset"), ("maybe", "got 'maybe'")):
        with refused(match=said):
            tiny(root, ambiguous_offset=setting)
    assert tiny(root, ambiguous_offset="present").index.offset_s2l2a.tolist() == [1000] * 4 + [0] * 4
    assert tiny(root, ambiguous_offset="absent").index.offset_s2l2a.tolist() == [0] * 8
    assert tiny(root, ambiguous_offset="drop").index.cell.unique().tolist() == [NO_RADAR]
    assert tiny(root, harmonize=False).index.offset_s2l2a.tolist() == [-1] * 4 + [0] * 4


def test_of_several_rows_the_clearest_then_latest_counts(tmp_path):
    rows = [
        product("s2l2a", FULL, date="20210101T000000", cloud_cover=9.0),
        product("s2l2a", FULL, date="20210201T000000", cloud_cover=2.0),
        product("s2l2a", FULL, date="20210301T000000", cloud_cover=2.0),
        product("s2l2a", FULL, date="20210401T000000", cloud_cover=0.0, nodata=5.0),
    ]
    for order in (rows, rows[::-1]):
        shutil.rmtree(tmp_path / "Core-S2L2A", ignore_errors=True)
        index = tiny(write_major_tom(tmp_path, {"s2l2a": order})).index
        assert len(index) == 4
        assert index.date_s2l2a.iat[0] == pd.Timestamp("2021-03-01")


def test_a_product_in_another_zone_is_left_out(tmp_path):
    rows = {"s2l2a": [product("s2l2a", FULL)], "s1rtc": [product("s1rtc", FULL, epsg=32632)]}
    with pytest.warns(UserWarning, match=r"s1rtc is left out in 1 of 1 cells.*UTM zone"):
        assert [m.name for m in tiny(write_major_tom(tmp_path, rows)).modalities] == ["s2l2a"]


class TestFilesOnDisk:
    @pytest.fixture
    def root(self, tmp_path):
        rows = [product("s2l2a", cell) for cell in ("1U_1R", "1U_2R", FULL)]
        return write_major_tom(tmp_path / "root", {"s2l2a": rows}, url=f"file://{tmp_path}/host/")

    def test_cells_of_absent_parts_are_left_out(self, root):
        (root / "Core-S2L2A/images/part_00001.parquet").unlink()
        assert tiny(root).index.cell.unique().tolist() == [FULL]

    def test_none_at_all_is_said(self, root):
        shutil.rmtree(root / "Core-S2L2A/images")
        with refused(match=r"None of the Parquet files.*`remote`"):
            tiny(root)

    def test_absent_parts_are_read_from_their_url(self, root):
        expected = first(root, native=True)
        shutil.move(root / "Core-S2L2A/images", root.parent / "host")
        got = first(root, native=True, remote=f"file://{root.parent}/host")
        assert all(torch.equal(expected[key], got[key]) for key in expected)

    def test_over_http_a_tile_takes_its_bands_and_the_footer_once(self, tmp_path):
        rows = {"s2l2a": [product("s2l2a", cell) for cell in ("1U_1R", FULL)]}
        with RangeServer(tmp_path / "host") as server:
            root = write_major_tom(tmp_path / "root", rows, url=f"{server.url}/")
            expected = first(root, native=True)
            part = pq.read_metadata(root / "Core-S2L2A/images/part_00001.parquet")
            shutil.move(root / "Core-S2L2A/images", tmp_path / "host")
            dataset = tiny(root, native=True, remote=server.url)
            for row in (0, 1):  # both of the first cell
                got = dataset[dataset.tile_slice(row)]
                if row == 0:
                    assert all(torch.equal(expected[key], got[key]) for key in expected)
        needed = sum(
            part.row_group(0).column(i).total_compressed_size
            for i, name in enumerate(part.schema.names)
            if name == "grid_cell" or name.startswith("B")
        )
        assert server.sent() == 9 + part.serialized_size + 2 * needed

    def test_relative_urls(self, root):
        metadata = root / "Core-S2L2A/metadata.parquet"
        table = pd.read_parquet(metadata)
        table["parquet_url"] = "images/" + table["parquet_url"].str.rsplit("/", n=1).str[1]
        table.to_parquet(metadata)
        assert len(tiny(root)) == 12


class TestBadInput:
    def test_no_root(self, tmp_path):
        for path, said in (
            (tmp_path / "nowhere", r"nowhere is no folder"),
            (tmp_path, "no metadata.parquet in Core-S2L2A"),
        ):
            with refused(match=said):
                MajorTOM(path)

    def test_other_parquet(self, root, tmp_path):
        shutil.copytree(root, tmp_path, dirs_exist_ok=True)
        metadata = tmp_path / "Core-S1RTC/metadata.parquet"
        pd.DataFrame({"a": [1]}).to_parquet(metadata)
        with refused(match=r"lacks grid_cell, product_id"):
            tiny(tmp_path)
        metadata.write_bytes(b"PAR1 cut")
        with refused(match=r"metadata.parquet cannot be read"):
            tiny(tmp_path)

    def test_modalities_that_are_unknown_or_not_there(self, tmp_path):
        write_major_tom(tmp_path, {"s2l2a": [product("s2l2a", FULL)]})
        for name, said in (("s3", "'s3'"), ("s1rtc", r"holds s1rtc, it has s2l2a")):
            with refused(match=said):
                tiny(tmp_path, modalities=[name])

    def test_other_tile_size(self, root):
        with refused(match=r"24 pixels wide.*`tile_size` must be 12, got 534"):
            MajorTOM(root)
        with refused(match=r"multiple of 6.*got 100"):
            MajorTOM(root, tile_size=100)

    @pytest.mark.parametrize(
        ("quadrant", "changes", "b05", "message"),
        [
            (1, {"pixels": BLACK}, B05, "it holds only nodata"),
            (1, {"pixels": {"B8A": BLACK["B8A"]}}, B05, "band B8A holds only nodata"),
            (1, {"pixels": {"B02": BLACK["B05"]}}, B05, "band B02: it is 12 x 12 pixels, expected 24 x 24"),
            (0, {"corner": (X + 340, Y)}, B05, "band B02: its corner lies 340 m from the cell's"),
            (3, {}, B05[: len(B05) * 9 // 10], "band B05: "),
            (3, {}, B05[: len(B05) // 50], "band B05: "),
            (0, {}, None, "band B05 is missing"),
        ],
    )
    def test_damaged_optics(self, tmp_path, quadrant, changes, b05, message):
        broken = product("s2l2a", FULL, **changes)
        if b05 != B05:
            broken["bands"]["B05"] = b05
        dataset = tiny(write_major_tom(tmp_path, {"s2l2a": [product("s2l2a", "1U_1R"), broken]}))
        with damaged(match=rf"Tile {FULL}/{quadrant} s2l2a cannot be used: {message}"):
            dataset[dataset.tile_slice(4 + quadrant)]

    def test_a_band_that_the_whole_file_lacks(self, tmp_path):
        broken = product("s2l2a", FULL)
        del broken["bands"]["B05"]
        write_major_tom(tmp_path, {"s2l2a": [broken]})
        sample, bands = first(tmp_path, native=True), S2L2A.bands
        assert [band for band, there in zip(bands, sample["bands_s2l2a"], strict=True) if not there] == ["B05"]
        assert (sample["image_s2l2a_20m"].int()[0] == 0).all()
        assert (sample["image_s2l2a_20m"].int()[1:] > 0).all()

    @pytest.mark.parametrize("declared", [{}, {"tiff_nodata": np.nan}])
    def test_nan_is_missing_declared_or_not(self, tmp_path, declared):
        pixels = band_pixels("s1rtc", "VV")
        pixels[3, 4] = np.nan
        write_major_tom(tmp_path, {"s1rtc": [product("s1rtc", FULL, pixels={"vv": pixels}, **declared)]})
        assert first(tmp_path)["image_s1rtc"][0].isnan().nonzero().tolist() == [[3, 4]]

    def test_swath_edge(self, tmp_path):
        pixels = band_pixels("s1rtc", "VV")
        pixels[:, 5:7] = [-32768, 0]
        write_major_tom(tmp_path, {"s1rtc": [product("s1rtc", FULL, pixels={"vv": pixels})]})
        missing = first(tmp_path)["image_s1rtc"][0].isnan()
        assert missing.any(dim=0).nonzero().flatten().tolist() == [5, 6]
        assert (first(tmp_path, native=True)["image_s1rtc_10m"][0, :, 5:7] == -32768).all()

    def test_row_group_of_another_cell(self, root, tmp_path):
        shutil.copytree(root, tmp_path, dirs_exist_ok=True)
        metadata = tmp_path / "Core-S2L2A/metadata.parquet"
        table = pd.read_parquet(metadata)
        table.assign(parquet_row=table.parquet_row[::-1].to_numpy()).to_parquet(metadata)
        with damaged(match=rf"row group holds cell {NO_RADAR}"):
            first(tmp_path)
        table.assign(parquet_row=7).to_parquet(metadata)
        with damaged(match=r"row group 7 of Core-S2L2A.*no 7"):
            first(tmp_path)


def _read_in_worker(dataset, row, queue):
    queue.put({key: value.numpy() for key, value in dataset[dataset.tile_slice(row)].items()})


def test_workers_open_files_of_their_own(root):
    dataset = tiny(root, native=True)
    expected = dataset[dataset.tile_slice(1)]  # the parent's handles are open now
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_read_in_worker, args=(dataset, 1, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for got in [*(queue.get() for _ in workers), dataset[dataset.tile_slice(1)]]:
        assert all(np.array_equal(expected[key], got[key]) for key in expected)
    for worker in workers:
        worker.join()


def test_a_pickled_dataset_reads_the_same(root):
    dataset = tiny(root)
    query = dataset.tile_slice(2, position=5, epoch=1)
    again = pickle.loads(pickle.dumps(dataset))[pickle.loads(pickle.dumps(query))]
    assert all(torch.equal(value, again[key]) for key, value in dataset[query].items())


class TestPublishedCells:
    """The two whole cells of Major-TOM Core-S2L2A."""

    @pytest.fixture(scope="class")
    def root(self, real_data):
        return real_data / "major_tom"

    def test_pixels_and_place_are_the_files(self, root):
        dataset = MajorTOM(root, ambiguous_offset="absent", native=True)
        part = pq.ParquetFile(root / "Core-S2L2A/images/part_00001.parquet")
        for row in range(len(dataset)):
            sample = dataset[dataset.tile_slice(row)]
            stored = part.read_row_group(row // 4, ["B04", "B09"])
            down, across = divmod(row % 4, 2)
            for band, key, channel, size in (("B04", "10m", 2, 534), ("B09", "60m", 1, 89)):
                with rasterio.MemoryFile(stored[band][0].as_py()) as memory, memory.open() as src:
                    window = rasterio.windows.Window(across * size, down * size, size, size)
                    expected, transform = (src.read(1, window=window).astype(np.int64), src.window_transform(window))
                if row < 4:  # N0400
                    expected = np.maximum(expected - 1000, 1)
                np.testing.assert_array_equal(sample[f"image_s2l2a_{key}"][channel].numpy(), expected)
            assert (sample["transform"][2], sample["transform"][5]) == pytest.approx(
                (transform.c, transform.f), abs=1e-6
            )

    def test_offsets_are_recorded(self, root):
        index = MajorTOM(root, ambiguous_offset="absent").index
        assert index.groupby("cell").offset_s2l2a.unique().map(list).to_dict() == {"0U_199R": [1000], "199U_1099R": [0]}
        index = MajorTOM(root).index  # and without the setting, by the pixels
        assert index.groupby("cell").offset_s2l2a.unique().map(list).to_dict() == {"0U_199R": [1000], "199U_1099R": [0]}
        assert index.groupby("cell").proof_s2l2a.nunique().to_dict() == {"0U_199R": 0, "199U_1099R": 1}


def test_tiles_read_together_are_the_tiles_read_alone(root):
    dataset = tiny(root, native=True)
    for row in range(len(dataset)):
        for modality in (m for m in dataset.modalities if dataset.index[f"has_{m.name}"].iat[row]):
            together = dataset._read_together(row, modality)
            assert len(together) == 4
            for other, groups in together.items():
                for resolution, pixels in dataset._read(other, modality).items():
                    np.testing.assert_array_equal(groups[resolution], pixels)

"""Packing: what is stored, how it is cut into shards, what a second run does, and what a wrong one says."""

import logging
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from packing_checks import CELLS, digests, same_pixels, source, stored, write_root
from tiny_files import band_pixels, product

from terrafm_tg.datasets import PackedTiles
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.store.plan import plan_shards
from terrafm_tg.datasets.store.shards import shard_table
from terrafm_tg.datasets.tiles.index_file import read_index
from terrafm_tg.datasets.tiles.table import with_categories
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A

QUIET = {"workers": 0, "progress": False}
ONE_CELL = 0.004  # MB: less than two cells of any modality
PLACES = ("shard", "start", "bytes", "xxh3", "layout", "source")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("source") / "root")


@pytest.fixture(scope="module")
def store(root, tmp_path_factory):
    """The root, packed with all defaults."""
    out = tmp_path_factory.mktemp("packed") / "store"
    pack(source(root), out, **QUIET)
    return out


class TestStore:
    def test_pixels_are_the_sources_bit_for_bit(self, root, store):
        same_pixels(store, source(root))

    def test_the_offset_of_the_baseline_is_recorded_and_stays_in_the_numbers(self, store):
        table = read_index(store / "index.parquet")[0]
        assert table["offset_s2l2a"].tolist() == [1000] * 4 + [0] * 16
        expected = band_pixels("s2l2a", "B02")[:12, :12]
        np.testing.assert_array_equal(stored(store, 0, S2L2A)[10][0], expected)

    def test_index_has_the_sources_columns_and_where_pixels_lie(self, root, store):
        table, made_for = read_index(store / "index.parquet")
        tiles = source(root).table
        assert set(table) == set(tiles) | {f"{column}_{name}" for column in PLACES for name in MODALITIES}
        shared = ["cell", "quadrant", "epsg", "has_s1rtc", "product_s2l2a", "group_s2l1c", "xmin", "datetime_stop"]
        pd.testing.assert_frame_equal(
            table[shared].astype({"cell": str}), tiles[shared].astype({"cell": str}), check_dtype=False,
            check_categorical=False,
        )  # fmt: skip
        assert made_for["tile_size"] == 12

    def test_a_shard_holds_whole_cells_of_one_part_in_their_order(self, root, tmp_path):
        pack(source(root), tmp_path / "store", shard_mb=ONE_CELL, **QUIET)
        table = read_index(tmp_path / "store/index.parquet")[0]
        for name in MODALITIES:
            held = table[table[f"has_{name}"]]
            by_shard = held.groupby(f"shard_{name}", observed=True)
            assert (by_shard[f"part_{name}"].nunique() == 1).all()
            assert (by_shard.size() == 4).all()
            for shard, rows in by_shard:
                content = shard_table(tmp_path / "store" / str(shard))
                assert content["cell"].tolist() == rows["cell"].tolist()
                assert content["quadrant"].tolist() == rows["quadrant"].tolist() == [0, 1, 2, 3]

    def test_only_some_modalities(self, root, tmp_path):
        pack(source(root, modalities=["s2l2a"]), tmp_path / "store", **QUIET)
        table = read_index(tmp_path / "store/index.parquet")[0]
        assert not [column for column in table if "s1rtc" in column or "s2l1c" in column]
        assert (table["datetime_start"] == table["date_s2l2a"]).all()

    def test_report(self, root, tmp_path):
        report = pack(source(root), tmp_path / "store", **QUIET)
        radar = report.counts.loc["s1rtc"]
        assert (report.tiles, report.cells, radar.tiles, radar.damaged) == (20, 5, 16, 0)
        assert radar.bytes == sum(file.stat().st_size for file in (tmp_path / "store/s1rtc").iterdir())


class TestRadar:
    def test_hundredths_of_a_decibel_by_choice(self, root, tmp_path):
        pack(source(root), tmp_path / "store", quantize_radar=True, **QUIET)
        tiles, copy = source(root), PackedTiles(tmp_path / "store", native=True)
        for row in (0, 7):
            steps, power = stored(tmp_path / "store", row, S1RTC)[10], tiles._read(row, S1RTC)[10]
            assert steps.dtype == np.int16
            sample = copy[copy.tile_slice(row)]["image_s1rtc_10m"].numpy()
            np.testing.assert_array_equal(sample, steps, strict=True)
            assert np.abs(steps / 100 - 10 * np.log10(power.astype(float))).max() <= 0.005 + 1e-9
        np.testing.assert_array_equal(stored(tmp_path / "store", 0, S2L2A)[20], tiles._read(0, S2L2A)[20])

    def test_missing_pixels_stay_missing(self, tmp_path):
        pixels = band_pixels("s1rtc", "VV")
        pixels[:3] = -32768
        root = write_root(tmp_path / "root", s1rtc=[product("s1rtc", CELLS[0], pixels={"vv": pixels})])
        for quantize in (False, True):
            out = tmp_path / f"store_{quantize}"
            pack(source(root), out, quantize_radar=quantize, **QUIET)
            group = stored(out, 0, S1RTC)[10]
            np.testing.assert_array_equal(group[0] == -32768, np.arange(12)[:, None].repeat(12, 1) < 3)
            assert (group[1] != -32768).all()


class TestAgain:
    def test_a_second_run_writes_no_shard(self, root, store):
        before, times = digests(store), {f: f.stat().st_mtime_ns for f in store.rglob("*.arrow")}
        report = pack(source(root), store, **QUIET)
        assert digests(store) == before
        assert {f: f.stat().st_mtime_ns for f in store.rglob("*.arrow")} == times
        assert report.counts.loc["s2l2a", ["tiles", "before"]].tolist() == [0, 20]

    def test_parts_that_come_later_write_only_their_shards(self, root, store, tmp_path):
        small = write_root(tmp_path / "root", CELLS[:2])
        pack(source(small), tmp_path / "store", **QUIET)
        first = {f: f.stat().st_mtime_ns for f in (tmp_path / "store").rglob("*.arrow")}
        shutil.rmtree(small)
        write_root(small)
        pack(source(small), tmp_path / "store", **QUIET)
        assert digests(tmp_path / "store") == digests(store)
        assert {f: f.stat().st_mtime_ns for f in first} == first

    def test_what_the_source_has_no_more_stays(self, tmp_path, root):
        """Modality by modality and part by part, each deleted once it is packed: as if all had been there.

        So it is where the index is brought up to date with the last part only, whatever the earlier runs were.
        """
        here, out, log = tmp_path / "root", tmp_path / "store", tmp_path / "log"
        parts = [
            (folder, part)
            for folder in ("Core-S2L1C", "Core-S1RTC", "Core-S2L2A")
            for part in sorted((root / folder / "images").iterdir())
        ]
        for number, (folder, part) in enumerate(parts):
            shutil.rmtree(here, ignore_errors=True)
            (here / folder / "images").mkdir(parents=True)
            shutil.copy(root / folder / "metadata.parquet", here / folder)
            shutil.copy(part, here / folder / "images")
            pack(source(here), out, **QUIET)
            pack(source(here), log, merge=number in (1, len(parts) - 1), **QUIET)
        assert digests(log) == digests(out)
        same_pixels(out, source(root))
        whole = tmp_path / "whole"
        pack(source(root), whole, **QUIET)
        columns = ["cell", "quadrant", "datetime_start", "datetime_stop", "product_s1rtc", "xxh3_s2l2a", "offset_s2l2a"]
        tables = [with_categories(read_index(out / "index.parquet")[0])[columns] for out in (tmp_path / "store", whole)]
        pd.testing.assert_frame_equal(*tables)

    def test_a_part_takes_as_many_operations_however_large_the_store_is(self, tmp_path, caplog):
        """No run but the last opens a file of another; a store whose log is not in its index says so."""
        out, opened, watching = tmp_path / "store", list[list[str]](), []

        def watch(event, arguments):
            if (
                watching
                and event in ("open", "os.rename", "os.listdir", "os.scandir")
                and str(out) in str(arguments[0])
            ):
                opened[-1].append(str(arguments[0]))

        sys.addaudithook(watch)
        cells = [f"{row}U_101R" for row in range(536, 543)]
        for number, cell in enumerate(cells):
            tiles = source(write_root(tmp_path / cell, [cell]))
            opened.append([])
            watching.append(True)
            report = pack(tiles, out, merge=number == 0, **QUIET)
            watching.clear()
        assert not report.merged
        assert len({len(names) for names in opened[2:]}) == 1
        assert not [name for names in opened[1:] for name in names if name.startswith(str(out / "index.parquet"))]
        assert len(PackedTiles(out)) == 4
        assert "pack its last part with --merge true" in caplog.text
        assert pack(tiles, out, **QUIET).tiles == 4 * len(cells)
        assert not (out / "log").exists()

    def test_the_latest_of_two_runs_counts(self, tmp_path):
        """A part that was replaced between two runs that left the index as it was."""
        root, out = write_root(tmp_path / "root", CELLS[:2]), tmp_path / "store"
        for value in (6000, 7000):
            pixels = np.full((24, 24), value, np.uint16)
            pixels[0, 0] = 5000
            write_root(root, CELLS[:2], s2l2a=[product("s2l2a", c, "N0301", pixels={"B02": pixels}) for c in CELLS[:2]])
            pack(source(root), out, merge=False, **QUIET)
        path = max((out / "log").iterdir())
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(TerraFMError, match="is damaged: remove it, and pack the part again"):
            pack(source(root), out, **QUIET)
        path.write_bytes(content)
        pack(source(root), out, **QUIET)
        same_pixels(out, source(root))
        pack(source(root), tmp_path / "once", **QUIET)
        assert digests(out) == digests(tmp_path / "once")

    def test_a_replaced_part_replaces_its_shards(self, tmp_path):
        root, out = write_root(tmp_path / "root", CELLS[:2]), tmp_path / "store"
        pack(source(root), out, **QUIET)
        before = digests(out)
        bright = np.full((24, 24), 6000, np.uint16)
        bright[0, 0] = 5000
        products = [product("s2l2a", cell, "N0301", pixels={"B02": bright}) for cell in CELLS[:2]]
        write_root(root, CELLS[:2], s2l2a=products)
        pack(source(root), out, **QUIET)
        assert len(digests(out)) == len(before)
        assert {
            name: digest for name, digest in digests(out).items() if "s2l2a" not in name and "index" not in name
        } == {name: digest for name, digest in before.items() if "s2l2a" not in name and "index" not in name}
        same_pixels(out, source(root))

    def test_an_index_that_was_lost_comes_back_and_no_shard_goes(self, tmp_path):
        roots = [write_root(tmp_path / name, cells) for name, cells in (("a", CELLS[:1]), ("b", CELLS[1:2]))]
        out = tmp_path / "store"
        for root in roots:
            pack(source(root), out, **QUIET)
        before = digests(out)
        for name in ("index.parquet", "index.parquet.xxh128"):
            (out / name).unlink()
        pack(source(roots[0]), out, **QUIET)
        written = {path: path.stat().st_mtime_ns for path in out.glob("*/*.arrow")}
        pack(source(roots[1]), out, **QUIET)
        assert digests(out) == before
        assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.arrow")} == written

    def test_a_shard_that_was_deleted_is_written_again(self, root, store, tmp_path):
        out = tmp_path / "store"
        shutil.copytree(store, out)
        next((out / "s2l1c").iterdir()).unlink()
        pack(source(root), out, **QUIET)
        assert digests(out) == digests(store)


class TestDamaged:
    @pytest.fixture
    def root(self, tmp_path):
        """A truncated TIFF, a missing band, a quarter without data, and a cell whose row group holds another."""
        black = band_pixels("s2l1c", "B08")
        black[:12, 12:] = 0
        rows = [product("s2l2a", cell) for cell in CELLS]
        rows[1]["bands"]["B04"] = rows[1]["bands"]["B04"][:700]
        rows[3]["bands"]["B11"] = None
        return write_root(
            tmp_path / "root",
            s2l2a=rows,
            s2l1c=[product("s2l1c", CELLS[0], pixels={"B08": black}), *(product("s2l1c", c) for c in CELLS[1:])],
        )

    def test_they_cost_themselves_only_and_are_named_once(self, root, tmp_path, caplog):
        out = tmp_path / "store"
        with caplog.at_level(logging.WARNING):
            report = pack(source(root), out, **QUIET)
        assert report.counts["damaged"].to_dict() == {"s1rtc": 0, "s2l1c": 1, "s2l2a": 8}
        table = read_index(out / "index.parquet")[0]
        assert table.loc[~table["has_s2l2a"], "cell"].unique().tolist() == [CELLS[1], CELLS[3]]
        assert table.loc[~table["has_s2l1c"], ["cell", "quadrant"]].to_numpy().tolist() == [[CELLS[0], 1]]
        listed = pd.read_csv(out / "damaged.csv")
        assert listed["reason"].str.extract("band (B..)")[0].value_counts().to_dict() == {"B04": 4, "B11": 4, "B08": 1}
        assert listed.iloc[0][["modality", "tile", "file", "row_group"]].tolist() == [
            "s2l1c", f"{CELLS[0]}/1", "Core-S2L1C/images/part_00001.parquet", 0,
        ]  # fmt: skip
        assert len(caplog.messages) == len(set(caplog.messages)) == 9
        assert f"Tile {CELLS[0]}/1 s2l1c cannot be used: band B08 holds only nodata." in caplog.messages

    def test_a_second_run_does_not_try_them_again(self, root, tmp_path, caplog):
        pack(source(root), tmp_path / "store", **QUIET)
        before = digests(tmp_path / "store")
        caplog.clear()
        pack(source(root), tmp_path / "store", **QUIET)
        assert digests(tmp_path / "store") == before
        assert not caplog.messages

    def test_repaired_files_are_packed(self, root, tmp_path):
        pack(source(root), tmp_path / "store", **QUIET)
        shutil.rmtree(root)
        write_root(root)
        pack(source(root), tmp_path / "store", **QUIET)
        same_pixels(tmp_path / "store", source(root))
        assert not (tmp_path / "store/damaged.csv").exists()

    def test_too_many_end_the_run(self, root, tmp_path):
        with pytest.raises(TerraFMError, match="1 of 56 tiles to pack are damaged, and `max_damaged_share` is 0"):
            pack(source(root), tmp_path / "none", max_damaged_share=0, **QUIET)
        rows = [product("s2l2a", cell) for cell in CELLS]
        for row in rows[:3]:
            row["bands"]["B05"] = None
        write_root(root, s2l2a=rows)
        with pytest.raises(TerraFMError, match=r"10 of 56 tiles .* 0.05: get the files .* again, or raise it"):
            pack(source(root), tmp_path / "store", **QUIET)
        assert not (tmp_path / "store/index.parquet").exists()
        report = pack(source(root), tmp_path / "store", max_damaged_share=0.3, **QUIET)
        assert report.counts.at["s2l2a", "damaged"] == 12


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("root/store", "lie in each other: name a folder beside the source"),
        (".", "lie in each other"),
        ("file", "is a file: name a folder for the store"),
        ("other", "is no packed store and not empty: name another folder"),
    ],
)
def test_a_place_that_cannot_be_a_store(tmp_path, root, where, message):
    here = tmp_path / "root"
    shutil.copytree(root, here)
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(TerraFMError, match=message):
        pack(source(here), tmp_path / where, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "root"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_other_settings_than_the_stores_are_named(root, store):
    before = digests(store)
    with pytest.raises(TerraFMError, match="quantize_radar=False, not True: set that, or name another folder"):
        pack(source(root), store, quantize_radar=True, **QUIET)
    with pytest.raises(TerraFMError, match="`shard_mb` is 0"):
        pack(source(root), store, shard_mb=0, **QUIET)
    assert digests(store) == before


def test_units_of_a_million_tiles() -> None:
    """Each tile once, in the order of its part, at most so many together, and the same when a part comes later."""
    tiles, limit = 1_000_000, 160
    part = np.arange(tiles) // 2000
    table = pd.DataFrame({
        "part_s1rtc": pd.Categorical([f"images/part_{i:05}.parquet" for i in range(part.max() + 1)])[part],
        "group_s1rtc": np.random.default_rng(0).permutation(500)[np.arange(tiles) // 4 % 500],
    })  # fmt: skip
    names, todo = np.arange(1, tiles + 1, dtype=np.uint64), part > 0
    units = list(plan_shards(table, S1RTC, names, todo, limit))
    rows = np.concatenate([unit.rows for unit in units])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(todo))
    for unit in units:
        assert len(np.unique(part[unit.rows])) == 1
        assert (np.diff(table["group_s1rtc"].to_numpy()[unit.rows]) >= 0).all()
        assert len(unit.rows) <= limit
        assert len(unit.rows) % 4 == 0
    later = list(plan_shards(table, S1RTC, names, np.ones(tiles, bool), limit))
    assert len({unit.name for unit in later}) == len(later)
    assert {unit.name for unit in units} < {unit.name for unit in later}

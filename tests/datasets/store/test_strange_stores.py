"""Stores, indexes and records of a stranger, whose checksums are right: one sentence each, bounded memory."""

import shutil
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from numcodecs import blosc
from packing_checks import CELLS, source, write_root

from refusals import damaged, refused
from terrafm_tg.datasets import MajorTOM, PackedTiles, build_index
from terrafm_tg.datasets.majortom import part_files
from terrafm_tg.datasets.majortom.part_files import PartFiles
from terrafm_tg.datasets.store.folder import SUM, _line
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.store.shards import decode, encode, make_row, most_bytes, write_shard
from terrafm_tg.datasets.tiles.index_file import NAME, read_index
from terrafm_tg.modalities import S1RTC, S2L2A
from terrafm_tg.utils.trust import open_image

QUIET = {"workers": 0, "progress": False}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A Major-TOM root with its index, and a store of it."""
    base = tmp_path_factory.mktemp("strange")
    build_index(write_root(base / "root", CELLS[:2]), tile_size=12, **QUIET)
    pack(source(base / "root"), base / "store", **QUIET)
    return base


def column(name, make):
    """Another column in the place of one of that name."""

    def change(table: pa.Table) -> pa.Table:
        old = table[name]
        return table.set_column(table.column_names.index(name), name, make(old))

    return change


def each(value, kind=None):
    return lambda old: pa.array([value] * len(old), kind)


def settings(text):
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, b"terrafm": text})


#: What a stranger's index holds, and the column or the words that the refusal names.
STRANGE = {
    "layout is a list": (column("layout_s2l2a", each([1, 2])), "layout_s2l2a"),
    "layout is a number": (column("layout_s2l2a", each(3)), "layout_s2l2a holds int64, expected text"),
    "layout is absent": (column("layout_s2l2a", each(None, pa.string())), "layout_s2l2a says nothing of row 0"),
    "start is negative": (column("start_s2l2a", each(-5)), "start_s2l2a holds .*-5"),
    "start is text": (column("start_s2l2a", each("0")), "start_s2l2a holds string"),
    "size is negative": (column("bytes_s2l2a", each(-7, pa.int32())), "bytes_s2l2a holds .*-7"),
    "size is 5.9 TiB": (column("bytes_s2l2a", each(6_487_119_813_017)), "bytes_s2l2a holds .*64871"),
    "start is a fraction": (column("start_s2l2a", each(1.5)), "start_s2l2a holds double"),
    "no shard": (column("shard_s2l2a", each(None, pa.string())), "shard_s2l2a says nothing"),
    "shard with NUL": (column("shard_s2l2a", each("s2l2a/a\0.arrow")), "was not opened"),
    "checksum is text": (column("xxh3_s2l2a", each("ff")), "xxh3_s2l2a holds string"),
    "no such column": (lambda table: table.drop_columns("start_s2l2a"), "start_s2l2a is missing"),
    "no flags": (lambda table: table.drop_columns("has_s2l2a"), "without has_s2l2a"),
    "flag is a number": (column("has_s2l2a", each(1)), "has_s2l2a holds int64, expected true or false"),
    "flag is absent": (column("has_s2l2a", each(None, pa.bool_())), "has_s2l2a holds .*expected true"),
    "no cell": (column("cell", each("home")), "cell holds 'home'"),
    "cell is absent": (column("cell", each(None, pa.string())), "cell holds"),
    "nested cell": (column("cell", each({"a": {"b": 1}})), "no tile index|cell holds struct"),
    "NaN offset": (column("offset_s2l2a", each(float("nan"))), "offset_s2l2a holds double"),
    "time is text": (column("datetime_start", each("now")), "datetime_start holds string"),
    "no place on earth": (column("epsg", each(9999, pa.int32())), "epsg holds 9999"),
    "corner is NaN": (column("x", each(float("nan"))), "column x holds 'nan'"),
    "two of a name": (lambda table: table.append_column("cell", table["cell"]), "no tile index of ours"),
    "settings are a list": (settings(b"[1]"), "settings are"),
    "settings are deep": (settings(b"[" * 100_000), "nested too deep"),
    "settings are no JSON": (settings(b"\xff{"), "cannot be read"),
    "tile size is text": (settings(b'{"format": 1, "tile_size": "12"}'), "tile_size"),
    "no tile size": (settings(b'{"format": 1}'), "tile_size"),
    "tile size is huge": (settings(b'{"format": 1, "tile_size": 6000000}'), "tile_size"),
    "empty": (lambda table: table.slice(0, 0), "cannot be read|No tile"),
}  # fmt: skip


def rewrite(folder, change):
    """The index of a root or store as a stranger made it, with its checksum."""
    path = folder / NAME
    table = pq.read_table(path)
    pq.write_table(change(table), path, store_schema=True)
    if (folder / SUM).is_file():
        (folder / SUM).write_text(_line(path))


@pytest.mark.parametrize(("change", "words"), STRANGE.values(), ids=list(STRANGE))
def test_a_strange_index_of_a_store_is_one_sentence(change, words, stores, tmp_path):
    store = shutil.copytree(stores / "store", tmp_path / "store")
    rewrite(store, change)
    for use in (lambda: PackedTiles(store), lambda: pack(source(stores / "root"), store, **QUIET)):
        with refused(match=words) as said:
            use()
        assert "\n" not in str(said.value)
        assert "delete" not in str(said.value)


OF_ANY = ("no flags", "no cell", "nested cell", "NaN offset", "corner is NaN", "two of a name", "settings are a list")


@pytest.mark.parametrize("name", [*OF_ANY, "settings are deep", "empty", "start is a fraction"])
def test_a_strange_index_of_a_root_is_one_sentence_and_is_made_anew(name, stores, tmp_path):
    change, _ = STRANGE[name]
    if name == "start is a fraction":
        change = column("group_s2l2a", each(0.5))
    root = shutil.copytree(stores / "root", tmp_path / "root")
    expected = (root / NAME).read_bytes()
    rewrite(root, change)
    with refused(match="again"):
        MajorTOM(root, tile_size=12)
    build_index(root, tile_size=12, **QUIET)
    assert (root / NAME).read_bytes() == expected


def test_rows_that_come_twice_are_read_and_packed_once(stores, tmp_path):
    store = shutil.copytree(stores / "store", tmp_path / "store")
    rewrite(store, lambda table: pa.concat_tables([table, table]))
    assert len(PackedTiles(store)) == 16
    pack(source(stores / "root"), store, **QUIET)
    assert len(PackedTiles(store)) == 8


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, "\0", '{"format": [1]}', "\udcff"])
def test_strange_settings_of_a_store_are_one_sentence(text, stores, tmp_path):
    store = shutil.copytree(stores / "store", tmp_path / "store")
    (store / "store.json").write_text(text, errors="surrogateescape")
    with refused(match=r"store\.json cannot be read|was made with format"):
        pack(source(stores / "root"), store, **QUIET)


def test_a_small_index_that_declares_much_takes_no_memory(stores, tmp_path):
    table = pq.read_table(stores / "root" / NAME)
    text = pa.array(["x" * (8 << 20)] * len(table), pa.string())
    path = tmp_path / NAME
    pq.write_table(
        table.append_column("note", text), path, compression="zstd", use_dictionary=False, write_statistics=False
    )
    assert path.stat().st_size < 1e5
    before = pa.default_memory_pool().max_memory()
    with refused(match=r"declares \d+ MB of values, expected \d+ at most"):
        read_index(path)
    repeated = pa.array(["x" * (8 << 20)]).take(pa.array([0] * len(table)))
    pq.write_table(table.append_column("note", repeated), path, compression="zstd")
    assert read_index(path)[0]["note"].str.len().eq(8 << 20).all()  # one name, not one per row
    assert pa.default_memory_pool().max_memory() == before


def test_a_small_part_that_declares_much_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "_MOST_ROW", 1 << 20)
    path, band = tmp_path / "part.parquet", pa.array([bytes(3 << 20)], pa.binary())
    pq.write_table(pa.table({"B02": band}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1e5
    with pytest.raises(OSError, match=r"declares 3 MB of values, expected 1 at most"):
        PartFiles().read(str(path), 0, ["B02"])
    pq.write_table(pa.table({"B02": [b"1", b"2"]}), path)
    for group, words in ((0, "has 2 rows, expected 1"), (-1, "1 row groups, no -1")):
        with pytest.raises(OSError, match=words):
            PartFiles().read(str(path), group, ["B02"])


def test_an_image_of_huge_blocks_is_not_read(tmp_path):
    block = 1 << 14
    size = {"width": 8, "height": 8, "tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(tmp_path / "x.tif", "w", "GTiff", count=1, dtype="uint8", sparse_ok=True, **size):
        pass
    with (
        pytest.raises(rasterio.errors.RasterioIOError, match="268 million pixels, expected 134"),
        open_image(tmp_path / "x.tif"),
    ):
        pass


def frames(*groups):
    return b"".join(blosc.compress(group, b"lz4hc", 1, blosc.SHUFFLE) for group in groups)


def filled(shape, kind, byte):
    return np.full(np.prod(shape) * np.dtype(kind).itemsize, byte, np.uint8).view(kind).reshape(shape)


class TestRecords:
    PIXELS = np.arange(1, 289, dtype=np.float32).reshape(2, 12, 12)

    @pytest.mark.parametrize(
        "layout",
        ["", "float32", "object 2x12x12", "float64 2x12x12", "float32 3x12x12", "float32 2x12", "float32 2x-12x12",
         "float32 2x12x12 2x6x6", "float32 2x9000x9000", "float32 2x999999x999999", "float32  2x12x12", "nan",
         "float32 2x12x12\n", "float32 2x1٢x12", "float32 2x0x12"],
    )  # fmt: skip
    def test_a_layout_that_no_tile_has_takes_no_memory(self, layout, monkeypatch):
        monkeypatch.setattr(np, "empty", None)
        for use in (lambda: decode(frames(self.PIXELS), S1RTC, layout), lambda: most_bytes(S1RTC, layout)):
            with pytest.raises(ValueError, match="its layout is"):
                use()

    def test_memory_that_was_not_written_is_no_pixel(self):
        whole = frames(self.PIXELS)
        lying = bytearray(whole)
        struct.pack_into("<I", lying, 4, 4 * 288 - 4)
        longer = bytearray(whole)
        struct.pack_into("<I", longer, 12, len(whole) + 1)
        short = frames(self.PIXELS[:, :6].copy())
        for data in (short, bytes(lying), bytes(longer), whole[:-1], whole[:10], b"", whole + b"x"):
            with pytest.raises(ValueError, match=r"a frame declares|bytes follow"):
                decode(data, S1RTC, "float32 2x12x12")

    @pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.soak)])
    def test_pixels_never_depend_on_what_lay_in_memory(self, count, monkeypatch):
        """Random damages to records whose checksums a stranger would set right."""
        rng, empty, seen = np.random.default_rng(7), np.empty, []
        groups = {10: rng.integers(1, 9000, (4, 12, 12), np.uint16), 20: rng.integers(1, 9000, (6, 6, 6), np.uint16),
                  60: rng.integers(1, 9000, (2, 2, 2), np.uint16)}  # fmt: skip
        record, layout = encode(groups, S2L2A)
        for _ in range(count):
            data = bytearray(record)
            for place in rng.integers(len(data) if rng.random() < 0.5 else 24, size=rng.integers(1, 4)):
                data[place] = rng.integers(256)
            results = []
            for byte in (0x00, 0xA5):
                monkeypatch.setattr(np, "empty", lambda shape, kind, byte=byte: filled(shape, kind, byte))
                try:
                    results.append(b"".join(group.tobytes() for group in decode(bytes(data), S2L2A, layout).values()))
                except ValueError as error:
                    results.append(str(error))
            monkeypatch.setattr(np, "empty", empty)
            assert results[0] == results[1]
            seen.append(isinstance(results[0], str))
        assert 0.1 < np.mean(seen) < 1

    def test_the_dataset_names_the_tile(self, stores, tmp_path):
        tiles = PackedTiles(stores / "store", ["s1rtc"])
        row = make_row(tiles.table["cell"].iat[0], 0, S1RTC, {10: self.PIXELS[:, :6]})
        shard = tiles.table["shard_s1rtc"].iat[0]
        (tmp_path / shard).parent.mkdir(parents=True)
        (tmp_path / shard).write_bytes(row["data"])
        for layout, size, words in (
            ("float32 2x12x12", len(row["data"]), "checksum"),
            (row["layout"], 2**31 - 1, "more than"),
            ("object 2x2x2", 10, "its layout is"),
        ):
            table = tiles.table.assign(layout_s1rtc=layout, bytes_s1rtc=size, start_s1rtc=0, xxh3_s1rtc=row["xxh3"])
            changed = PackedTiles(stores / "store", ["s1rtc"], index=table)
            changed.root = str(tmp_path)
            with damaged(match=words):
                changed[changed.tile_slice(0)]


def test_a_strange_list_of_damaged_tiles_and_shard_are_one_sentence(stores, tmp_path):
    store = shutil.copytree(stores / "store", tmp_path / "store")
    columns = ["modality", "tile", "file", "row_group", "reason", "source"]
    for values in (["s2l2a", "a", "b", "0", "c", "xyz"], ["s3", "a", "b", "0", "c", "0" * 16]):
        pd.DataFrame([values], columns=columns).to_csv(store / "damaged.csv", index=False)
        with refused(match="is no list of damaged tiles"):
            pack(source(stores / "root"), store, **QUIET)
    (store / "damaged.csv").unlink()
    shards = sorted((store / "s2l2a").iterdir())
    write_shard(shards[0], S2L2A, [make_row("1U_1R", 0, S2L2A, None, "of another cell")])
    for name in (NAME, SUM):
        (store / name).unlink()
    with refused(match="other tiles than its name says"):
        pack(source(stores / "root"), store, **QUIET)

"""Shards: pixels come back bit for bit, a record holds for one tile only, files are whole and equal."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from range_server import RangeServer
from tiny_files import band_pixels

from terrafm_tg.datasets.store.records import checksum, decode, encode
from terrafm_tg.datasets.store.shards import Record, ShardFiles, shard_table, write_shard
from terrafm_tg.errors import TerraFMError, UnfitTileError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A

CELL = "536U_101R"


def groups_of(modality, seed=0):
    return {
        res: np.stack([band_pixels(modality.name, band, 144, seed) for band in bands])
        for res, bands in modality.native.items()
    }


def records(modality, count=5):
    return [Record(CELL, number, groups_of(modality, number)) for number in range(count)]


@pytest.fixture(params=MODALITIES.values(), ids=list(MODALITIES))
def modality(request):
    return request.param


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.arrow"
    return path, write_shard(path, S2L2A, records(S2L2A))


def same(groups, expected):
    assert groups.keys() == expected.keys()
    for resolution, pixels in expected.items():
        assert groups[resolution].dtype == pixels.dtype
        np.testing.assert_array_equal(groups[resolution], pixels)


def test_pixels_come_back_bit_for_bit_by_their_place(modality, tmp_path):
    table = write_shard(tmp_path / "a.arrow", modality, records(modality))
    files = ShardFiles()
    for row in table.sample(frac=1, random_state=0).itertuples():
        data = files.read(str(tmp_path / "a.arrow"), row.start, row.bytes)
        assert checksum(data, row.cell, row.quadrant, modality, row.layout) == row.xxh3
        expected = groups_of(modality, row.quadrant)
        same(decode(data, modality, row.layout), expected)
        out = {resolution: np.ones_like(pixels) for resolution, pixels in expected.items()}
        decode(data, modality, row.layout, out)
        same(out, expected)


def test_all_bits_of_floats_survive():
    bits = np.random.default_rng(0).integers(0, 1 << 32, (2, 64, 64), dtype=np.uint32).view(np.float32)
    data, layout = encode({10: bits}, S1RTC)
    np.testing.assert_array_equal(decode(data, S1RTC, layout)[10].view(np.uint32), bits.view(np.uint32))


def test_layouts_are_of_any_shape_and_type():
    steps = np.arange(-100, 140, dtype=np.int16).reshape(2, 10, 12)[:, ::-1]
    data, layout = encode({10: steps}, S1RTC)
    assert layout == "int16 2x10x12"
    same(decode(data, S1RTC, layout), {10: steps})


def test_arrays_that_do_not_fit_are_refused():
    data, layout = encode(groups_of(S1RTC), S1RTC)
    for wrong in (np.empty((2, 144, 143), np.float32), np.empty((2, 144, 144), np.int16)):
        with pytest.raises(UnfitTileError, match="does not fit"):
            decode(data, S1RTC, layout, {10: wrong})


def test_a_checksum_holds_for_one_tile_one_modality_and_these_bytes():
    data, layout = encode(groups_of(S2L2A), S2L2A)
    right = checksum(data, CELL, 1, S2L2A, layout)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    others = [
        checksum(bytes(flipped), CELL, 1, S2L2A, layout),
        checksum(data, "536U_102R", 1, S2L2A, layout),
        checksum(data, CELL, 2, S2L2A, layout),
        checksum(data, CELL, 1, MODALITIES["s2l1c"], layout),
        checksum(data, CELL, 1, S2L2A, layout.replace("144x144", "72x288")),
    ]
    assert right not in others
    assert len(set(others)) == 5


def test_the_same_records_give_the_same_bytes(shard, tmp_path):
    write_shard(tmp_path / "b.arrow", S2L2A, iter(records(S2L2A)))
    assert (tmp_path / "b.arrow").read_bytes() == shard[0].read_bytes()


def test_threads_change_no_byte():
    """Of a size that Blosc would cut into blocks for its threads, in the main thread."""
    groups = {res: np.random.default_rng(0).integers(1, 4000, (len(bands), 5340 // res, 5340 // res), np.uint16)
              for res, bands in S2L2A.native.items()}  # fmt: skip
    assert len({encode(groups, S2L2A)[0] for _ in range(10)}) == 1


def test_arrow_reads_it(shard):
    with pa.memory_map(str(shard[0])) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["cell", "quadrant", "fault", "layout", "xxh3", "data"]
    assert table["xxh3"].to_pylist() == shard[1]["xxh3"].tolist()
    same(decode(table["data"][3].as_py(), S2L2A, table["layout"][3].as_py()), groups_of(S2L2A, 3))


def test_the_table_is_that_of_the_file(shard):
    assert shard_table(shard[0]).equals(shard[1])


def test_tiles_without_pixels_keep_the_reason(tmp_path):
    dark = groups_of(S2L2A)
    dark[20][1] = 0
    held = [Record(CELL, 0, None, "row group 3 is cut"), Record(CELL, 1, dark), *records(S2L2A, 1)]
    table = write_shard(tmp_path / "a.arrow", S2L2A, held)
    assert table["fault"].tolist() == ["row group 3 is cut", "band B06 holds only nodata", ""]
    assert table["bytes"].gt(0).tolist() == [False, False, True]
    assert shard_table(tmp_path / "a.arrow").equals(table)


def test_a_cell_may_hold_many_tiles(tmp_path):
    groups = groups_of(S1RTC)
    table = write_shard(tmp_path / "a.arrow", S1RTC, [Record(CELL, number, groups) for number in (127, 128, 300)])
    assert table["quadrant"].tolist() == [127, 128, 300]


def test_a_failure_leaves_nothing(tmp_path):
    def cut():
        yield from records(S2L2A, 2)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        write_shard(tmp_path / "a.arrow", S2L2A, cut())
    assert not list(tmp_path.iterdir())


def test_records_are_written_as_they_come(tmp_path):
    held = 0

    def watched():
        nonlocal held
        for number in range(40):
            held = max(held, pa.total_allocated_bytes())
            pixels = np.random.default_rng(number).random((2, 144, 144), np.float32) + 1
            yield Record(CELL, number, {10: pixels})

    before = pa.total_allocated_bytes()
    table = write_shard(tmp_path / "a.arrow", S1RTC, watched())
    assert held - before < 4 * table["bytes"].max()


@pytest.mark.parametrize("keep", [0, 8, 5000, -1])
def test_what_is_no_whole_shard_is_refused(shard, keep):
    shard[0].write_bytes(shard[0].read_bytes()[:keep])
    with pytest.raises(TerraFMError, match=r"is no whole shard .* new folder"):
        shard_table(shard[0])


def test_bytes_that_are_not_there(shard, tmp_path):
    files = ShardFiles()
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "none.arrow"), 0, 1)
    size = shard[0].stat().st_size
    with pytest.raises(OSError, match=f"3 bytes came from byte {size - 3} on, expected 10"):
        files.read(str(shard[0]), size - 3, 10)


def test_a_file_that_is_cut_while_it_is_open_ends_nothing(shard):
    files, last = ShardFiles(), shard[1].iloc[-1]
    assert len(files.read(str(shard[0]), last.start, last.bytes)) == last.bytes
    with shard[0].open("rb+") as file:
        file.truncate(last.start)
    with pytest.raises(OSError, match="0 bytes came"):
        files.read(str(shard[0]), last.start, last.bytes)


def test_few_files_stay_open_and_none_travels(tmp_path):
    files = ShardFiles(limit=2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    for name in "abcab":
        assert files.read(str(tmp_path / name), 0, 1) == name.encode()
    assert len(files._files) == 2
    assert not pickle.loads(pickle.dumps(files))._files


def test_over_http_a_record_is_one_range_request(shard):
    with RangeServer(shard[0].parent) as server:
        files, row = ShardFiles(), shard[1].iloc[3]
        url = f"{server.url}/{shard[0].name}"
        data = files.read(url, row.start, row.bytes)
        same(decode(data, S2L2A, row.layout), groups_of(S2L2A, 3))
        assert [answer.range for answer in server.log] == [f"bytes={row.start}-{row.start + row.bytes - 1}"]
        with pytest.raises(OSError, match=r"404|none"):
            files.read(f"{server.url}/none.arrow", 0, 10)

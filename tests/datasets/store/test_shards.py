"""Shards: pixels come back bit for bit, a record holds for one tile only, files are whole and equal."""

import numpy as np
import pyarrow as pa
import pytest
from tiny_files import band_pixels

from terrafm_tg.datasets.store.shards import checksum, decode, encode, make_row, read_bytes, shard_table, write_shard
from terrafm_tg.errors import TerraFMError, UnfitTileError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A

CELL = "536U_101R"


def groups_of(modality, seed=0):
    return {
        res: np.stack([band_pixels(modality.name, band, 144, seed) for band in bands])
        for res, bands in modality.native.items()
    }


def records(modality, count=5):
    return [make_row(CELL, number, modality, groups_of(modality, number)) for number in range(count)]


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
    for row in table.sample(frac=1, random_state=0).itertuples():
        data = read_bytes(str(tmp_path / "a.arrow"), row.start, row.bytes)
        assert checksum(data, row.cell, row.quadrant, modality, row.layout) == row.xxh3
        expected = groups_of(modality, row.quadrant)
        same(decode(data, modality, row.layout), expected)
        out = {resolution: np.ones_like(pixels) for resolution, pixels in expected.items()}
        decode(data, modality, row.layout, out)
        same(out, expected)


@pytest.mark.parametrize("pixels", [
    np.random.default_rng(0).integers(0, 1 << 32, (2, 64, 64), dtype=np.uint32).view(np.float32),
    np.arange(-100, 140, dtype=np.int16).reshape(2, 10, 12)[:, ::-1],
])  # fmt: skip
def test_all_bits_survive_in_any_shape_and_type(pixels):
    data, layout = encode({10: pixels}, S1RTC)
    assert layout == f"{pixels.dtype} {'x'.join(map(str, pixels.shape))}"
    assert decode(data, S1RTC, layout)[10].tobytes() == pixels.tobytes()


def test_arrays_that_do_not_fit_are_refused():
    data, layout = encode(groups_of(S1RTC), S1RTC)
    for wrong in (np.empty((2, 144, 143), np.float32), np.empty((2, 144, 144), np.int16)):
        with pytest.raises(UnfitTileError, match="do not fit"):
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


def test_tiles_without_pixels_keep_the_reason(tmp_path):
    dark = groups_of(S2L2A)
    dark[20][1] = 0
    held = [make_row(CELL, 0, S2L2A, None, "row group 3 is cut"), make_row(CELL, 1, S2L2A, dark), *records(S2L2A, 1)]
    table = write_shard(tmp_path / "a.arrow", S2L2A, held)
    assert table["fault"].tolist() == ["row group 3 is cut", "band B06 holds only nodata", ""]
    assert table["bytes"].gt(0).tolist() == [False, False, True]
    assert shard_table(tmp_path / "a.arrow").equals(table)


def test_a_cell_may_hold_many_tiles(tmp_path):
    groups = groups_of(S1RTC)
    table = write_shard(
        tmp_path / "a.arrow", S1RTC, [make_row(CELL, number, S1RTC, groups) for number in (127, 128, 300)]
    )
    assert table["quadrant"].tolist() == [127, 128, 300]


def test_records_are_written_as_they_come(tmp_path):
    held = 0

    def watched():
        nonlocal held
        for number in range(40):
            held = max(held, pa.total_allocated_bytes())
            pixels = np.random.default_rng(number).random((2, 144, 144), np.float32) + 1
            yield make_row(CELL, number, S1RTC, {10: pixels})

    before = pa.total_allocated_bytes()
    table = write_shard(tmp_path / "a.arrow", S1RTC, watched())
    assert held - before < 4 * table["bytes"].max()


@pytest.mark.parametrize("keep", [0, 8, 5000, -1])
def test_what_is_no_whole_shard_is_refused(shard, keep):
    shard[0].write_bytes(shard[0].read_bytes()[:keep])
    with pytest.raises(TerraFMError, match=r"is no whole shard .* new folder"):
        shard_table(shard[0])


def test_a_file_that_is_cut_while_it_is_open_ends_nothing(shard):
    last = shard[1].iloc[-1]
    assert len(read_bytes(str(shard[0]), last.start, last.bytes)) == last.bytes
    with shard[0].open("rb+") as file:
        file.truncate(last.start)
    with pytest.raises(OSError, match="0 bytes came"):
        read_bytes(str(shard[0]), last.start, last.bytes)

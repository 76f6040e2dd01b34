"""Subsets of Major-TOM from a local server: only the bytes that are needed."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from datasets.majortom.download_runs import CELLS, EXTRAS, fetch, files, needed, pictures
from datasets.range_server import RangeServer
from datasets.tiny_files import product, write_major_tom
from refusals import refused
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.majortom.download import Selection, download_summary
from terrafm_tg.datasets.majortom.download.product import KEPT
from terrafm_tg.datasets.majortom.rows import FOLDERS


def test_exactly_the_needed_bytes_travel(server: RangeServer, source: Path, tmp_path: Path):
    got = fetch(server, tmp_path, Selection(cells=[CELLS[1], CELLS[4]]))
    total = 0
    for modality, folder in FOLDERS.items():
        table = (source / folder / "metadata.parquet").stat().st_size
        assert server.sent(f"/{folder}/metadata.parquet") == table + 1  # one byte to ask for its version
        total += table + 1
        for name, groups in (("part_00001.parquet", [1]), ("part_00003.parquet", [0])):
            wanted, footer = needed(source, modality, name, groups)
            size = (source / folder / "images" / name).stat().st_size
            came: list[int] = []
            for answer in server.log:
                if answer.path == f"/{folder}/images/{name}":
                    came += range(answer.start, answer.start + answer.sent)
            assert sorted(came) == [0, *sorted(wanted), *range(size - footer - 8, size)]  # each byte once, and the size
            total += len(wanted) + footer + 9
    assert server.sent() == total
    assert got["size"].sum() == pytest.approx(total, rel=0.5)
    assert {answer.status for answer in server.log} == {206}
    assert server.connections <= 2 * 4 + 1  # they are kept: two clients of four threads
    there, here = pictures(source), pictures(tmp_path)
    assert set(here) == {(m, cell) for m in FOLDERS for cell in (CELLS[1], CELLS[4])}
    for key, row in here.items():
        assert row == {column: value for column, value in there[key].items() if column not in EXTRAS}
        assert len(row) == 3 + {"s1rtc": 2, "s2l1c": 12, "s2l2a": 12}[key[0]]
    assert not list((tmp_path / KEPT).glob("*/rows/*"))  # nothing waits


def test_the_local_root_is_one_of_major_tom(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=[CELLS[1], CELLS[4]]))
    there, here = MajorTOM(source, tile_size=12), MajorTOM(tmp_path, tile_size=12)
    assert here.index["cell"].tolist() == [cell for cell in (CELLS[1], CELLS[4]) for _ in range(4)]
    for row in range(len(here)):
        other = 4 * CELLS.index(here.index["cell"].iat[row]) + row % 4
        mine, theirs = here[here.tile_slice(row)], there[there.tile_slice(other)]
        assert mine.keys() == theirs.keys() >= {"image_s1rtc", "image_s2l1c", "image_s2l2a"}
        assert [key for key in mine if not mine[key].equal(theirs[key])] == ["row"]
    for folder in FOLDERS.values():
        for path in (tmp_path / folder / "images").iterdir():
            file = pq.ParquetFile(path)
            assert all(file.metadata.row_group(i).num_rows == 1 for i in range(file.num_row_groups))
        table = pq.read_table(tmp_path / folder / "metadata.parquet")
        published = pq.read_table(source / folder / "metadata.parquet")
        assert table.schema.remove_metadata() == published.schema.remove_metadata()
        same = [name for name in table.column_names if name not in ("parquet_url", "parquet_row")]
        assert table.select(same).equals(published.select(same).take([1, 4]))


def test_a_checksum_tells_a_picture_that_was_damaged_later(server: RangeServer, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=[CELLS[0]], modalities="s2l2a"))
    path = tmp_path / "Core-S2L2A/images/part_00001.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(5)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read_row_group(0)


def test_a_later_selection_adds_to_the_root(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=[CELLS[0], CELLS[2]]))
    before = files(tmp_path)
    server.forget()
    again = fetch(server, tmp_path, Selection(cells=[CELLS[0], CELLS[2]]))
    assert (again["size"].sum(), again["held"].sum()) == (0, 6)
    assert server.sent() == 3  # the tables have not changed
    assert files(tmp_path) == before

    server.forget()
    fetch(server, tmp_path, Selection(cells=[CELLS[0], CELLS[1], CELLS[2]]))
    wanted = sum(len(needed(source, m, "part_00001.parquet", [1])[0]) for m in FOLDERS)
    assert server.sent() == wanted + 3  # neither rows nor footers nor tables again
    after = files(tmp_path)
    assert all(after[name] == content for name, content in before.items() if "images" in name)
    assert {name for name in after if name not in before} == {
        f"{folder}/images/part_00001_2.parquet" for folder in FOLDERS.values()
    }
    assert {cell for _, cell in pictures(tmp_path)} == set(CELLS[:3])
    assert len(MajorTOM(tmp_path, tile_size=12)) == 12


def test_files_that_were_laid_there_by_hand_count(server: RangeServer, source: Path, tmp_path: Path):
    """One of the published files and the whole published table: as from the web page."""
    folder = tmp_path / "Core-S2L2A"
    (folder / "images").mkdir(parents=True)
    shutil.copy(source / "Core-S2L2A/metadata.parquet", folder)
    shutil.copy(source / "Core-S2L2A/images/part_00002.parquet", folder / "images")
    for held in ([True, True, False], [True, True, True]):
        got = fetch(server, tmp_path, Selection(cells=CELLS[2:5], modalities="s2l2a"))
        assert got["held"].tolist() == held
        assert {cell for _, cell in pictures(tmp_path)} == set(CELLS[2:5])
        (folder / "metadata.parquet").unlink()  # as killed between a file and the table


def test_a_dry_run_tells_what_a_run_fetches(server: RangeServer, tmp_path: Path):
    selection = Selection(bbox=[0, 0, 90, 90], require="any", max_cloud=30)
    dry = fetch(server, tmp_path, selection, dry_run=True)
    assert not files(tmp_path)
    real = fetch(server, tmp_path, selection)
    pd.testing.assert_frame_equal(dry, real)
    assert real["modality"].value_counts().to_dict() == {"s1rtc": 6, "s2l1c": 4, "s2l2a": 4}
    assert abs(sum(map(len, files(tmp_path).values())) - real["size"].sum()) < 40_000  # footers and tables besides
    words = download_summary(dry, dry_run=True)
    assert re.search(r"Core-S1RTC +6 +0 +6 +0", words)
    assert "6 cells; 0.000 GB in 0 days 00:00:01 at 100 MB/s" in words


def test_a_dry_run_of_many_files_looks_at_some(tmp_path: Path):
    rows = {"s1rtc": [product("s1rtc", f"520U_{column}R") for column in range(60, 100)]}
    write_major_tom(tmp_path / "source", rows)
    with RangeServer(tmp_path / "source") as server:
        dry = fetch(server, tmp_path / "root", Selection(modalities="s1rtc"), dry_run=True)
        assert len({answer.path for answer in server.log if "part_" in answer.path}) == 8
        real = fetch(server, tmp_path / "root", Selection(modalities="s1rtc"))
    assert dry["size"].sum() == pytest.approx(real["size"].sum(), rel=0.05)


def test_the_budget_and_the_disk_are_checked_before(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    need = fetch(server, tmp_path, dry_run=True)["size"].sum() / 1e9
    with refused(match=rf"needs {need:.3f} GB more, and `max_gb` is 5e-05: .*`share` of 0\.\d+"):
        fetch(server, tmp_path, max_gb=0.00005)
    free = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr("terrafm_tg.datasets.majortom.download.run.disk_usage", lambda path: free)
    with refused(match=r"GB more, and .* has room for 0\.000 GB.*: choose less"):
        fetch(server, tmp_path)
    assert not files(tmp_path)


def test_real_cells_arrive_byte_for_byte(real_data: Path, tmp_path: Path):
    with RangeServer(real_data / "major_tom") as server:
        fetch(server, tmp_path, Selection(modalities="s2l2a"))
        part = server.sent("part_")
    there, here = pictures(real_data / "major_tom"), pictures(tmp_path)
    assert len(here) == 2
    for key, row in here.items():
        assert row == {column: value for column, value in there[key].items() if column not in EXTRAS}
    line = 10_651_277 + 12_237_107
    assert part - line == 4374 + 9  # the footer
    written = (tmp_path / "Core-S2L2A/images/part_00001.parquet").stat().st_size
    assert 0 <= written - line < 10_000  # nothing is compressed a second time, nor blown up

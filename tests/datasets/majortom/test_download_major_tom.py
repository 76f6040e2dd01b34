"""Subsets of Major-TOM from a local server: only the bytes that are needed, whatever goes wrong on the way."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.range_server import Fault, RangeServer
from datasets.tiny_files import product, write_major_tom
from processes import start
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.majortom.download import Selection, download
from terrafm_tg.datasets.majortom.download.catalog import KEPT
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError

#: Cells of zone 33 from west to east; the last has no radar.
CELLS = [f"520U_{column}R" for column in range(93, 100)]
CLOUD = dict(zip(CELLS, (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0), strict=True))
BULK = {"s1rtc": 1500, "s2l1c": 2500, "s2l2a": 3500}  # bytes of thumbnails, which are not fetched


def _row(modality: str, cell: str, **changes) -> dict:
    """A product with all columns of a published one."""
    made = product(modality, cell, cloud_cover=0.0 if modality == "s1rtc" else CLOUD[cell], **changes)
    bulk = np.random.default_rng(BULK[modality]).bytes(BULK[modality])
    more = {"product_datetime": "2021-05-01 10:10:31", "thumbnail": bulk}
    mask = {} if modality == "s1rtc" else {"cloud_mask": made["bands"]["B01"]}
    return made | {"bands": more | made["bands"] | mask}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven cells in four files per product, two rows each."""
    rows = {m: [_row(m, cell) for cell in CELLS[: 6 if m == "s1rtc" else 7]] for m in FOLDERS}
    root = write_major_tom(tmp_path_factory.mktemp("source"), rows)
    for path in root.glob("*/images/*"):  # statistics of small pictures would hold them twice more
        pq.write_table(pq.read_table(path), path, row_group_size=1, write_statistics=False)
    return root


@pytest.fixture
def server(source: Path) -> Iterator[RangeServer]:
    with RangeServer(source) as server:
        yield server


def fetch(server: RangeServer, root: Path, selection: Selection | None = None, **settings):
    settings = {"connections": 4, "workers": 0, "progress": False} | settings
    return download(root, selection or Selection(), source=server.url, **settings)


def needed(
    source: Path, modality: str, name: str, groups: list[int], left_out: set[str]
) -> tuple[set[int], int]:
    """The bytes of a file that hold the columns of some rows, as PyArrow says, and those of its footer."""
    metadata = pq.read_metadata(source / FOLDERS[modality] / "images" / name)
    found: set[int] = set()
    for group in groups:
        for i in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(i)
            if chunk.path_in_schema not in left_out:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                found.update(range(start, start + chunk.total_compressed_size))
    return found, metadata.serialized_size


def pictures(root: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """All columns of the rows that the tables below a root list, by modality and cell."""
    rows = {}
    for modality, folder in FOLDERS.items():
        if (root / folder / "metadata.parquet").is_file():
            for entry in pq.read_table(root / folder / "metadata.parquet").to_pylist():
                file = root / folder / "images" / entry["parquet_url"].rpartition("/")[2]
                row = pq.ParquetFile(file).read_row_group(entry["parquet_row"]).to_pylist()[0]
                assert row["grid_cell"] == entry["grid_cell"]
                rows[modality, entry["grid_cell"]] = row
    return rows


def files(root: Path) -> dict[str, bytes]:
    """Every file of the local copy, without what is kept of the source."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in FOLDERS.values()
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


EXTRAS = {"thumbnail", "cloud_mask", "B10"}


def test_exactly_the_needed_bytes_travel(server: RangeServer, source: Path, tmp_path: Path):
    report = fetch(server, tmp_path, Selection(cells=(CELLS[1], CELLS[4])))
    rows = footers = tables = 0
    for modality, folder in FOLDERS.items():
        table = (source / folder / "metadata.parquet").stat().st_size
        assert server.sent(f"/{folder}/metadata.parquet") == table
        tables += table
        for name, groups in (("part_00001.parquet", [1]), ("part_00003.parquet", [0])):
            wanted, footer = needed(source, modality, name, groups, EXTRAS)
            size = (source / folder / "images" / name).stat().st_size
            came: list[int] = []
            for answer in server.log:
                if answer.path == f"/{folder}/images/{name}":
                    came += range(answer.start, answer.start + answer.sent)
            assert sorted(came) == [*sorted(wanted), *range(size - footer - 8, size)]  # each byte once
            rows, footers = rows + len(wanted), footers + footer + 8
    assert server.sent() == report.traffic.received == rows + footers + tables
    assert (report.line, report.traffic.retries, report.traffic.requests) == (rows, 0, len(server.log))
    assert server.connections <= 2 * 4 + 1  # they are kept: two clients of four threads
    assert server.busiest <= 4
    there, here = pictures(source), pictures(tmp_path)
    assert set(here) == {(m, cell) for m in FOLDERS for cell in (CELLS[1], CELLS[4])}
    for key, row in here.items():
        assert row == {column: value for column, value in there[key].items() if column not in EXTRAS}
        assert len(row) == 3 + {"s1rtc": 2, "s2l1c": 12, "s2l2a": 12}[key[0]]
    assert not list((tmp_path / KEPT).glob("*/rows/*"))  # nothing waits


def test_the_local_root_is_one_of_major_tom(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=(CELLS[1], CELLS[4])))
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
    fetch(server, tmp_path, Selection(cells=(CELLS[0],), modalities=("s2l2a",)))
    path = tmp_path / "Core-S2L2A/images/part_00001.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(5)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read_row_group(0)


def test_extra_columns_on_request(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=(CELLS[0],)), extra=("thumbnail", "cloud_mask", "B10"))
    there, here = pictures(source), pictures(tmp_path)
    assert len(here) == 3
    assert all(row == there[key] for key, row in here.items())


def test_a_later_selection_adds_to_the_root(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path, Selection(cells=(CELLS[0], CELLS[2])))
    before, requests = files(tmp_path), len(server.log)
    again = fetch(server, tmp_path, Selection(cells=(CELLS[0], CELLS[2])))
    assert (again.line, again.products["s2l2a"].held) == (0, 2)
    assert [answer.status for answer in server.log[requests:]] == [304] * 3  # the tables have not changed
    assert files(tmp_path) == before

    server.forget()
    report = fetch(server, tmp_path, Selection(cells=(CELLS[0], CELLS[1], CELLS[2])))
    wanted = sum(len(needed(source, m, "part_00001.parquet", [1], EXTRAS)[0]) for m in FOLDERS)
    assert server.sent() == report.line == wanted  # neither rows nor footers nor tables again
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
    report = fetch(server, tmp_path, Selection(cells=tuple(CELLS[2:5]), modalities=("s2l2a",)))
    assert (report.products["s2l2a"].held, report.products["s2l2a"].rows) == (2, 1)
    assert {cell for _, cell in pictures(tmp_path)} == set(CELLS[2:5])
    (folder / "metadata.parquet").unlink()  # as killed between a file and the table
    report = fetch(server, tmp_path, Selection(cells=tuple(CELLS[2:5]), modalities=("s2l2a",)))
    assert (report.products["s2l2a"].held, report.line) == (3, 0)
    assert {cell for _, cell in pictures(tmp_path)} == set(CELLS[2:5])


def test_a_bad_line_changes_nothing_but_the_time(
    server: RangeServer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Resets within a body, 5xx and a stall, for every file several times; 429 with Retry-After for some."""
    monkeypatch.setattr("terrafm_tg.utils.remote._FIRST", 0.01)
    quiet = fetch(server, tmp_path / "quiet")
    with RangeServer(source, chunk=512) as bad:
        bad.fault = lambda path, number: {
            0: Fault(status=503),
            1: Fault(cut=700),
            2: Fault(cut=300),
            4: Fault(status=429, headers=(("Retry-After", "1"),)) if "S2L2A" in path else Fault(status=503),
            6: Fault(cut=1),
            8: Fault(status=502),
            9: Fault(stall=1.5),
            12: Fault(cut=2000),
        }.get(number)
        start = time.monotonic()
        report = fetch(bad, tmp_path / "bad", timeout=0.75)
        assert time.monotonic() - start > 1
        assert report.traffic.retries > 50
        assert {answer.status for answer in bad.log} >= {206, 429, 502, 503}
        # What came before a reset is not fetched again; a reset may lose what was on its way.
        assert bad.sent() < quiet.traffic.received + 2000 * report.traffic.retries
    assert files(tmp_path / "bad") == files(tmp_path / "quiet")
    assert report.line == quiet.line
    assert report.traffic.received == quiet.traffic.received


def test_retry_after_holds_every_request_back(source: Path, tmp_path: Path):
    with RangeServer(source) as server:
        times: list[float] = []

        def fault(path: str, number: int) -> Fault | None:
            times.append(time.monotonic())
            return Fault(status=429, headers=(("Retry-After", "2"),)) if len(times) == 3 else None

        server.fault = fault
        fetch(server, tmp_path, Selection(cells=(CELLS[0],)), connections=1)
        assert times[3] - times[2] >= 1.9


def test_a_slow_answer_is_waited_for(source: Path, tmp_path: Path):
    with RangeServer(source, chunk=400, pause=0.02) as server:
        report = fetch(server, tmp_path, Selection(cells=(CELLS[0],), modalities=("s2l2a",)), timeout=0.5)
        assert report.traffic.retries == 0


def test_signed_addresses_are_kept_until_they_expire(source: Path, tmp_path: Path):
    with RangeServer(source, signed=5) as server:
        report = fetch(server, tmp_path, Selection(modalities=("s2l2a",)))
        statuses = [answer.status for answer in server.log]
        assert len(pictures(tmp_path)) == 7
        assert statuses.count(302) < statuses.count(206)
        assert report.traffic.retries == statuses.count(403)


def test_a_server_without_ranges(source: Path, tmp_path: Path):
    with RangeServer(source, ranges=False) as server:
        with pytest.raises(
            TerraFMError, match=r"part_0000\d.parquet comes from a server that ignores range requests"
        ):
            fetch(server, tmp_path, Selection(modalities=("s2l2a",)))
        assert len([answer for answer in server.log if "part_" in answer.path]) <= 4


def test_a_table_is_continued_where_it_was_cut_off(source: Path, tmp_path: Path):
    size = (source / "Core-S2L2A/metadata.parquet").stat().st_size
    selection = Selection(cells=(CELLS[0],), modalities=("s2l2a",))
    with RangeServer(source, chunk=100, pause=0.05) as server:  # what came is read before the reset
        server.fault = lambda path, number: Fault(cut=1000) if number == 0 else Fault(status=400)
        with pytest.raises(TerraFMError, match=r"metadata\.parquet cannot be read"):
            fetch(server, tmp_path, selection)
        first = (tmp_path / KEPT / "Core-S2L2A/.metadata.parquet.part").stat().st_size
        server.fault, server.pause = lambda path, number: None, 0.0
        server.forget()
        fetch(server, tmp_path, selection)
        assert 0 < first <= 1000
        assert server.sent("metadata.parquet") == size - first
        assert (tmp_path / KEPT / "Core-S2L2A/metadata.parquet").read_bytes() == (
            source / "Core-S2L2A/metadata.parquet"
        ).read_bytes()


def test_a_dry_run_tells_what_a_run_fetches(server: RangeServer, tmp_path: Path):
    selection = Selection(bbox=(0, 0, 90, 90), require="any", max_cloud=30)
    dry = fetch(server, tmp_path, selection, dry_run=True)
    assert not files(tmp_path)
    real = fetch(server, tmp_path, selection)
    assert (dry.line, dry.disk, dry.cells) == (real.line, real.disk, real.cells)
    assert {m: (p.chosen, p.rows, p.looked_at) for m, p in dry.products.items()} == {
        m: (p.chosen, p.rows, p.files) for m, p in real.products.items()
    }
    assert [real.products[m].chosen for m in ("s1rtc", "s2l1c", "s2l2a")] == [6, 4, 4]
    assert abs(sum(map(len, files(tmp_path).values())) - real.disk) < 40_000  # footers and tables besides


def test_a_dry_run_of_many_files_looks_at_some(tmp_path: Path):
    rows = {"s1rtc": [product("s1rtc", f"520U_{column}R") for column in range(60, 100)]}
    write_major_tom(tmp_path / "source", rows)
    with RangeServer(tmp_path / "source") as server:
        dry = fetch(server, tmp_path / "root", Selection(modalities=("s1rtc",)), dry_run=True)
        assert len({answer.path for answer in server.log if "part_" in answer.path}) == 8
        real = fetch(server, tmp_path / "root", Selection(modalities=("s1rtc",)))
    assert (dry.products["s1rtc"].looked_at, dry.products["s1rtc"].files) == (8, 20)
    assert dry.line == pytest.approx(real.line, rel=0.05)


def test_the_budget_and_the_disk_are_checked_before(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    need = fetch(server, tmp_path, dry_run=True).disk / 1e9
    with pytest.raises(
        TerraFMError, match=rf"needs {need:.3f} GB more, .* GB above `max_gb` 5e-05: .*`share` of 0\.\d+"
    ):
        fetch(server, tmp_path, max_gb=0.00005)
    free = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr("terrafm_tg.datasets.majortom.download.plan.disk_usage", lambda path: free)
    with pytest.raises(TerraFMError, match=r"GB while it is written, and .* has 0\.000 GB free: choose less"):
        fetch(server, tmp_path)
    assert not files(tmp_path)


def test_damaged_rows_are_named_and_left_out(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    broken = shutil.copytree(source, tmp_path / "source")
    path = broken / "Core-S2L2A/images/part_00002.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["B05"] = b"no picture"
    rows[1]["grid_cell"] = CELLS[0]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    with RangeServer(broken) as server:
        with pytest.raises(
            TerraFMError, match=r"2 rows of the source are damaged, more than `max_damaged` 0\.05"
        ):
            fetch(server, tmp_path / "few", connections=1)
        report = fetch(server, tmp_path / "some", max_damaged=0.2)
    assert len(report.products["s2l2a"].damaged) == 2
    assert f"Tile {CELLS[2]} s2l2a cannot be used: band B05 in row group 0" in caplog.text
    assert f"Tile {CELLS[3]} s2l2a cannot be used: row group 1 of {server.url}" in caplog.text
    assert {cell for m, cell in pictures(tmp_path / "some") if m == "s2l2a"} == {*CELLS} - {
        CELLS[2],
        CELLS[3],
    } - {CELLS[6]}
    assert len(pictures(tmp_path / "some")) == 16


def test_rows_that_waited_for_a_file_that_was_made_are_removed(server: RangeServer, tmp_path: Path):
    """As a run leaves them that was killed between the two; a row that is still to come is kept."""
    fetch(server, tmp_path)
    before = files(tmp_path)
    waiting = tmp_path / KEPT / FOLDERS["s2l1c"] / "rows"
    row = pq.read_table(tmp_path / FOLDERS["s2l1c"] / "images/part_00002.parquet")[:1]
    other = row.set_column(row.schema.get_field_index("product_id"), "product_id", pa.array(["another"]))
    for name, table in (("part_00002/00000", row), ("part_00002/00001", other), ("part_00003/00000", row)):
        path = waiting / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    (waiting / "part_00004").mkdir()
    fetch(server, tmp_path)
    assert [p.relative_to(waiting).as_posix() for p in waiting.rglob("*")] == [
        "part_00002",
        "part_00002/00001.parquet",
    ]
    assert files(tmp_path) == before


def test_a_second_download_into_the_same_root_is_refused(server: RangeServer, tmp_path: Path):
    from filelock import FileLock

    (tmp_path / KEPT).mkdir()
    with (
        FileLock(tmp_path / KEPT / "lock"),
        pytest.raises(TerraFMError, match=r"Another download into .* is under way"),
    ):
        fetch(server, tmp_path)


def _kill_while_it_fetches(server: RangeServer, root: Path, kept: int) -> None:
    """Start the download in a process of its own and kill it when so many rows are kept."""
    process = start(
        download, root, Selection(require="any"), source=server.url, connections=2, workers=0, progress=False
    )
    while len(_kept(root)) < kept and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


def _kept(root: Path) -> set[tuple[str, str, int]]:
    """Rows that wait, and those of files that are made: product, file and row group of the source."""
    waiting = {(p.parts[-4], p.parts[-2], int(p.stem)) for p in (root / KEPT).glob("*/rows/*/[0-9]*.parquet")}
    made = {
        (p.parts[-3], p.stem, group) for p in root.glob("Core-*/images/[!.]*.parquet") for group in (0, 1)
    }
    return waiting | made


def _resume(server: RangeServer, source: Path, root: Path, quiet: dict[str, bytes]) -> None:
    """Go on after a kill: what was kept is not fetched again, and the end is the same."""
    kept = _kept(root)
    server.forget()
    server.pause = 0.0
    fetch(server, root, Selection(require="any"))
    for modality, folder in FOLDERS.items():
        for path in sorted((source / folder / "images").iterdir()):
            groups = [
                g for g in range(pq.read_metadata(path).num_row_groups) if (folder, path.stem, g) not in kept
            ]
            wanted, footer = needed(source, modality, path.name, groups, EXTRAS)
            sent = server.sent(f"/{folder}/images/{path.name}")
            assert sent in (len(wanted), len(wanted) + footer + 8), "a row that was kept came again"
    assert files(root) == quiet
    assert not list((root / KEPT).glob("*/rows/*"))
    assert not list(root.rglob("*.tmp"))


def test_after_a_kill_no_whole_row_is_fetched_again(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path / "quiet", Selection(require="any"))
    server.chunk, server.pause = 1000, 0.002
    _kill_while_it_fetches(server, tmp_path / "root", 7)
    assert len(_kept(tmp_path / "root")) < 20
    _resume(server, source, tmp_path / "root", files(tmp_path / "quiet"))


@pytest.mark.soak
def test_after_a_kill_at_any_moment(server: RangeServer, source: Path, tmp_path: Path):
    fetch(server, tmp_path / "quiet", Selection(require="any"))
    quiet = files(tmp_path / "quiet")
    for kept in range(0, 20, 2):
        root = tmp_path / str(kept)
        server.chunk, server.pause = 1000, 0.002
        _kill_while_it_fetches(server, root, kept)
        _resume(server, source, root, quiet)


@pytest.mark.soak
def test_worker_processes_do_the_same(server: RangeServer, tmp_path: Path):
    fetch(server, tmp_path / "here")
    fetch(server, tmp_path / "there", workers=2)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_real_cells_arrive_byte_for_byte(real_data: Path, tmp_path: Path):
    with RangeServer(real_data / "major_tom") as server:
        report = fetch(server, tmp_path, Selection(modalities=("s2l2a",)))
        part = server.sent("part_")
    there, here = pictures(real_data / "major_tom"), pictures(tmp_path)
    assert len(here) == 2
    for key, row in here.items():
        assert row == {column: value for column, value in there[key].items() if column not in EXTRAS}
    assert report.line == 10_651_277 + 12_237_107
    assert part - report.line == 4374 + 8  # the footer
    assert 0 <= report.done - report.line < 10_000  # nothing is compressed a second time, nor blown up

"""Downloads of Major-TOM over a bad line, from damaged files, and killed: only the time changes."""

import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.majortom.download_runs import CELLS, fetch, files, impatient, pictures
from datasets.range_server import Fault, RangeServer
from processes import start
from refusals import refused
from terrafm_tg.datasets.majortom.download import Selection, download
from terrafm_tg.datasets.majortom.download.product import KEPT
from terrafm_tg.datasets.majortom.rows import FOLDERS


def test_a_bad_line_changes_nothing_but_the_time(server: RangeServer, source: Path, tmp_path: Path):
    """Resets within a body, 5xx and a stall, for every file several times; 429 with Retry-After for some."""
    quiet = fetch(server, tmp_path / "quiet")
    with RangeServer(source, chunk=512) as bad:
        bad.fault = lambda path, number: {
            0: Fault(status=503),
            1: Fault(cut=700),
            2: Fault(cut=300),
            4: Fault(status=429, headers=(("Retry-After", "1"),)) if "S2L2A" in path else Fault(status=503),
            6: Fault(cut=1),
            8: Fault(status=502),
            9: Fault(stall=0.8),
            12: Fault(cut=2000),
        }.get(number)
        start = time.monotonic()
        with impatient(timeout=0.4):
            got = fetch(bad, tmp_path / "bad")
        assert time.monotonic() - start > 1
        assert {answer.status for answer in bad.log} >= {206, 429, 502, 503}
        again = len(bad.log) - len(server.log)
        assert again > 50
        # What came before a reset is not fetched again; a reset may lose what was on its way.
        assert bad.sent() < server.sent() + 2000 * again
    assert files(tmp_path / "bad") == files(tmp_path / "quiet")
    pd.testing.assert_frame_equal(got, quiet)


def test_a_slow_answer_is_waited_for(source: Path, tmp_path: Path):
    with RangeServer(source, chunk=400, pause=0.02) as server, impatient(timeout=0.5, retries=0):
        fetch(server, tmp_path, Selection(cells=[CELLS[0]], modalities="s2l2a"))


def test_signed_addresses_are_kept_until_they_expire(source: Path, tmp_path: Path):
    with RangeServer(source, signed=5) as server:
        with impatient():
            fetch(server, tmp_path, Selection(modalities="s2l2a"))
        statuses = [answer.status for answer in server.log]
        assert len(pictures(tmp_path)) == 7
        assert 0 < statuses.count(403) < statuses.count(302) < statuses.count(206)


def test_a_server_without_ranges(source: Path, tmp_path: Path):
    with RangeServer(source, ranges=False) as server:
        with refused(match=r"metadata.parquet comes from a server that ignores range requests"):
            fetch(server, tmp_path, Selection(modalities="s2l2a"))
        assert len(server.log) == 1


def test_damaged_rows_are_named_and_left_out(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    broken = shutil.copytree(source, tmp_path / "source")
    path = broken / "Core-S2L2A/images/part_00002.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["B05"] = b"no picture"
    rows[1]["grid_cell"] = CELLS[0]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    with RangeServer(broken) as server:
        with refused(match=r"2 rows of the source are damaged, more than `max_damaged` 0\.05"):
            fetch(server, tmp_path / "few", connections=1)
        got = fetch(server, tmp_path / "some", max_damaged=0.2)
    assert got["cell"][got["damage"].notna()].tolist() == CELLS[2:4]
    assert f"Tile {CELLS[2]} s2l2a cannot be used: band B05 in row group 0" in caplog.text
    assert f"Tile {CELLS[3]} s2l2a cannot be used: row group 1 of {server.url}" in caplog.text
    assert {cell for m, cell in pictures(tmp_path / "some") if m == "s2l2a"} == {*CELLS} - {CELLS[2], CELLS[3]} - {
        CELLS[6]
    }
    assert len(pictures(tmp_path / "some")) == 16


def test_rows_that_waited_for_a_file_that_was_made_are_removed(server: RangeServer, tmp_path: Path):
    """As a run leaves them that was killed between the two; a row that is still to come is kept."""
    fetch(server, tmp_path, Selection(cells=CELLS[1:3]))
    before = files(tmp_path)
    waiting = tmp_path / KEPT / FOLDERS["s2l1c"] / "rows"
    row = pq.read_table(tmp_path / FOLDERS["s2l1c"] / "images/part_00001.parquet")[:1]
    for name in ("part_00001.00001", "part_00002.00000", "part_00002.00001"):
        pq.write_table(row, waiting / f"{name}.parquet")
    fetch(server, tmp_path, Selection(cells=CELLS[1:3]))
    assert [p.name for p in waiting.iterdir()] == ["part_00002.00001.parquet"]
    assert files(tmp_path) == before


def test_a_second_download_into_the_same_root_is_refused(server: RangeServer, tmp_path: Path):
    from filelock import FileLock

    (tmp_path / KEPT).mkdir()
    with FileLock(tmp_path / KEPT / "lock"), refused(match=r"Another download into .* is under way"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("kept", [7, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 20, 2))])
def test_after_a_kill_no_whole_row_is_fetched_again(server: RangeServer, tmp_path: Path, kept: int):
    selection, root = Selection(require="any"), tmp_path / "root"
    rows, needed = fetch(server, tmp_path / "quiet", selection), server.sent()
    server.forget()
    server.chunk, server.pause = 1000, 0.002
    process = start(download, root, selection, source=server.url, connections=2, progress=False)
    came = 0
    while came < kept and process.is_alive():  # waiting, or in files of two rows
        came = len(list(root.glob(f"{KEPT}/*/rows/[!.]*"))) + 2 * len(list(root.glob("Core-*/images/[!.]*")))
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
    server.pause = 0.0
    fetch(server, root, selection)
    # two connections had begun a row each; the versions of three tables are asked for, and the sizes of six files
    assert server.sent() <= needed + 2 * rows["size"].max() + 9
    assert files(root) == files(tmp_path / "quiet")
    assert not list((root / KEPT).glob("*/rows/*"))
    assert not list(root.rglob("*.tmp"))

"""Progress in a log, where a bar would draw nothing until it ends."""

import io

import pytest
from rich.console import Console

from terrafm_tg.utils import progress
from terrafm_tg.utils.progress import count_units, with_bar


def test_a_log_gets_lines_with_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    seen = []
    for item in with_bar(iter(range(10)), "Simulating cells", 10):
        seen.append(item)
        now += 8
    assert seen == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Simulating cells: 1 of 10, 0:01:12 left",
        "Simulating cells: 4 of 10, 0:00:48 left",
        "Simulating cells: 7 of 10, 0:00:24 left",
        "Simulating cells: 10 of 10",
    ]
    assert list(with_bar([1, 2], "Quick")) == [1, 2]
    assert list(with_bar([1, 2], "Quiet", shown=False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_bytes_come_with_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with count_units("Rows", None, Console(file=(log := io.StringIO())), in_bytes=True) as show:
        now = 30
        show(advance=3_000_000, now="part_00001")
    assert log.getvalue() == "Rows: 3.0 MB part_00001\n"

"""Packed tiles beside their source: both give the same pixels, and the numbers fit each other."""

from pathlib import Path

import pytest

from benchmarks.store import measure, store_speed
from terrafm_tg.errors import TerraFMError


def test_the_numbers_fit_each_other(small_world: Path, tmp_path: Path) -> None:
    found = store_speed(small_world, tmp_path / "store", tiles=12, rounds=1)
    assert found.tiles == 12
    assert found.ratio == pytest.approx(found.source / found.store)
    assert found.size_ratio > 0.5
    with pytest.raises(TerraFMError, match="0 rounds measure nothing"):
        store_speed(small_world, tmp_path / "other", rounds=0)


def test_the_table(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(small_world, tiles=4, rounds=1)
    printed = capsys.readouterr().out
    assert "4 tiles, read in turn" in printed
    assert "packed store" in printed

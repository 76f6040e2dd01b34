"""The measurement of the loader: every way is measured, on any data, and wrong numbers are refused."""

import pytest

from benchmarks.loader import LOADERS, ONE_CORE, loader_speed, measure
from terrafm_tg.datamodules import MajorTOMDataModule
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.errors import TerraFMError


def test_every_way_is_measured(small_world) -> None:
    rates = loader_speed(MajorTOM(small_world, native=True, tile_size=72), batch_size=3, batches=2, rounds=1)
    assert [rate.title for rate in rates] == [ONE_CORE, *(title for title, _, _ in LOADERS)]
    assert (rates[0].wall_ratio, rates[0].processor_share) == (1.0, 1.0)
    for rate in rates:
        assert rate.wall > 0
        assert rate.wall_ratio > 0


@pytest.mark.parametrize("wrong", ["batch_size", "batches", "rounds"])
def test_numbers_that_measure_nothing(small_world, wrong) -> None:
    with pytest.raises(TerraFMError, match="measure nothing: give 1 or more of each"):
        loader_speed(MajorTOM(small_world, native=True, tile_size=72), **{wrong: 0})


def test_the_table(small_world, capsys) -> None:
    measure(MajorTOMDataModule(small_world, tile_size=72), batch_size=2, batches=2, rounds=1)
    table = capsys.readouterr().out
    assert "MajorTOM, batches of 2" in table
    assert table.count("DataLoader, ") == 3

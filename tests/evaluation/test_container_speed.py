"""The benchmark of the store: a row for each container, which gives back what was written; ours is the fastest."""

import importlib.util

import pytest

from terrafm_tg.datasets import MajorTOM
from terrafm_tg.evaluation.container_speed import container_speed, profile_store
from terrafm_tg.evaluation.containers.kinds import KINDS


@pytest.fixture(scope="module")
def measured(small_world):
    return container_speed(MajorTOM(small_world, native=True, tile_size=72, harmonise=False), 8, 1)[0]


def test_a_row_for_each_container_that_is_installed(measured):
    installed = [kind.title for kind in KINDS if importlib.util.find_spec(kind.needs)]
    titles = [row.title for row in measured]
    assert titles == ["Major-TOM Parquet, rasterio", *installed, f"{KINDS[0].title}, int16 radar"]
    assert {kind.title for kind in KINDS[:3]} <= set(titles)


def test_ours_is_faster_than_the_source_and_asks_once_per_modality(measured):
    ours = measured[1]
    assert ours.requests == 3
    assert ours.sent == pytest.approx(ours.size, rel=0.3)
    assert ours.random > 3 * measured[0].random


def test_the_command_prints_both_tables_and_what_is_missing(small_world, capsys):
    profile_store(small_world, tiles=4, rounds=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "Major-TOM Parquet, rasterio" in said
    assert "Blosc, lz4hc-1, shuffle" in said
    if not importlib.util.find_spec("zarr"):
        assert "Zarr v3, sharded" in said.partition("Not measured")[2]

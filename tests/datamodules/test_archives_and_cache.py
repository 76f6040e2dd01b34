"""Runs on archives that are not Major-TOM, by the command and its overlays."""

import mmap
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from memory_tiles import MemoryTiles, make_index, square

from data.mmearth import data as mmearth
from terrafm_tg.cli.main import main
from terrafm_tg.datamodules import CachedTiles
from terrafm_tg.errors import DamagedTileError, TerraFMError

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = {
    "model.depth": 1, "model.crops.global_size": 96, "model.crops.local_size": 48, "model.crops.local_crops": 2,
    "model.head.prototypes": 64, "model.center.alpha": 1, "model.schedule.warmup_epochs": 0, "data.batch_size": 2,
    "data.num_workers": 0, "data.val_share": 0, "trainer.max_steps": 2, "trainer.max_epochs": 2,
    "trainer.limit_val_batches": 0, "trainer.precision": "32-true",
}  # fmt: skip


def fit(tmp_path: Path, overlay: str) -> pd.Series:
    """Loss by step of a short run on what lies below `data`."""
    stack = ["pretrain.yaml", "size/tiny.yaml", f"data/{overlay}.yaml", "hardware/cpu.yaml"]
    more = {"trainer.default_root_dir": tmp_path, "trainer.logger.init_args.save_dir": tmp_path,
            "trainer.log_every_n_steps": 1, "trainer.callbacks+": "ContactSheet",
            "trainer.callbacks.path": tmp_path / "views.png", "data.root": tmp_path / "data"}  # fmt: skip
    options = (f"--{key}={value}" for key, value in (SMALL | more).items())
    main(["fit", *(f"--config={CONF / name}" for name in stack), *options])
    return pd.read_csv(next(tmp_path.rglob("metrics.csv")))["train/loss"].dropna()


@pytest.mark.parametrize("overlay", ["ssl4eo_s12", "mmearth"])
def test_two_steps(overlay: str, tmp_path: Path, request: pytest.FixtureRequest):
    """On a real site; and on places of MMEarth, which have no two levels of Sentinel-2, and some no radar."""
    if overlay == "mmearth":
        mmearth.create(tmp_path / "data")
    else:
        shutil.copytree(request.getfixturevalue("real_data") / overlay, tmp_path / "data")
    losses = fit(tmp_path, overlay)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (tmp_path / "views.png").stat().st_size > 10_000


def make(damaged=()) -> tuple[MemoryTiles, CachedTiles]:
    tiles = MemoryTiles(make_index(*square(4)), damaged)
    cached = CachedTiles(tiles)
    tiles.reads[:] = 0
    return tiles, cached


def test_same_samples_decoded_once_that_can_be_changed() -> None:
    tiles, cached = make()
    for _ in range(2):
        for row in range(64):
            sample = cached[cached.tile_slice(row, 3, 1)]
            expected = MemoryTiles(tiles.index)[tiles.tile_slice(row, 3, 1)]
            assert sample.keys() == expected.keys()
            assert all(torch.equal(sample[key], expected[key]) for key in sample)
            for value in sample.values():
                value.zero_()
    has_s1 = tiles.index["has_s1rtc"].to_numpy()
    assert not has_s1.all()
    np.testing.assert_array_equal(tiles.reads, np.stack([has_s1, np.ones(64)], axis=1))


def test_damaged_tiles_are_reported_each_time() -> None:
    tiles, cached = make(damaged=[0, 7])
    for _ in range(2):
        with pytest.raises(DamagedTileError, match="truncated"):
            cached[cached.tile_slice(7)]
    assert tiles.reads[7].sum() == 2


def test_memory_that_the_machine_lacks_is_named(monkeypatch) -> None:
    def refuse(number: int, size: int) -> mmap.mmap:
        raise OSError("Cannot allocate memory")

    tiles = MemoryTiles(make_index(*square(4)))
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(TerraFMError, match=r"`cache` would keep 64 tiles in .* GB of memory, more than .*: switch it"):
        CachedTiles(tiles)

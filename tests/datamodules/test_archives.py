"""Runs on archives that are not Major-TOM, by the command and its overlays."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.mmearth import data as mmearth
from terrafm_tg.cli.main import main

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

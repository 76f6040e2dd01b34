"""The ablation by its command on a tiny world, its runs as forks of this process; its statistics against scipy's."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy import stats

from terrafm_tg.cli import ablate
from terrafm_tg.cli.main import main
from terrafm_tg.evaluation.report.ablation import ROWS, by_row, class_differences, compare, difference, write_ablation
from terrafm_tg.land_cover import CLASS_NAMES

SETTINGS = {
    "data.batch_size": 8, "data.num_workers": 0, "data.val_block": 2, "data.cache": False, "data.val_bank": 32,
    "data.val_queries": 16, "data.epoch_length": 24, "data.cells": 40, "data.cell_size": 144, "model.depth": 1,
    "model.crops.global_size": 32, "model.crops.local_size": 16, "model.crops.local_crops": 1,
    "model.head.prototypes": 64, "model.head.hidden_dim": 64, "trainer.max_epochs": 2,
    "model.schedule.warmup_epochs": 0,
}  # fmt: skip
STACK = ("pretrain", "size/nano", "data/simulated", "hardware/cpu", "small_scale", "quick")


def words(world: Path, out: Path, **own: int) -> list[str]:
    options = {**own, "out": out, "data.root": world, **SETTINGS}
    return ["ablate", *(f"--config={name}" for name in STACK), *(f"--{name}={x}" for name, x in options.items())]


class Fork:
    """Stands in for a process of the command, which takes seconds to import what is here already."""

    started: list[list[str]]

    def __init__(self, options: list[str], lock, log, errors) -> None:
        self.started.append(options)
        self.process = multiprocessing.get_context("fork").Process(target=self.work, args=(options, log))
        self.process.start()

    @staticmethod
    def work(options: list[str], log) -> None:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        main(options)

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> None:
        self.process.join()

    def terminate(self) -> None:
        self.process.terminate()


class Replay(Fork):
    """Trains the first run; each further one gets a copy of what that has written."""

    written: Path | None = None

    def __init__(self, options: list[str], lock, log, errors) -> None:
        named = [word.partition("=")[2] for word in options if word.startswith("--trainer.default_root_dir=")]
        if not named or self.written is None:
            super().__init__(options, lock, log, errors)
            Replay.written = Path(named[0]) if named else None
            return
        self.started.append(options)
        if self.written != Path(named[0]):
            shutil.copytree(self.written, named[0], dirs_exist_ok=True, ignore=shutil.ignore_patterns("result.json"))
        self.process = multiprocessing.get_context("fork").Process(target=int)
        self.process.start()


@pytest.mark.parametrize("start", [Replay, pytest.param(Fork, marks=pytest.mark.soak)])
def test_the_command_trains_each_row_once_and_goes_on(small_world, tmp_path, monkeypatch, capfd, start) -> None:
    monkeypatch.setattr(ablate, "_start", start)
    monkeypatch.setattr(ablate, "_POLL", 0.05)
    Fork.started, Replay.written = [], None
    main(words(small_world, tmp_path, seeds=1))
    assert [command[0] for command in Fork.started] == ["profile", "fit", "fit", "fit", "fit"]
    folders = [tmp_path / row / "seed_0" for row in ROWS]
    runs = pd.read_csv(tmp_path / "ablation.csv")
    for row, folder in zip(ROWS, folders, strict=True):
        report = pd.read_csv(next(folder.rglob("held_out.csv")))
        own = report[(report.encoder == "trained") & (report.task == "knn") & (report["query"] == "s2l2a")]
        assert by_row(runs, "knn/accuracy/s2l2a")[row].tolist() == pytest.approx(own.score[:1].tolist(), abs=1e-5)
        losses = pd.read_csv(next(folder.rglob("metrics.csv")))["train/loss"].dropna()
        assert np.isfinite(losses).all()
    if start is Fork:  # else it is the first row's
        assert set(report["query"]) == {"s1rtc", "s2l1c", "s2l2a", "fused"}
    assert {"val/entropy/tree_cover", "val/spread/tree_cover"} < set(runs.name[runs.row == max(ROWS)])
    printed = capfd.readouterr()
    assert "4 runs (4 rows, 1 seeds) of 6 batches, 0 done" in printed.err
    assert "+ dual center" in printed.out

    # As after a kill: one run has its checkpoint and no result. It alone runs, and goes on from there.
    (folders[2] / "result.json").unlink()
    before = runs.sort_values(["row", "name"], ignore_index=True)
    Fork.started = []
    main(words(small_world, tmp_path, seeds=1))
    (again,) = Fork.started
    assert again[-1] == f"--ckpt_path={next(folders[2].rglob('last.ckpt'))}"
    after = pd.read_csv(tmp_path / "ablation.csv").sort_values(["row", "name"], ignore_index=True)
    pd.testing.assert_frame_equal(after, before)

    with pytest.raises(SystemExit):
        main([*words(small_world, tmp_path), "--model.drop_path=0.5"])
    assert "give another `out`, or the same options" in capfd.readouterr().err
    Fork.started = []
    with pytest.raises(SystemExit):
        main([*words(small_world, tmp_path / "other"), "--model.no_such_thing=1"])
    said = capfd.readouterr().err
    assert "no_such_thing" in (tmp_path / "other/pace.log").read_text() + said
    assert "The configuration cannot be trained" in said


def make_runs(seeds: int = 5) -> pd.DataFrame:
    """Each row better than the one before by 0.05, but for noise; dual centering adds entropy to rare classes only."""
    rng, lines = np.random.default_rng(0), []
    for seed in range(seeds):
        luck = rng.normal(0, 0.1)  # of a seed, in all rows
        for step, row in enumerate(ROWS):
            found = {f"knn/accuracy/{m}/{m}": 0.4 + luck + 0.05 * step for m in ("s2l2a", "s1rtc", "fused")}
            found |= {f"val/entropy/{name.lower()}": 3 + luck for name in ("cropland", "mangroves")}
            found["val/entropy/mangroves"] += 0.5 * (step == 3)
            found |= {f"frequent/{title}": float(title == "Cropland") for title in CLASS_NAMES}
            kept = {k: v for k, v in found.items() if step or "s1rtc" not in k}
            values = {k: v + rng.normal(0, 0.01) * ("frequent" not in k) for k, v in kept.items()}
            lines += [{"row": row, "seed": seed, "name": k, "value": v} for k, v in values.items()]
    return pd.DataFrame(lines)


def test_differences_are_paired_and_those_of_scipy() -> None:
    runs = make_runs()
    found = compare(runs).set_index(["score", "from", "to"])
    first, *_, last = ROWS
    assert ("k-NN of S1", first, last) not in found.index  # the first row has no radar
    assert "k-NN of L1C" not in found.index.get_level_values("score")
    for score, name in (("k-NN of L2A", "s2l2a"), ("k-NN of S1", "s1rtc")):
        values = runs[runs.name == f"knn/accuracy/{name}/{name}"].pivot_table("value", "seed", "row")
        for (a, b), line in found.loc[score].iterrows():
            test = stats.ttest_rel(values[b], values[a])
            interval = test.confidence_interval(0.95)
            np.testing.assert_allclose([line.low, line.high], interval, rtol=1e-9)
            assert line["mean"] == pytest.approx((interval.low + interval.high) / 2)
    line = found.loc["k-NN of L2A", first, last]
    assert 0.15 - 0.02 < line["low"] < 0.15 < line["high"] < 0.15 + 0.04  # the luck of a seed cancels out
    pairs = by_row(runs, "knn/accuracy/s2l2a").diff(axis=1)[last]
    rng = np.random.default_rng(1)
    trials = rng.normal(found.loc["k-NN of L2A", [*ROWS][2], last]["detectable"], pairs.std(), (40_000, 5))
    assert (stats.ttest_1samp(trials, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    alone = difference(by_row(make_runs(1), "knn/accuracy/s2l2a"), first, last)
    assert np.isnan([alone["low"], alone["detectable"]]).all()


def test_rare_classes_and_files(tmp_path) -> None:
    runs = make_runs()
    found = class_differences(runs).set_index("class")
    assert found.index.tolist() == ["Cropland", "Mangroves", "rare", "frequent"]
    assert found.frequent.tolist() == [True, False, False, True]
    assert found.loc["rare", "low"] > 0.4 > 0.1 > found.loc["frequent", "high"]
    assert found.loc["Mangroves", "mean"] == pytest.approx(found.loc["rare", "mean"])
    write_ablation(runs, tmp_path)
    for name in ("ablation.png", "rare_classes.png"):
        assert imread(tmp_path / name).std() > 0
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["seeds"] == 5
    assert len(content["differences"]) == 4 + 2 + 4
    write_ablation(make_runs(1), tmp_path)  # no interval, no error


@pytest.mark.soak
def test_a_killed_ablation_goes_on(small_world, tmp_path) -> None:
    """By processes of the command: all are killed in the middle of the runs; then it ends as if nothing had been."""
    command = [sys.executable, "-c", "from terrafm_tg.cli.main import main; main()"]
    command += words(small_world, tmp_path, seeds=2, workers=2)
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(tmp_path.rglob("result.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)  # its runs outlive it, and the next command waits for them
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert 0 < len(done) < 8
    subprocess.run(command, check=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(tmp_path.rglob("result.json"))) == 8
    assert len(json.loads((tmp_path / "ablation.json").read_text())["differences"]) > 20

"""What a run leaves: interrupted, repeated, on changed files, with something missing."""

import json
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny_bench import write_config

from processes import start
from terrafm_tg.cli.main import main
from terrafm_tg.evaluation.bench.config import read_datasets

CONF = Path(__file__).resolve().parents[3] / "conf/bench"
KNN = [{"name": "knn", "k": 5}]
PROBES = [*KNN, {"name": "linear-probe", "rates": [0.01, 0.1], "epochs": 3}]


def results(out: Path) -> pd.DataFrame:
    """The table without what differs from run to run."""
    return pd.read_parquet(out / "results.parquet").drop(columns="seconds")


@pytest.mark.parametrize("config", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_plans(
    config: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of what they name is known; each finds all of its datasets, and nothing is written."""
    monkeypatch.setenv("COLUMNS", "200")  # of the table
    main(["bench", f"--config={config}", f"--root={benchmarks}", f"--out={tmp_path / 'out'}", "--dry_run"])
    printed = capsys.readouterr().out
    content = yaml.safe_load(config.read_text())
    for task in read_datasets(content["datasets"]):
        assert task.name in printed
    for protocol in content["protocols"]:
        name = protocol if isinstance(protocol, str) else protocol["name"]
        assert name in printed
    assert "skipped" not in printed
    assert not (tmp_path / "out").exists()


def test_a_warning_is_one_line_and_comes_once(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of m-so2sat's 17 classes the files have three; four units read them."""
    words = write_config(
        benchmarks, tmp_path / "out", models=["pixel-statistics"], datasets=["m-so2sat"], protocols=KNN,
        fractions=[0.5, 1.0], seeds=[0, 1],
    )  # fmt: skip
    main(words)
    said = [line for line in capsys.readouterr().err.splitlines() if "no training sample" in line]
    assert len(said) == len(set(said)) > 0
    assert all(line.startswith("terrafm: warning: ") for line in said)


def test_killed_and_run_again(benchmarks: Path, weights: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle loses the unit under way alone; the table is that of an uninterrupted run."""
    common = {
        "models": [{"model": "terrafm_nano", "weights": str(weights), "size": 32}],
        "datasets": ["m-eurosat", "m-so2sat", "EuroSAT-S1"],
        "protocols": PROBES,
        "seeds": [0, 1, 2],
    }
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = write_config(benchmarks, killed, **common)
    process = start(main, words)
    while len(list(killed.glob("units/*.json"))) < 4:
        assert process.is_alive(), "it was to be killed before it ended"
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("units/*.json")}
    for path in kept:
        assert json.loads(path.read_text())["rows"]
    assert not (killed / "results.parquet").exists()
    main(words)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    main(write_config(benchmarks, whole, **common))
    assert len(kept) < len(list(whole.glob("units/*.json"))) == 3 * (1 + 3)
    pd.testing.assert_frame_equal(results(killed), results(whole))
    assert [path.name for path in killed.rglob("*") if path.name.endswith(".tmp")] == []


def test_what_is_missing_is_skipped_and_named(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset that is not there, one that a model cannot read, and damage: the others go on."""
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("m-eurosat", "m-pv4ger", "m-brick-kiln"):
        shutil.copytree(benchmarks / "classification_v1.0" / name, root / "classification_v1.0" / name)
    broken = sorted((root / "classification_v1.0/m-brick-kiln").glob("test_*.hdf5"))[0]
    broken.write_bytes(broken.read_bytes()[:300])
    words = write_config(
        root,
        out,
        models=["pixel-statistics", {"model": "terrafm_nano_s1rtc", "size": 32, "name": "radar"}],
        datasets=["m-eurosat", "m-pv4ger", "m-brick-kiln", "m-so2sat"],
        protocols=KNN,
    )
    main([*words, "--dry_run"])
    planned = capsys.readouterr().out
    assert "6 units" in planned
    assert "skipped: m-so2sat" in planned
    assert "huggingface.co" in planned
    assert not out.exists()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert broken.name in printed.err.strip().splitlines()[-1]
    for said in ("skipped: m-so2sat: ", "skipped: m-eurosat, radar", "skipped: m-pv4ger, radar",
                 "failed: m-brick-kiln, pixel-statistics, knn: "):  # fmt: skip
        assert said in printed.out
    table = results(out)
    assert set(table.dataset) == {"m-eurosat", "m-pv4ger"}
    assert set(table.name) == {"pixel-statistics"}
    listed = json.loads((out / "skipped.json").read_text())
    assert {(item["dataset"], item["model"], item["failed"]) for item in listed} == {
        ("m-so2sat", "", False), ("m-eurosat", "radar", False), ("m-pv4ger", "radar", False),
        ("m-brick-kiln", "radar", False), ("m-brick-kiln", "pixel-statistics", True),
    }  # fmt: skip
    assert "m-so2sat" in (out / "report.html").read_text()


def test_changed_files_are_judged_again(benchmarks: Path, weights: Path, tmp_path: Path) -> None:
    """New weights or data under the same name replace the old results; other runs' results stay."""
    root, file = tmp_path / "root", tmp_path / "encoder.pth"
    shutil.copytree(benchmarks / "classification_v1.0/m-eurosat", root / "classification_v1.0" / "m-eurosat")
    shutil.copy(weights, file)
    models = [{"model": "terrafm_nano", "weights": str(file), "size": 32}]
    words = write_config(root, tmp_path / "out", datasets="m-eurosat", protocols=KNN, models=models)
    main(words)
    first = results(tmp_path / "out")
    main([*words, "--models=pixel-statistics"])
    both = results(tmp_path / "out")
    assert set(both.model) == {"terrafm_nano", "pixel-statistics"}
    state = torch.load(file, weights_only=True)
    torch.save({name: value + 0.05 for name, value in state.items()}, file)
    main(words)
    again = results(tmp_path / "out")
    ours = again[again.model == "terrafm_nano"].reset_index(drop=True)
    assert len(again) == len(both)
    assert set(ours.model_id).isdisjoint(first.model_id)
    assert set(ours.data_id) == set(first.data_id)
    sample = next((root / "classification_v1.0/m-eurosat").glob("train_*.hdf5"))
    os.utime(sample, (1, 1))
    main(words)
    moved = results(tmp_path / "out")
    assert set(moved[moved.model == "terrafm_nano"].data_id).isdisjoint(first.data_id)


def test_seeds_fractions_and_bands_make_the_units_that_differ(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A k-NN of given weights draws nothing; a seeded part of train, random weights and a probe do."""
    words = write_config(
        benchmarks,
        tmp_path / "out",
        models=["pixel-statistics", {"model": "terrafm_nano", "size": 32}],
        datasets=["m-eurosat", "m-so2sat", "BigEarthNet-S1"],
        protocols=[*KNN, {"name": "linear-probe", "rates": [0.1], "epochs": 1, "datasets": ["m-so2sat"], "seeds": 7}],
        fractions=[0.5, 1.0],
        seeds=[0, 1],
        bands=["corrected", "labelled"],
    )  # fmt: skip
    main(words)
    capsys.readouterr()
    table = results(tmp_path / "out")
    runs = table[table.headline & (table.average == "true")]
    counts = runs.groupby(["dataset", "model", "protocol", "bands"]).size().to_dict()
    knn, probe = "knn", "linear-probe"
    assert counts == {
        ("m-eurosat", "pixel-statistics", knn, "corrected"): 2,  # two partitions of GEO-Bench
        ("m-eurosat", "pixel-statistics", knn, "labelled"): 2,
        ("m-eurosat", "terrafm_nano", knn, "corrected"): 4,
        ("m-eurosat", "terrafm_nano", knn, "labelled"): 4,
        ("m-so2sat", "pixel-statistics", knn, "corrected"): 2,  # its names are right
        ("m-so2sat", "terrafm_nano", knn, "corrected"): 4,
        ("m-so2sat", "pixel-statistics", probe, "corrected"): 2,
        ("m-so2sat", "terrafm_nano", probe, "corrected"): 2,
        ("BigEarthNet-S1", "pixel-statistics", knn, "corrected"): 3,  # half of it is drawn by the seed
        ("BigEarthNet-S1", "terrafm_nano", knn, "corrected"): 4,
    }
    assert set(runs[runs.protocol == probe].seed) == {7}
    random = runs[(runs.model == "terrafm_nano") & (runs.dataset == "m-eurosat") & (runs.bands == "corrected")]
    assert random.model_id.nunique() == 2
    assert set(random.name) == {"terrafm_nano (random)"}
    assert set(random.weights) == {""}
    halves = runs[
        (runs.dataset == "BigEarthNet-S1") & (runs.model == "pixel-statistics") & (runs.train_fraction == 0.5)
    ]
    assert halves.data_id.nunique() == 2


def test_a_worker_process_gives_the_same(dask_from_server: None, benchmarks: Path, tmp_path: Path) -> None:
    """A Dask worker, with a process of its own that decodes, and this process alone."""
    common = {"models": "pixel-statistics", "datasets": ["m-eurosat", "EuroSAT-S1"], "protocols": KNN}
    main(write_config(benchmarks, tmp_path / "one", **common))
    words = write_config(benchmarks, tmp_path / "two", workers=1, **common)
    main([*words, "--num_workers=1"])
    pd.testing.assert_frame_equal(results(tmp_path / "one"), results(tmp_path / "two"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--datasets=m-eurosad"], "m-eurosat"),
        (["--datasets=[bigearthnet]"], "m-bigearthnet"),
        (["--datasets=[]"], "No dataset"),
        (["--protocols=kn"], "knn"),
        (["--protocols=[{name: knn, neighbours: 3}]"], "setting of protocol 'knn' 'neighbours'"),
        (["--protocols=[{name: knn, k: three}]"], "'three'"),
        (["--protocols=[{name: knn, k: 0}]"], "`k`"),
        (["--protocols=[{k: 3}]"], "knn"),
        (["--models=[{weights: none}]"], "terrafm_base"),
        (["--models=[{model: terrafm_nano, poolin: mean}]"], "pooling"),
        (["--models=[{model: terrafm_nano, pooling: max}]"], "'max'"),
        (["--models=[pixel-statistics,pixel-statistics]"], "twice"),
        (["--models=terrafm_basse"], "terrafm_base"),
        (["--models=timm/vit_smal_patch16_224"], "vit_smal_patch16_224"),
        (["--models=torchgeo/dofa_base_patch16"], "dofa_base_patch16_224"),
        (["--models=terrafm_nano@missing.pth"], "missing.pth"),
        (["--fractions=[1.5]"], "0.015"),
        (["--fractions=0"], "above 0"),
        (["--seeds=[-1]"], "-1"),
        (["--bands=[corected]"], "corrected"),
        (["--root=nowhere"], "nowhere"),
        (["--device=gpu"], "'gpu'"),
        (["--datasets=m-bigearthnet", "--root=."], "huggingface.co"),
        (["--datasets=m-nz-cattle"], "No protocol"),
        (["--workers=-1"], "-1"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(
    options: list[str], said: str, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"models": "pixel-statistics", "datasets": "m-eurosat", "protocols": KNN}
    words = write_config(benchmarks, tmp_path / "out", **given)
    with pytest.raises(SystemExit) as stop:
        main([*words, *options])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert said in error.strip().splitlines()[-1]


def test_folders_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--root=."]):
        with pytest.raises(SystemExit):
            main(["bench", *options])
        assert "--out" in capsys.readouterr().err.strip().splitlines()[-1]

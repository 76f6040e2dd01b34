"""Every configuration in `conf/finetune` through the command line, on files of its dataset's own format."""

import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

from data import labelled
from refusals import refusal
from terrafm_tg.cli.main import main

CONF = Path(__file__).resolve().parents[3] / "conf/finetune"
#: Where a configuration's files are made, if not under its own name.
DATA = {"bigearthnet_s1": "bigearthnet", "bigearthnet_s2": "bigearthnet", "cloud_s2": "cloud", "flood_s1": "floods"}
#: A score of each configuration's kind.
SCORES = {"multilabel": "test_OverallAveragePrecision", "multiclass": "test_OverallAccuracy",
          "binary": "test_OverallF1Score"}  # fmt: skip


def words(name: str, root: Path, run: Path) -> list[str]:
    """Options of a run of seconds: `terrafm_tiny` without weights, small images, two epochs."""
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    size = {key: 32 for key in ("size", "patch_size") if key in data}
    backbone = model.get("backbone", "").removeprefix("terrafm_base")
    small = {"backbone": f"terrafm_tiny{backbone}"} if backbone else {"model": "terrafm_tiny", "depth": 2}
    options = {
        "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": "32-true", "trainer.max_epochs": 2,
        "trainer.enable_progress_bar": False,
        "trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 1, "trainer.default_root_dir": run,
        "trainer.logger.init_args.save_dir": run, "data.root": root, "data.batch_size": 2, "data.num_workers": 0,
        "model.weights": "null",
    }  # fmt: skip
    options |= {f"model.{key}": value for key, value in small.items()}
    options |= {f"data.{key}": value for key, value in size.items()}
    if name == "oscd":
        options["data.crops"] = 1
    return [f"--config={CONF / f'{name}.yaml'}", *(f"--{key}={value}" for key, value in options.items())]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_it_trains_and_tests(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run ends with checkpoint, score and next step: the printed command tests that checkpoint."""
    getattr(labelled, DATA.get(name, name))(tmp_path / "data")
    options = words(name, tmp_path / "data", tmp_path / "run")
    main(["fit", *options])
    folder = tmp_path / "run/lightning_logs"
    metrics = pd.read_csv(folder / "version_0/metrics.csv")
    assert metrics["train_loss"].notna().any()
    assert metrics["val_loss"].notna().sum() == 2
    assert metrics["lr"].max() == pytest.approx(5e-4)
    printed, logged = capfd.readouterr()
    command = next(line.split("test it ")[1] for line in printed.splitlines() if "test it " in line)
    assert str(folder / "version_0/checkpoints") in command
    assert "best score    val_" in printed
    assert "Tip" not in printed + logged
    assert "FLOPs" not in printed + logged
    main(shlex.split(command)[1:])
    task = yaml.safe_load((CONF / f"{name}.yaml").read_text())["model"]["init_args"].get("task", "multiclass")
    tested = pd.read_csv(folder / "version_1/metrics.csv")
    assert 0 <= tested[SCORES[task]].iloc[-1] <= 1


def test_real_pairs_of_bigearthnet_are_fused(tmp_path: Path, real_data: Path) -> None:
    labelled.real_bigearthnet(real_data / "bigearthnet", tmp_path / "data")
    main(["fit", *words("bigearthnet", tmp_path / "data", tmp_path / "run")])
    metrics = pd.read_csv(tmp_path / "run/lightning_logs/version_0/metrics.csv")
    assert metrics["val_OverallAveragePrecision"].between(0, 1).any()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.root=nowhere", "nowhere"),
        ("--data.batch_size=500", "`batch_size` is 500, but there are only 20 training samples"),
        ("--model.modalities=[s1rtc]", "s1rtc has 2 channels here (VV, VH), got 12"),
        ("--model.weights=nowhere.pth", "nowhere.pth"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled.eurosat(tmp_path / "data")
    assert said in refusal(capsys, "fit", *words("eurosat", tmp_path / "data", tmp_path / "run"), option)

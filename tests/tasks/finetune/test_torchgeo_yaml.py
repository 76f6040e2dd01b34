"""TorchGeo's tasks through the command line: each YAML trains, validates, tests and predicts on files as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from data import labelled
from terrafm_tg.cli.fit import TerraFMCLI
from terrafm_tg.cli.main import main
from terrafm_tg.models import load_encoder_state

CONF = Path(__file__).resolve().parents[2] / "conf"
#: Shape of a batch's predictions, by the dataset with which the YAML's name begins.
PREDICTED = {
    "bigearthnet": (2, 19),
    "cloud_cover": (2, 1, 64, 64),
    "cowc": (2, 1),
    "eurosat": (4, 10),
    "oscd": (2, 1, 32, 32),
}


def dataset(name: str) -> str:
    """Name of a YAML's dataset."""
    return next(data for data in PREDICTED if name.startswith(data))


def words(name: str, folder: Path) -> list[str]:
    """Options of a run with that YAML, on files of its dataset's own format below the folder."""
    config = CONF / f"{name}.yaml"
    getattr(labelled, dataset(name))(folder / "data")
    place = "init_args" if "terrafm_tg.datamodules" in config.read_text() else "dict_kwargs"
    return [
        f"--config={CONF / 'trainer.yaml'}",
        f"--config={config}",
        f"--data.{place}.root={folder / 'data'}",
        f"--trainer.default_root_dir={folder / 'run'}",
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*_*.yaml")))
def test_trains_validates_tests_and_predicts(
    name: str, checkpoint: Path, published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains from the weights; its own checkpoint does the rest."""
    options = words(name, tmp_path)
    main(["fit", *options, f"--model.init_args.weights={checkpoint}"])
    own = next(tmp_path.rglob("*.ckpt"))
    for command in ("validate", "test"):
        main([command, *options, f"--ckpt_path={own}"])
    main(["predict", *options, f"--ckpt_path={own}", "--trainer.callbacks+=terrafm_tg.callbacks.PredictionWriter"])
    written = torch.load(tmp_path / "run/predictions/0_0_000000.pt", weights_only=True)
    predictions = written["predictions"]
    if isinstance(predictions, dict):  # segmentation's come with their place
        predictions = predictions["probabilities"]
    assert written["samples"] == list(range(len(predictions)))
    assert predictions.shape == PREDICTED[dataset(name)]
    assert predictions.isfinite().all()
    printed = capsys.readouterr().out
    assert "val_loss" in printed
    assert "test_loss" in printed
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())["model"]["init_args"]
    trained, _ = load_encoder_state(own)
    same = [torch.equal(trained[key], tensor) for key, tensor in published.items()]
    assert all(same) == settings.get("freeze_backbone", False)


def test_who_splits_the_data_over_processes(small_world: Path, tmp_path: Path) -> None:
    """Lightning does for TorchGeo's datamodules; those of the pretraining do so themselves."""
    torchgeos = words("eurosat_classification", tmp_path)
    ours = ["--model=terrafm_tg.tasks.TerraFM", "--model.model=terrafm_tiny"]
    ours += ["--data=terrafm_tg.datamodules.MajorTOMDataModule", f"--data.root={small_world}", "--data.tile_size=72"]
    for options, expected in (
        (torchgeos, True),
        (ours, False),
        ([*ours, "--trainer.use_distributed_sampler=true"], True),
    ):
        cli = TerraFMCLI(args=options, run=False)
        assert cli.config["trainer"]["use_distributed_sampler"] is expected


def test_torchgeos_own_command(checkpoint: Path, tmp_path: Path) -> None:
    """`torchgeo fit` takes the YAML where it names anything of this package, which registers the models."""
    options = words("cloud_cover_linear", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "torchgeo", "fit", *options, f"--model.init_args.weights={checkpoint}"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.ckpt"))

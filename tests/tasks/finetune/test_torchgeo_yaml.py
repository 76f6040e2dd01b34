"""TorchGeo's tasks through the command line: each YAML trains, validates, tests and predicts on files as they are."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from data import published_weights
from data.bigearthnet import data as bigearthnet
from data.cloud_cover import data as cloud_cover
from data.cowc import data as cowc
from data.eurosat import data as eurosat
from data.oscd import data as oscd
from terrafm_tg.cli.fit import TerraFMCLI
from terrafm_tg.cli.main import main
from terrafm_tg.models import export_encoder

CONF = Path(__file__).resolve().parents[2] / "conf"
CREATE: dict[str, Callable[[Path], None]] = {
    "bigearthnet": bigearthnet.create,
    "cloud_cover": cloud_cover.create,
    "cowc": cowc.create,
    "eurosat": eurosat.create,
    "oscd": oscd.create,
}
#: Shape of a batch's predictions, by the YAML's name.
PREDICTED = {
    "bigearthnet_s1_classification": (2, 19),
    "bigearthnet_s2_classification": (2, 19),
    "cloud_cover_dpt": (2, 1, 64, 64),
    "cloud_cover_linear": (2, 1, 64, 64),
    "cloud_cover_pixelwise_regression": (2, 1, 64, 64),
    "cloud_cover_unet": (2, 1, 64, 64),
    "cloud_cover_upernet": (2, 1, 64, 64),
    "cowc_regression": (2, 1),
    "eurosat_classification": (4, 10),
    "oscd_changevit": (2, 1, 32, 32),
    "oscd_fcsiamconc": (2, 1, 32, 32),
    "oscd_fcsiamdiff": (2, 1, 32, 32),
    "oscd_upernet": (2, 1, 32, 32),
}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """`terrafm_tiny` in the published layout."""
    return published_weights.tiny()


@pytest.fixture(scope="module")
def weights(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file that TorchGeo's tasks take."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(published, folder / "TerraFM-T.pth")
    return export_encoder(folder / "TerraFM-T.pth", folder / "encoder")[1]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a data set when it is first asked for."""
    made: dict[str, Path] = {}

    def root(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            CREATE[name](made[name])
        return made[name]

    return root


def words(config: Path, root: Path, run: Path) -> list[str]:
    """Options of a run with that YAML."""
    place = "init_args" if "terrafm_tg.datamodules" in config.read_text() else "dict_kwargs"
    return [
        f"--config={CONF / 'trainer.yaml'}",
        f"--config={config}",
        f"--data.{place}.root={root}",
        f"--trainer.default_root_dir={run}",
    ]


def drive(config: Path, root: Path, weights: Path, run: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Trains from the weights, then validates, tests and predicts with the checkpoint.

    Returns:
        The trained task's state, and the predictions of the first batch.
    """
    options = words(config, root, run)
    main(["fit", *options, f"--model.init_args.weights={weights}"])
    checkpoint = next(run.rglob("*.ckpt"))
    for command in ("validate", "test"):
        main([command, *options, f"--ckpt_path={checkpoint}"])
    writer = "--trainer.callbacks+=terrafm_tg.callbacks.PredictionWriter"
    main(["predict", *options, f"--ckpt_path={checkpoint}", writer])
    written = torch.load(run / "predictions/0_0_000000.pt", weights_only=True)
    predictions = written["predictions"]
    if isinstance(predictions, dict):  # segmentation's come with their place
        predictions = predictions["probabilities"]
    assert written["samples"] == list(range(len(predictions)))
    return torch.load(checkpoint, weights_only=True)["state_dict"], predictions


def encoder_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in a task's state."""
    prefix = next(name for name in state if name.endswith("patch_embed.conv2d_s1.weight"))
    prefix = prefix.removesuffix("patch_embed.conv2d_s1.weight")
    return {name.removeprefix(prefix): p for name, p in state.items() if name.startswith(prefix)}


def test_every_yaml_is_driven() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {"trainer", *PREDICTED}


@pytest.mark.parametrize("name", PREDICTED)
def test_trains_validates_tests_and_predicts(
    name: str,
    roots: Callable[[str], Path],
    weights: Path,
    published: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = CONF / f"{name}.yaml"
    root = roots(next(data for data in CREATE if name.startswith(data)))
    state, predictions = drive(config, root, weights, tmp_path)
    assert predictions.shape == PREDICTED[name]
    assert predictions.isfinite().all()
    printed = capsys.readouterr().out
    assert "val_loss" in printed
    assert "test_loss" in printed
    settings = yaml.safe_load(config.read_text())["model"]["init_args"]
    trained = encoder_of(state)
    same = [torch.equal(trained[key], tensor) for key, tensor in published.items()]
    assert all(same) == settings.get("freeze_backbone", False)


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_on_real_pairs_of_bigearthnet(sensor: str, weights: Path, tmp_path: Path, real_data: Path) -> None:
    root = tmp_path / "data"
    bigearthnet.link_real(real_data / "bigearthnet", root)
    config = CONF / f"bigearthnet_{sensor}_classification.yaml"
    _, predictions = drive(config, root, weights, tmp_path / "run")
    assert predictions.shape == (2, 19)
    assert ((predictions > 0) & (predictions < 1)).all()


def test_who_splits_the_data_over_processes(roots: Callable[[str], Path], small_world: Path, tmp_path: Path) -> None:
    """Lightning does for TorchGeo's datamodules; those of the pretraining do so themselves."""
    torchgeos = words(CONF / "eurosat_classification.yaml", roots("eurosat"), tmp_path)
    ours = ["--model=terrafm_tg.tasks.TerraFM", "--model.model=terrafm_tiny"]
    ours += ["--data=terrafm_tg.datamodules.MajorTOMDataModule", f"--data.root={small_world}", "--data.tile_size=72"]
    for options, expected in (
        (torchgeos, True),
        (ours, False),
        ([*ours, "--trainer.use_distributed_sampler=true"], True),
    ):
        cli = TerraFMCLI(args=options, run=False)
        assert cli.config["trainer"]["use_distributed_sampler"] is expected


def test_torchgeos_own_command(roots: Callable[[str], Path], weights: Path, tmp_path: Path) -> None:
    """`torchgeo fit` takes the YAML where it names anything of this package, which registers the models."""
    options = words(CONF / "cloud_cover_linear.yaml", roots("cloud_cover"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "torchgeo", "fit", *options, f"--model.init_args.weights={weights}"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.ckpt"))

"""The `terrafm` command as a person meets it: help, a whole run, and one sentence for each mistake."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from refusals import refusal
from terrafm_tg.cli.fit import show_progress
from terrafm_tg.cli.main import main
from terrafm_tg.tasks.pretrain.settings import flatten

CONF = Path(__file__).resolve().parents[2] / "conf"
OVERLAYS = sorted(
    path.relative_to(CONF).as_posix()
    for path in CONF.rglob("*.yaml")
    if path.stem != "pretrain" and path.relative_to(CONF).parts[0] not in ("finetune", "bench", "torchgeo_bench")
)
#: A run of seconds.
TINY = """
trainer: {accelerator: cpu, devices: 1, precision: 32-true, max_epochs: 2, log_every_n_steps: 1,
  num_sanity_val_steps: 0, enable_progress_bar: false, enable_model_summary: false, limit_train_batches: 4}
model: {init_args: {model: terrafm_tiny, depth: 2, crops: {global_size: 48, local_size: 32, local_crops: 2},
  head: {prototypes: 64, hidden_dim: 64, bottleneck_dim: 32}}}
data: {init_args: {batch_size: 4, num_workers: 0, val_bank: 24, val_queries: 12, val_block: 2}}
"""


def tiny_run(folder: Path, data: str, root: Path, *options: str) -> list[str]:
    """Options of a run of seconds into a folder, on a kind of data."""
    overlay = folder / "tiny.yaml"
    overlay.write_text(TINY)
    stack = (CONF / "pretrain.yaml", CONF / f"data/{data}.yaml", overlay)
    to = [f"--trainer.{name}={folder / 'run'}" for name in ("default_root_dir", "logger.init_args.save_dir")]
    return [*(f"--config={path}" for path in stack), f"--data.root={root}", *to, *options]


#: Two steps, without a land cover.
SHORT = (
    *("--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--model.center.alpha=1", "--data.val_share=0"),
    *("--trainer.callbacks+=ContactSheet", "--trainer.callbacks.path=views.png"),
)


def losses(folder: Path) -> list[float]:
    """The losses that a run in a folder has logged."""
    logged = pd.read_csv(folder / "run/lightning_logs/version_0/metrics.csv")
    return logged["train/loss"].dropna().tolist()


@pytest.fixture
def tiny(tmp_path: Path, small_world: Path) -> list[str]:
    """Options of a run of seconds on the simulated world."""
    return tiny_run(tmp_path, "major_tom", small_world, "--data.tile_size=72")


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a wrong command prints."""
    return refusal(capsys, *words).splitlines()[-1]


def configured(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """The whole configuration of `terrafm fit` with some options."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *options, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_stacks_on_the_base_recipe(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    # quick.yaml and long.yaml are about the simulated world
    below = {"hardware/bf16_gradients.yaml": ["hardware/gpu8.yaml"]}.get(overlay, [])
    stack = ["pretrain.yaml", *(["data/simulated.yaml"] if "/" not in overlay else below), overlay]
    config = configured(capsys, *(f"--config={CONF / name}" for name in stack))
    own = yaml.safe_load((CONF / overlay).read_text())
    for part in ("model", "data"):
        found = flatten(config[part]["init_args"])
        for name, value in flatten(own.get(part, {}).get("init_args", {})).items():
            assert found[name] == value, f"{part}.{name}"


def test_the_progress_bar_of_a_gpu_waits_for_logging_steps_only(tmp_path: Path, monkeypatch) -> None:
    for rate, expected in ((1, 7), (3, 3)):
        options = {"callbacks": [TQDMProgressBar(rate)], "log_every_n_steps": 7, "logger": False}
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **options)
        monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
        show_progress(trainer)
        assert trainer.progress_bar_callback.refresh_rate == expected


def test_the_base_recipe_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    flat = flatten(configured(capsys, "--config=pretrain")["model"]["init_args"])
    paper = {
        "model": "terrafm_base", "modality_probability": 0.5, "fuse": True, "drop_path": 0.1,
        "crops.global_size": 224, "crops.local_size": 96, "crops.global_scale": [0.25, 1.0],
        "crops.local_scale": [0.05, 0.25], "center.alpha": 0.8, "center.momentum": 0.9, "head.prototypes": 65536,
        "head.hidden_dim": 2048, "head.bottleneck_dim": 256, "optimizer.weight_decay": [0.04, 0.4],
        "optimizer.clip_grad": 3.0, "optimizer.lr": 5e-4, "optimizer.lr_batch": 256, "schedule.warmup_epochs": 10,
        "schedule.teacher_temp": [0.04, 0.06], "schedule.teacher_momentum": [0.996, 1.0],
        "schedule.temp_warmup_epochs": 30, "schedule.min_lr": 1e-6,
    }  # fmt: skip
    assert {name: flat[name] for name in paper} == paper


def test_every_knob_of_the_augmentation_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    knobs = {
        "probability": 0.1, "illumination": 0.3, "band_gain": 0.01, "haze": 5.0, "calibration": 2.0, "band_shift": 0.1,
        "blur_probability": 0.2, "blur_sigma": [0.2, 1.0],
    }  # fmt: skip
    options = [f"--model.augmentation.{name}={value}" for name, value in knobs.items()]
    assert configured(capsys, "--config=pretrain", *options)["model"]["init_args"]["augmentation"] == knobs


def test_simulate_index_fit_resume_export_load(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way, with the figure and table at the end, and the teacher bit for bit at the other side."""
    from torchgeo.models import get_model

    from terrafm_tg.models import load_encoder_state

    world = tmp_path / "world"
    main(["simulate", str(world), "--cells=24", "--cell_size=144", "--workers=0"])
    main(["index", str(world)])
    assert "96 tiles" in capsys.readouterr().out
    report = ["--trainer.callbacks+=terrafm_tg.callbacks.HeldOutReport", f"--data.root={world}"]
    sheet = tmp_path / "views.png"
    main(["fit", *tiny, *report, "--trainer.callbacks+=ContactSheet", f"--trainer.callbacks.path={sheet}"])
    printed = capsys.readouterr().out
    assert "depth" in printed
    assert "Same place: recall@10" in printed
    folder = tmp_path / "run/lightning_logs/version_0"
    for path in (sheet, folder / "held_out.png", folder / "held_out.csv", folder / "curves.png"):
        assert path.stat().st_size > 1000, path
    last = folder / "checkpoints/last.ckpt"
    main(["fit", *tiny, f"--data.root={world}", f"--ckpt_path={last}", "--trainer.max_epochs=3"])
    resumed = tmp_path / "run/lightning_logs/version_1"
    steps = pd.read_csv(resumed / "metrics.csv")["step"]
    assert steps.min() == 8
    main(["export", str(resumed / "checkpoints/last.ckpt"), str(tmp_path / "encoder")])
    state = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    exported, _ = load_encoder_state(tmp_path / "encoder.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, state[f"teacher.{name}"]), name
    model = get_model("terrafm_tiny", weights=tmp_path / "encoder.safetensors", depth=2)
    assert model(torch.rand(2, 12, 32, 32), modality="s2l2a").shape == (2, 192)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.root=nowhere"], "nowhere"),
        (["--data.modalities=[s3]"], "s3"),
        (["--data.batch_size=1"], "batch"),
        (["--data.batch_size=4000"], "4000"),
        (["--model.center.alpha=2"], "alpha"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(
    options: list[str], said: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "fit", *tiny, *options)
    assert said in message


def test_a_checkpoint_of_other_settings_is_refused(tiny: list[str], tmp_path: Path, capsys) -> None:
    main(["fit", *tiny, "--trainer.max_epochs=1"])
    last = tmp_path / "run/lightning_logs/version_0/checkpoints/last.ckpt"
    message = fails(capsys, "fit", *tiny, f"--ckpt_path={last}", "--model.optimizer.lr=0.5")
    assert "lr" in message
    assert "0.5" in message
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(last.read_bytes()[:5000])
    assert "damaged.ckpt" in fails(capsys, "fit", *tiny, f"--ckpt_path={damaged}")
    assert "damaged.ckpt" in fails(capsys, "export", str(damaged), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("data", "kind", "options"),
    [
        ("terramesh", "folder", ["--data.tile_size=222"]),
        ("major_tom", "major_tom", ["--data.ambiguous_offset=present", "--model.modalities=[s2l2a]"]),
    ],
)
def test_fit_on_real_tiles(data: str, kind: str, options: list[str], tmp_path: Path, real_data: Path, monkeypatch):
    """Five TerraMesh sites in all three sensors; two Major-TOM cells in L2A."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(real_data / data, data)
    main(["fit", *tiny_run(tmp_path, kind, tmp_path / data, *options), *SHORT])
    assert Path("views.png").stat().st_size > 10_000
    assert np.isfinite(losses(tmp_path)).tolist() == [True] * 2


SCRIPT = Path(__file__).resolve().parents[2] / "conf/slurm/pretrain.sbatch"


def submit(folder: Path, job: str, *options: str, **environment: str) -> tuple[subprocess.Popen, Path]:
    """Starts the script; ``job`` is what its step does. The log has a line for each of SLURM's commands."""
    log, commands = folder / "log", folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, then in (("srun", job), ("scontrol", "")):
        (commands / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {log}\n{then}\n')
        (commands / name).chmod(0o755)
    path = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "TERRAFM_RUNS": str(folder)}
    sizes = {"SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "12"}
    command = ["bash", SCRIPT, "--data.root", "/tiles of mine", *options]
    return subprocess.Popen(command, env=os.environ | path | sizes | environment, cwd=folder), log


def ended(folder: Path, job: str, *options: str, status: int = 0, **environment: str) -> list[str]:
    """The log's lines when the script has ended with that status."""
    script, log = submit(folder, job, *options, **environment)
    assert script.wait() == status
    return log.read_text().splitlines()


@pytest.fixture
def last(tmp_path: Path) -> Path:
    folder = tmp_path / "lightning_logs/job-7-0/checkpoints"
    folder.mkdir(parents=True)
    return folder / "last.ckpt"


def test_a_run_begins_and_ends(tmp_path: Path, last: Path) -> None:
    (line,) = ended(tmp_path, "exit 0")
    start = "srun --kill-on-bad-exit=1 --cpus-per-task=12 terrafm fit --config conf/pretrain.yaml"
    assert line.startswith(start)
    assert "--trainer.num_nodes 4 --trainer.devices 8" in line
    assert line.endswith("--trainer.logger.init_args.version job-7-0 --data.root /tiles of mine")


def test_a_run_resumes_from_its_checkpoint_and_a_new_job_from_anothers(tmp_path: Path, last: Path) -> None:
    given = ["--ckpt_path", "job-3-0/last.ckpt"]
    for own, options, restarts in ((False, given, "0"), (True, given, "1"), (True, [], "1")):
        last.touch() if own else None
        lines = ended(tmp_path, "exit 0", *options, SLURM_RESTART_COUNT=restarts)
        words = [f"version job-7-{restarts}", "--data.root /tiles of mine", *options]
        words += [f"--ckpt_path {last}"] if own else []
        assert lines[-1].endswith(" ".join(words))


def test_a_run_that_failed_comes_back_only_where_it_got_on(tmp_path: Path, last: Path) -> None:
    last.touch()
    got_on = f"sleep 0.1; touch {last}; exit 1"
    assert "requeue" not in ended(tmp_path, "exit 1", status=1)[-1]
    assert ended(tmp_path, got_on, status=1)[-1] == "scontrol requeue 7"
    assert "requeue" not in ended(tmp_path, got_on, status=1, SLURM_RESTART_COUNT="50")[-1]


def test_a_job_whose_time_is_up_saves_and_comes_back(tmp_path: Path, last: Path) -> None:
    job, log = submit(tmp_path, f"trap 'echo saved >> {tmp_path / 'log'}; exit 143' TERM; sleep 3 & wait")
    while not log.exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert log.read_text().splitlines()[-2:] == ["saved", "scontrol requeue 7"]

"""`terrafm profile` for a configuration: its table, figure and JSON, and what follows from them."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from data.eurosat import data as eurosat
from terrafm_tg.cli.main import main
from terrafm_tg.profiling.profile import Profile, Run, Stage, read_profile
from terrafm_tg.profiling.report import bound, in_words

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = [
    *(f"--config={CONF / name}.yaml" for name in ("pretrain", "size/tiny", "../benchmarks/memory", "hardware/cpu")),
    *("--model.depth=2", "--model.crops.global_size=48", "--model.crops.local_size=32", "--model.crops.local_crops=2"),
    *("--model.head.prototypes=256", "--model.head.hidden_dim=64", "--data.tile_size=96", "--data.batch_size=4"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of the JSON and figure of a profile of 64 configured processes, and what the command printed."""
    folder = tmp_path_factory.mktemp("profile")
    many = ["--trainer.devices=8", "--trainer.num_nodes=8", "--trainer.strategy=ddp"]
    files = [f"--json={folder / 'p.json'}", f"--figure={folder / 'p.png'}"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "120")
        patch.chdir(folder)
        main(["profile", *TINY, *many, "--trainer.accumulate_grad_batches=2", "--steps=3", "--warmup=1", *files])
    return folder, printed.getvalue()


def test_the_table_tells_stages_rate_memory_limit_and_cost(written: tuple[Path, str]) -> None:
    folder, printed = written
    for part in ("loader", "transfer", "views", "teacher", "student", "loss", "backward", "optimizer", "reduction"):
        assert part in printed, part
    for part in ("samples/s", "of the peak", "E[M] = 1.714", "Peak memory", "Bound by", "64 processes", "hours"):
        assert part in printed, part
    assert sorted(path.name for path in folder.iterdir()) == ["p.json", "p.png"]  # and nothing beside them
    assert imread(folder / "p.png").std() > 0.05


def test_the_numbers_fit_each_other(written: tuple[Path, str]) -> None:
    found = read_profile(written[0] / "p.json")
    assert sum(stage.share for stage in found.stages) == pytest.approx(1)
    assert sum(stage.seconds for stage in found.stages) == pytest.approx(found.seconds)
    assert found.batches == 4  # whole optimizer steps of two batches each
    assert found.samples_per_second == pytest.approx(4 / found.seconds)
    counted = sum(stage.operations for stage in found.stages if stage.operations)
    assert counted == pytest.approx(4 * found.operations)
    assert 0 < found.mfu < 1.5
    assert found.modalities_met == pytest.approx(found.modalities, abs=0.5)
    assert found.reduced["centers"] == 2 * 4 * 257
    assert found.run.samples == pytest.approx(150 * 6_120_000, rel=1e-3)
    assert found.run.steps == found.run.samples // (64 * 4 * 2)
    hours = found.run.samples / 64 / 4 * found.seconds / found.run.efficiency / 3600
    assert found.run.hours == pytest.approx(hours)
    derived = json.loads((written[0] / "p.json").read_text())["derived"]
    assert derived["mfu"] == found.mfu


def profile(**changes: object) -> Profile:
    """A second per batch of 10, half of it matrix products at the measured rate."""
    stages = (
        Stage("loader", 0.01, 0.01),
        Stage("views", 0.09, 0.09),
        Stage("student", 0.3, 0.3, 2e13),
        Stage("backward", 0.6, 0.6, 3e13),
    )
    known = {"task": "terrafm_base", "settings": {}, "device": "NVIDIA H200", "processes": 1, "batch": 10}
    known |= {"batches": 5, "seconds": 1.0, "deviation": 0.0, "stages": stages, "operations": 5e12}
    known |= {"operations_as_written": 6e12, "modalities": 12 / 7, "modalities_met": None, "peak": 100.0}
    known |= {"precision": "bf16-mixed", "waiting": 0.0, "memory": {"host": 2**30, "device": 2**33}}
    known |= {"reduced": {"gradients": 400_000_000, "centers": 524_296}}
    return Profile(**(known | changes))


def test_what_bounds_a_step() -> None:
    assert bound(profile()).startswith("Matrix products")
    slow = profile(peak=200.0)
    assert bound(slow).startswith("What surrounds the matrix products")
    assert "backward (45% of the step) and student (20% of the step)" in bound(slow)
    assert bound(profile(waiting=0.9)).startswith("The host")
    hungry = (Stage("loader", 0.5, 0.5), Stage("transfer", 0.1, 0.1), Stage("backward", 0.4, 0.4, 5e13))
    assert "60% of the step, most of it the loader" in bound(profile(stages=hungry))
    assert "not counted: backward" in bound(profile(operations=None))


def test_the_whole_run_in_words() -> None:
    run = Run(samples=918_000_000, steps=896_484, processes=64, efficiency=0.97, hours=92.0)
    said = in_words(profile(run=run, graphs=3))[-1]
    assert "918 million samples in 896,484 optimizer steps on 64 processes" in said
    assert "efficiency of 97.0%: 3.8 days, 5,888 GPU-hours" in said
    assert "3 during the warm-up, 0 afterwards" in in_words(profile(graphs=3))[-1]


def test_json_is_read_back(tmp_path: Path) -> None:
    found = profile(run=Run(10, 1, 1, 1.0, 2.0))
    found.write(tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps=0"], "measures nothing"),
        (["--trainer.accelerator=gpu"], "there is no GPU here"),
        (["--trainer.max_steps=2", "--warmup=3"], "Training ended after 2 batches"),
        (["--data.tile_size=100"], "multiple of 6"),
        (["--data.batch_size=1"], "at least 2"),
        (["--json=/dev/null/p.json"], "/dev/null/p.json cannot be written"),
        (["--json=."], "cannot be written (it is a folder)"),
        (["--figure=p.xyz"], "p.xyz is of no known format"),
        (["--data.epoch_length=3"], "One step takes 4 tiles and an epoch has 3"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("terrafm_tg.cli.profile.profile_table", None)  # no table: nothing was measured
    with pytest.raises(SystemExit):
        main(["profile", *TINY, *options])
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_another_task_is_counted_by_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any configuration: fine-tuning on images of EuroSAT's format."""
    eurosat.create(tmp_path / "data")
    options = {"model.model": "terrafm_tiny", "model.depth": 2, "model.weights": "null", "data.size": 32}
    options |= {"data.root": tmp_path / "data", "data.batch_size": 2, "data.num_workers": 0}
    options |= {"trainer.accelerator": "cpu", "trainer.devices": 1, "steps": 2, "json": tmp_path / "p.json"}
    config = f"--config={CONF / 'finetune/eurosat.yaml'}"
    main(["profile", config, *(f"--{key}={value}" for key, value in options.items())])
    assert "as torch counts a step" in capsys.readouterr().out
    found = read_profile(tmp_path / "p.json")
    tokens, width, depth = 1 + 4, 192, 2
    forward = 2 * depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert found.operations > forward
    assert found.modalities is None

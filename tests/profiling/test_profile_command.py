"""`terrafm profile` for a configuration: its table and JSON, and what follows from them."""

import json
import math
from pathlib import Path

import pytest

from data import labelled
from refusals import CONF, IN_MEMORY, refusal
from terrafm_tg.cli.main import main
from terrafm_tg.profiling.profile import Profile, read_profile
from terrafm_tg.profiling.scaling import Network, predict_step
from terrafm_tg.profiling.step import bound, in_words

#: An allocation of one task, as `salloc -n1` gives.
SLURM = {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive"}


def test_a_configuration_of_64_processes_is_measured_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table tells stages, rate, memory, limit and cost; the numbers fit each other."""
    for name, value in (SLURM | {"COLUMNS": "140"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    many = [f"--config={CONF / 'hardware' / name}.yaml" for name in ("slurm", "fsdp")]
    here = ["--trainer.accelerator=cpu", "--data.batch_size=4", "--data.num_workers=0"]
    main(["profile", *IN_MEMORY, *many, *here, "--trainer.accumulate_grad_batches=2", "--steps=3", "--warmup=1",
          "--json=new/p.json"])  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("loader", "transfer", "views", "teacher", "student", "loss", "backward", "optimizer", "reduction",
                 "samples/s", "of the peak", "Peak memory", "Bound by", "64 processes", "hours"):  # fmt: skip
        assert part in printed, part
    assert [str(path) for path in Path().rglob("*.*")] == ["new/p.json"]  # and nothing beside it
    found = read_profile(Path("new/p.json"))
    assert sum(found.stages.values()) == pytest.approx(found.seconds)
    assert found.batches == 4  # whole optimizer steps of two batches each
    assert found.samples_per_second == pytest.approx(4 / found.seconds)
    assert 0 < found.mfu < 1.5
    run = found.run
    assert run["samples"] == pytest.approx(150 * 6_120_000, rel=1e-3)
    assert run["steps"] == run["samples"] // (64 * 4 * 2)
    assert run["hours"] == pytest.approx(run["samples"] / 64 / 4 * found.seconds / run["efficiency"] / 3600)
    assert json.loads(Path("new/p.json").read_text())["derived"]["mfu"] == found.mfu


def profile(**changes: object) -> Profile:
    """A second per batch of 10, half of it matrix products at the measured rate."""
    known = {"task": "terrafm_base", "device": "NVIDIA H200", "precision": "bf16-mixed", "processes": 1, "batch": 10,
             "accumulated": 1, "batches": 5, "seconds": 1.0, "deviation": 0.0, "peak": 100.0, "waiting": 0.0,
             "stages": {"loader": 0.01, "views": 0.09, "student": 0.3, "backward": 0.6},
             "operations": {"student": 20 * 10**12, "backward": 30 * 10**12}, "gradients": 400_000_000,
             "memory": {"host": 2**30, "device": 2**33}, "run": None, "versions": {}}  # fmt: skip
    return Profile(**(known | changes))


def test_what_bounds_a_step() -> None:
    assert bound(profile()).startswith("Matrix products")
    slow = profile(peak=200.0)
    assert bound(slow).startswith("What surrounds the matrix products")
    assert "backward (45% of the step) and student (20% of the step)" in bound(slow)
    assert bound(profile(waiting=0.9)).startswith("The host")
    hungry = {"loader": 0.5, "transfer": 0.1, "backward": 0.4}
    assert "60% of the step, most of it the loader" in bound(profile(stages=hungry))


def test_the_whole_run_in_words() -> None:
    run = {"samples": 918_000_000, "steps": 896_484, "processes": 64, "efficiency": 0.97, "hours": 92.0}
    said = in_words(profile(run=run | {"device_hours": 5888.0}))[-1]
    assert "918 million samples in 896,484 optimizer steps on 64 processes" in said
    assert "efficiency of 97.0%: 3.8 days, 5,888.0 GPU-hours" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps=0"], "measures nothing"),
        (["--trainer.accelerator=gpu"], "there is no GPU here"),
        (["--trainer.max_steps=2", "--warmup=3"], "Training ended after 2 batches"),
        (["--data.tile_size=100"], "multiple of 6"),
        (["--data.batch_size=1"], "at least 2"),
        (["--json=/dev/null/p.json"], "/dev/null cannot be read or written"),
        (["--data.epoch_length=3"], "One step takes 4 tiles and an epoch has 3"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("terrafm_tg.cli.profile.profile_table", None)  # no table: nothing was measured
    assert said in refusal(capsys, "profile", *IN_MEMORY, *options)


def test_another_task_is_counted_by_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any configuration: fine-tuning on images of EuroSAT's format."""
    labelled.eurosat(tmp_path / "data")
    options = {"model.model": "terrafm_tiny", "model.depth": 2, "model.weights": "null", "data.size": 32}
    options |= {"data.root": tmp_path / "data", "data.batch_size": 2, "data.num_workers": 0}
    options |= {"trainer.accelerator": "cpu", "trainer.devices": 1, "steps": 2, "json": tmp_path / "p.json"}
    config = f"--config={CONF / 'finetune/eurosat.yaml'}"
    main(["profile", config, *(f"--{key}={value}" for key, value in options.items())])
    assert "as torch counts a step" in capsys.readouterr().out
    found = read_profile(tmp_path / "p.json")
    tokens, width, depth = 1 + 4, 192, 2
    forward = 2 * depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert found.operations["rest of the forward pass"] > 2 * forward  # of two images
    assert found.operations["backward"] > 2 * forward


#: A batch of 256 tiles in 340 ms.
STEP = {"batch": 256, "seconds": 0.34, "stages": {"student": 0.1, "loss": 0.04, "backward": 0.2}}


def test_one_process_reduces_nothing() -> None:
    assert predict_step(profile(**STEP, deviation=0.1), 1) == (0.34, 1, 0, 0, 0)


def test_a_ring_moves_almost_twice_the_bytes() -> None:
    net = Network(machine=8, within=100, between=50)
    assert net.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9, abs=1e-4)
    assert net.all_reduce(1e9, 64) == pytest.approx(2 * 63 / 64 * 1e9 / 50e9, abs=2e-4)
    assert net.all_reduce(0, 8) == pytest.approx(30e-6)  # a tree of three levels, up and down
    assert net.all_reduce(0, 2) == pytest.approx(10e-6)
    assert net.all_reduce(0, 512) == pytest.approx((6 * 5 + 12 * 15) * 1e-6)


def test_what_fits_beside_the_backward_pass_costs_nothing() -> None:
    hidden = predict_step(profile(**STEP), 64)
    assert hidden.seen == pytest.approx(hidden.reduction / 8)  # the last of 8 buckets
    assert hidden.efficiency > 0.99
    thin = predict_step(profile(**STEP), 64, Network(between=1.25))  # 10 Gbit/s per machine
    assert thin.reduction == pytest.approx(2 * 63 / 64 * 0.4 / 1.25, rel=0.01)
    assert thin.seen == pytest.approx(thin.reduction - 0.2 * 7 / 8, rel=0.01)
    assert thin.seconds == pytest.approx(0.34 + thin.seen)
    four = predict_step(profile(**STEP, accumulated=4), 64, Network(between=1.25))
    assert four.seen == pytest.approx(thin.seen)  # reduces once in several batches
    assert four.efficiency > thin.efficiency


def test_everyone_waits_for_the_slowest() -> None:
    slowest = predict_step(profile(**STEP, deviation=0.01), 512).slowest
    assert slowest == pytest.approx(0.01 * math.sqrt(2 * math.log(512)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    profile(**STEP).write(one)
    profile(**STEP, processes=2).write(two)
    main(["profile", "scaling", str(one), "--gpus=[8,64]", "--network.between=12.5"])
    printed = capsys.readouterr().out
    assert "12.5 GB/s between" in " ".join(printed.split())
    assert "samples/s" in printed
    for options, said in (
        (["nowhere.json"], "There is no nowhere.json"),
        ([str(one), "--network.between=0"], "sizes and rates above 0"),
        ([__file__], "is not a profile"),
        ([str(two)], "profile one process"),
    ):
        assert said in refusal(capsys, "profile", "scaling", *options)

"""The prediction for many GPUs follows its formula, and names what limits it."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.profile import Profile, Stage
from terrafm_tg.profiling.scaling import Network, predict_step, scaling_table
from terrafm_tg.utils.files import write_json


def profile(gradients: int = 400_000_000, backward: float = 0.2, **changes: object) -> Profile:
    """A batch of 256 tiles in 340 ms."""
    stages = (Stage("student", 0.1, 0.3), Stage("loss", 0.01, 0.03), Stage("backward", backward, 0.6))
    known = {"task": "terrafm_base", "settings": {}, "device": "NVIDIA H200", "processes": 1, "batch": 256}
    known |= {"batches": 5, "seconds": 0.34, "deviation": 0.0, "stages": stages, "operations": None}
    known |= {"operations_as_written": None, "modalities": None, "modalities_met": None, "peak": 790.0}
    known |= {"precision": "bf16-mixed", "waiting": 0.0, "memory": {"host": 2**30, "device": 2**33}}
    known |= {"reduced": {"gradients": gradients, "centers": 524_296}}
    return Profile(**(known | changes))


def test_one_process_reduces_nothing() -> None:
    alone = predict_step(profile(deviation=0.1), 1)
    assert alone.efficiency == 1
    assert alone.limit == "computation"
    assert alone.samples_per_second == pytest.approx(256 / 0.34)


def test_a_ring_moves_almost_twice_the_bytes() -> None:
    net = Network(machine=8, within=100, between=50, latency=0, hop=0)
    assert net.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)
    assert net.all_reduce(1e9, 64) == pytest.approx(2 * 63 / 64 * 1e9 / 50e9)
    assert net.all_reduce(1e9, 1) == 0
    slow = Network(machine=8, within=100, between=50, latency=5, hop=10)
    assert slow.all_reduce(0, 8) == pytest.approx(30e-6)  # a tree of three levels, up and down
    assert slow.all_reduce(0, 2) == pytest.approx(10e-6)
    assert slow.all_reduce(0, 512) == pytest.approx((6 * 5 + 12 * 10) * 1e-6)


def test_what_fits_beside_the_backward_pass_costs_nothing() -> None:
    hidden = predict_step(profile(), 64)
    assert hidden.gradients == pytest.approx(hidden.reduction / 8)  # the last of 8 buckets
    assert hidden.efficiency > 0.99
    thin = predict_step(profile(), 64, Network(between=1.25))  # 10 Gbit/s per machine
    assert thin.reduction == pytest.approx(2 * 63 / 64 * 0.4 / 1.25, rel=0.01)
    assert thin.gradients == pytest.approx(thin.reduction - 0.2 * 7 / 8, rel=0.01)
    assert thin.limit.startswith("gradients (")
    assert thin.seconds == pytest.approx(0.34 + thin.gradients + thin.centers)


def test_everyone_waits_for_the_slowest() -> None:
    scaled = predict_step(profile(deviation=0.01), 512)
    assert scaled.slowest == pytest.approx(0.01 * math.sqrt(2 * math.log(512)))
    assert scaled.limit.startswith("the slowest (")


def test_accumulation_reduces_once_in_several_batches() -> None:
    one, four = (predict_step(profile(accumulated=n), 64, Network(between=1.25)) for n in (1, 4))
    assert four.gradients == pytest.approx(one.gradients)
    assert four.efficiency > one.efficiency
    assert four.samples == 4 * one.samples


def _broken(folder: Path) -> list[tuple[list[str], str]]:
    """Files that have a profile's names and not its numbers, and what is said of each."""
    cases = []
    for changes, said in (
        ({"reduced": {}}, "reduced gradients is None"),
        ({"reduced": {"gradients": 1}}, "reduced centers is None"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": "1"}, "seconds is '1'"),
        ({"deviation": -1.0}, "deviation is -1.0"),
        ({"deviation": math.nan}, "deviation is nan"),
        ({"accumulated": None}, "accumulated is None"),
        ({"stages": (Stage("student", "1", 0.3),)}, "stage student is '1'"),
    ):
        path = folder / f"{len(cases)}.json"
        write_json(path, asdict(profile(**changes)) | {"derived": {}})
        cases.append(([str(path)], said))
    return cases


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile().write(tmp_path / "p.json")
    result = f"--result={tmp_path / 'p.json'}"
    main(["profile", "scaling", result[9:], "--gpus=[8,64]", "--network.between=12.5"])
    printed = capsys.readouterr().out
    assert "12.5 GB/s between" in printed
    assert "samples/s" in printed
    for options, said in (
        (["nowhere.json"], "There is no nowhere.json"),
        ([result[9:], "--network.between=0"], "sizes and rates above 0"),
        ([__file__], "is not a profile"),
        *_broken(tmp_path),
    ):
        with pytest.raises(SystemExit):
            main(["profile", "scaling", *options])
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
    with pytest.raises(TerraFMError, match="profile one process"):
        scaling_table(profile(processes=2), [8])

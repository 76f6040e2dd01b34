"""The prediction for many GPUs follows its formula."""

import math
from pathlib import Path

import pytest
from test_profile_command import profile

from refusals import refusal
from terrafm_tg.cli.main import main
from terrafm_tg.profiling.scaling import Network, predict_step

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

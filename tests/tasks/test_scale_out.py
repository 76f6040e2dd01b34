"""One large batch, accumulated micro-batches, and 1, 2 and 4 processes give the same update."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("scale_processes.py")
#: Of each rank, what `scale_processes.Record` wrote.
type Runs = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> Callable[..., Runs]:
    def start(epochs: int, *ways: str) -> Runs:
        folder = tmp_path_factory.mktemp("ways")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, SCRIPT, folder, small_world, str(epochs), "joint", *ways]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return {
            name: [torch.load(path) for path in sorted(folder.glob(f"{name}_*.pt"))]
            for name in ("joint", *ways)
        }

    return start


def check(runs: Runs, epochs: int) -> None:
    """Each step of each way against the joint batch's."""
    (whole,) = runs.pop("joint")
    joint, start = whole["steps"], whole["start"]
    assert len(joint) == 2 * epochs  # the tail, less than a step, is left out
    for name, ranks in runs.items():
        for number, one in enumerate(joint):
            steps = [rank["steps"][number] for rank in ranks]
            views = {key: value for step in steps for key, value in step["views"].items()}
            assert set(views) == set(one["views"])  # positions of the epoch's list, and sensors
            for key, value in one["views"].items():
                torch.testing.assert_close(views[key], value, rtol=1e-5, atol=1e-6)
            loss = torch.stack([torch.stack(step["loss"]).mean() for step in steps]).mean()
            torch.testing.assert_close(loss, one["loss"][0], rtol=2e-6, atol=0)
            for step in steps:
                assert step["lr"] == one["lr"]
                torch.testing.assert_close(step["centers"], one["centers"], rtol=1e-5, atol=1e-7)
                for key, grad in one["grads"].items():
                    away = (step["grads"][key] - grad).norm()
                    assert away <= 2e-5 * grad.norm() + 1e-8, (name, number, key)
                moved, away = one["state"] - start, step["state"] - one["state"]
                # AdamW divides by the gradient's size: where that is rounding alone, a step may differ
                assert 0 < away.norm() <= 1e-4 * moved.norm(), (name, number)
        assert (one["centers"] != 0).all()


def test_an_update_does_not_depend_on_how_its_batch_is_shared_out(runs) -> None:
    shared = runs(1, "accumulated", "four")
    assert [len(ranks) for ranks in shared.values()] == [1, 1, 4]
    check(shared, 1)


@pytest.mark.soak
def test_nor_do_two_epochs_on_two_processes(runs) -> None:
    check(runs(2, "accumulated", "two", "four", "both"), 2)

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("terrafm_processes.py")


def start(what: str, folder: Path, *more: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, SCRIPT, what, folder, *more]
    with (folder / "log").open("w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
    assert code == 0, (folder / "log").read_text()[-4000:]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    start("ranks", folder)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def test_two_processes_give_the_losses_of_one(ranks) -> None:
    """Although rank 0 holds only S1 at the first step, and rank 1 only L2A, under plain ddp."""
    assert set(ranks) == {"one_0", "two_0", "two_1"}
    mean = (torch.stack(ranks["two_0"]["losses"]) + torch.stack(ranks["two_1"]["losses"])) / 2
    torch.testing.assert_close(mean, torch.stack(ranks["one_0"]["losses"]), rtol=2e-6, atol=1e-6)


def test_two_processes_give_the_gradients_of_one(ranks) -> None:
    for step, joint in enumerate(ranks["one_0"]["grads"]):
        for rank in ("two_0", "two_1"):
            grads = ranks[rank]["grads"][step]
            assert set(grads) == set(joint)
            for name, grad in joint.items():
                assert (grads[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-8, (step, name)


def test_two_processes_give_the_centers_of_one(ranks) -> None:
    for rank in ("two_0", "two_1"):
        for ours, joint in zip(ranks[rank]["centers"], ranks["one_0"]["centers"], strict=True):
            torch.testing.assert_close(ours, joint, rtol=1e-5, atol=1e-6)
    assert ranks["one_0"]["centers"][-1][1].abs().max() > 0


def read(path: Path) -> dict[str, list]:
    return {line[0]: line[1:] for line in map(json.loads, path.read_text().splitlines())}


def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, small_world: Path) -> None:
    """Bit for bit, with a worker, stochastic depth and validation between.

    Once from a checkpoint of an epoch's last batch, once from mid-epoch with accumulation.
    """
    start("kills", tmp_path, small_world)
    for accumulate, place, first in ((1, 5, "1/0"), (2, 3, "0/2")):
        whole = read(tmp_path / f"whole_{accumulate}.txt")
        killed = read(tmp_path / f"killed_{accumulate}.txt")
        resumed = read(tmp_path / f"killed_resumed_{accumulate}.txt")
        assert len(whole) == 8
        assert killed == dict(list(whole.items())[:place])
        assert next(iter(resumed)) == first
        assert resumed == dict(list(whole.items())[list(whole).index(first) :])

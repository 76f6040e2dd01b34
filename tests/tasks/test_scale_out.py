"""How a run is shared out does not change it: processes, accumulated micro-batches, and processes that die."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import scale_processes
import torch
from death_processes import LENGTH, STEP

from processes import start as start_process


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> Callable[..., Path]:
    """Runs in processes that one process forks; gives the folder with what they wrote."""

    def start(epochs: int, *runs: str) -> Path:
        folder = tmp_path_factory.mktemp("runs")
        process = start_process(scale_processes.run, folder, small_world, epochs, *runs)
        process.join()
        assert process.exitcode == 0
        return folder

    return start


@pytest.fixture(scope="module")
def folder(start: Callable[..., Path]) -> Path:
    shared = ("joint", "accumulated", "four", "sharded", "mixed_joint", "mixed")
    return start(1, *shared, "whole,1,,", "killed,2,kill,", "one,1,,killed", "three,3,,killed")


def check(folder: Path, ways: dict[str, int], epochs: int, of: str = "joint") -> None:
    """Each step of each way, a name with its number of processes, against the joint batch's."""
    whole = torch.load(folder / f"{of}_0.pt")
    joint, start = whole["steps"], whole["start"]
    assert len(joint) == 2 * epochs  # the tail, less than a step, is left out
    assert joint[0]["lr"] == pytest.approx(8e-3 * 8 / 256)  # by the tiles of a step, which all share
    for name, processes in ways.items():
        ranks = [torch.load(folder / f"{name}_{rank}.pt")["steps"] for rank in range(processes)]
        assert [len(rank) for rank in ranks] == [len(joint)] * processes
        for number, one in enumerate(joint):
            steps = [rank[number] for rank in ranks]
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


def test_an_update_does_not_depend_on_how_its_batch_is_shared_out(folder: Path) -> None:
    check(folder, {"accumulated": 1, "four": 4, "sharded": 2}, 1)


def test_nor_where_one_process_has_radar_alone_and_the_other_none(folder: Path) -> None:
    check(folder, {"mixed": 2}, 1, "mixed_joint")


@pytest.mark.soak
def test_nor_do_two_epochs_on_two_processes(start: Callable[..., Path]) -> None:
    ways = {"accumulated": 1, "two": 2, "four": 4, "both": 2, "sharded": 2}
    check(start(2, "joint", *ways), ways, 2)


def steps(folder: Path, name: str) -> dict[int, tuple[list[int], float]]:
    """Of each step of a run, the positions in the epoch's list and the loss, over all ranks."""
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob(f"{name}_*.txt"))
    ]
    joint: dict[int, tuple[list[int], float]] = {}
    for lines in zip(*ranks, strict=True):
        (step,) = {line[1] for line in lines}
        loss = sum(line[3] for line in lines) / len(lines)
        joint[step] = (sorted(position for line in lines for position in line[2]), loss)
    return joint


def check_resumed(folder: Path, killed: str, name: str) -> None:
    """A killed run, of which the other rank says how to go on, and its continuation against one that was not."""
    said = (folder / f"{killed}_0.log").read_text()
    advice = f"resume with the same command and --ckpt_path {folder / killed}/last.ckpt"
    assert re.search(rf"TerraFMError: Rank 1 on \S+ \(of 2\) has ended .* \(step 3\): {advice}\.$", said.strip())
    whole = steps(folder, "whole")
    assert {step: positions for step, (positions, _) in whole.items()} == {
        step: [*range(STEP * (step - 1), STEP * step)] for step in range(1, LENGTH // STEP + 1)
    }
    resumed = steps(folder, killed) | steps(folder, name)
    assert min(steps(folder, name)) == 3  # of step 2 is the last checkpoint
    assert resumed.keys() == whole.keys()
    for step, (positions, loss) in whole.items():
        assert resumed[step][0] == positions
        assert resumed[step][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["one", "three"])
def test_its_run_goes_on_with_fewer_and_with_more_as_if_it_had_not_died(folder: Path, name: str) -> None:
    check_resumed(folder, "killed", name)


@pytest.mark.soak
def test_runs_go_on_from_shares_to_shares_to_none_and_back(start: Callable[..., Path]) -> None:
    """A checkpoint of FSDP is one of any other run."""
    more = ("sharded_three,3,,sharded_killed", "one,1,,sharded_killed", "sharded_two,2,,killed")
    folder = start(1, "whole,1,,", "sharded_killed,2,kill,", "killed,2,kill,", *more)
    for name in ("sharded_three", "one"):
        check_resumed(folder, "sharded_killed", name)
    check_resumed(folder, "killed", "sharded_two")

"""How a run is shared out does not change it: processes, accumulated micro-batches, and processes that die."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import scale_processes
import torch
from stopped_runs import Run

from processes import start as start_process
from refusals import CONF

#: Tiles of a step of the runs that die.
STEP = 12
#: The last rank ends behind three steps.
KILL = "--trainer.callbacks.kill_at=3"


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
    return start(1, "joint", "accumulated", "four", "sharded", "mixed_joint", "mixed")


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


def go_on(folder: Path, world: Path, name: str, ranks: int, *options: str, after: Run | None = None) -> Run:
    """Six steps and a tail of `terrafm fit` to its end; over shares where its name begins with "sharded"."""
    words = ["--trainer.max_epochs=1", f"--data.epoch_length={6 * STEP + 5}", *options]
    words += [f"--config={CONF / 'hardware/fsdp.yaml'}"] if name.startswith("sharded") else []
    words += [f"--ckpt_path={after.folder / 'last.ckpt'}"] if after else []
    run = Run(folder / name, world, *words, ranks=ranks, step=STEP)
    run.end(600)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_world: Path) -> tuple[Run, Run]:
    """One that ended, and one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    return go_on(folder, small_world, "whole", 1), go_on(folder, small_world, "killed", 2, KILL)


def steps(run: Run) -> dict[int, tuple[list[int], float]]:
    """Of each step, the positions in the epoch's list and the loss, over all ranks."""
    ranks = [run.losses(rank) for rank in range(len(run.ranks))]
    joint = {}
    for step in ranks[0]:
        positions, losses = zip(*(rank[step] for rank in ranks), strict=True)
        joint[step] = sorted(itertools.chain(*positions)), sum(map(float.fromhex, losses)) / len(ranks)
    return joint


def check_resumed(whole: Run, killed: Run, resumed: Run) -> None:
    """A killed run, of which the other rank says how to go on, and its continuation against one that was not."""
    advice = f"resume with the same command and --ckpt_path {killed.folder}/last.ckpt"
    assert re.search(rf"error: Rank 1 on \S+ \(of 2\) has ended .* \(step 3\): {advice}\.$", killed.log(), re.MULTILINE)
    undisturbed = steps(whole)
    assert {step: positions for step, (positions, _) in undisturbed.items()} == {
        step: [*range(STEP * (step - 1), STEP * step)] for step in range(1, 7)
    }
    assert min(steps(resumed)) == 3  # of step 2 is the last checkpoint
    both = steps(killed) | steps(resumed)
    assert both.keys() == undisturbed.keys()
    for step, (positions, loss) in undisturbed.items():
        assert both[step][0] == positions
        assert both[step][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 3])
def test_its_run_goes_on_with_fewer_and_with_more_as_if_it_had_not_died(
    ranks: int, runs: tuple[Run, Run], tmp_path: Path, small_world: Path
) -> None:
    check_resumed(*runs, go_on(tmp_path, small_world, "resumed", ranks, after=runs[1]))


@pytest.mark.soak
def test_runs_go_on_from_shares_to_shares_to_none_and_back(
    runs: tuple[Run, Run], tmp_path: Path, small_world: Path
) -> None:
    """A checkpoint of FSDP is one of any other run."""
    whole, killed = runs
    shares = go_on(tmp_path, small_world, "sharded_killed", 2, KILL)
    for name, ranks in (("sharded_three", 3), ("one", 1)):
        check_resumed(whole, shares, go_on(tmp_path, small_world, name, ranks, after=shares))
    check_resumed(whole, killed, go_on(tmp_path, small_world, "sharded_two", 2, after=killed))

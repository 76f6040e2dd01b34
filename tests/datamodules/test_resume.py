"""A run killed with SIGKILL and resumed has the batches and losses of one that was not killed."""

import functools
import json
import signal

import pytest
import toy_runs

from processes import start

# 6 batches of 5 in each epoch of 31 draws. Settings of the trainer, number of workers, settings of the checkpoint, and
# the batch in which it dies.
LATE = {"every_n_epochs": 1, "save_on_train_epoch_end": False}
RUNS = {
    "in mid-epoch": ({"max_epochs": 3}, 2, {"every_n_train_steps": 4}, 10),
    "on the last batch of an epoch": ({"max_epochs": 3}, 2, {"every_n_train_steps": 6}, 8),
    "at the end of an epoch": ({"max_epochs": 3}, 1, {"every_n_epochs": 1}, 14),
    "with validation in mid-epoch": ({"max_epochs": 3, "val_check_interval": 2}, 2, LATE, 9),
    "with accumulation": ({"max_epochs": 3, "accumulate_grad_batches": 2}, 2, {"every_n_train_steps": 2}, 10),
    "counted in steps, on the last batch": ({"max_steps": 15, "max_epochs": -1}, 2, {"every_n_train_steps": 6}, 9),
    "with fewer batches than exist": ({"max_epochs": 3, "limit_train_batches": 4}, 2, {"every_n_train_steps": 4}, 6),
}
#: Left to `make soak`; those above cover the same branches, if not in every combination.
LONG = {
    "in the first epoch": ({"max_epochs": 2}, 2, {"every_n_train_steps": 3}, 4),
    "after the last batch, with validation": ({"max_epochs": 3, "val_check_interval": 1.0}, 1, LATE, 9),
    "with accumulation, on the last batch": (
        {"max_epochs": 3, "accumulate_grad_batches": 4}, 0, {"every_n_train_steps": 2}, 9
    ),
    "counted in steps": ({"max_steps": 15, "max_epochs": -1}, 2, {"every_n_train_steps": 4}, 10),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Lines of a run that is not killed; without workers, validation, checkpoints: none may matter."""

    @functools.cache
    def lines(trainer: str) -> list[str]:
        folder = tmp_path_factory.mktemp("whole")
        settings = {"trainer": json.loads(trainer), "data": {"num_workers": 0}, "checkpoint": {}}
        assert run(folder, "whole", settings) == 0
        return (folder / "whole.jsonl").read_text().splitlines()

    return lines


def run(*args, **kwargs) -> int:
    process = start(toy_runs.run, *args, **kwargs)
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("case", [*RUNS, *(pytest.param(case, marks=pytest.mark.soak) for case in LONG)])
def test_killed_and_resumed_equals_not_killed(case, whole_run, tmp_path) -> None:
    trainer, workers, checkpoint, kill_at = (RUNS | LONG)[case]
    settings = {"trainer": trainer, "data": {"num_workers": workers}, "checkpoint": checkpoint}
    assert run(tmp_path, "killed", settings, kill_at=kill_at) == -signal.SIGKILL
    assert run(tmp_path, "resumed", settings, resume=True) == 0

    whole = whole_run(json.dumps({k: v for k, v in trainer.items() if k != "val_check_interval"}))
    killed, resumed = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("killed", "resumed"))
    assert killed == whole[: kill_at + 1]
    assert len(set(whole)) == len(whole)
    done = len(whole) - len(resumed)
    assert 0 < done <= kill_at + 1
    assert resumed == whole[done:]

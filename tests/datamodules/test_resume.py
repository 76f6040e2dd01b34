"""A run killed with SIGKILL and resumed has the batches and losses of one that was not killed."""

import functools
import json
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_runs
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from memory_tiles import MemoryDataModule
from toy_runs import QUIET, Toy

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


LENGTH = 31


def fit(folder: Path, name: str, save_at: int | None = None, resume: str | None = None, **settings: int) -> list:
    """Two epochs of 31 draws; gives the epoch and positions of each batch.

    A checkpoint is written in the middle of the run, as a signal may ask for at any batch.
    """
    task = Toy(folder / f"{name}.jsonl")

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == save_at:
            trainer.save_checkpoint(folder / f"{name}.ckpt")

    data = MemoryDataModule(
        edge=4, batch_size=settings.pop("batch_size"), epoch_length=LENGTH, val_bank=8, val_queries=4, num_workers=0
    )
    alone = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "limit_val_batches": 0}
    run = Trainer(max_epochs=2, callbacks=[LambdaCallback(on_train_batch_end=save)], **alone, **QUIET, **settings)
    run.fit(task, data, ckpt_path=folder / f"{resume}.ckpt" if resume else None)
    assert run.current_epoch == 2
    return [json.loads(line)[:2] for line in task.record.read_text().splitlines()]


def expected(first: tuple[int, int], batch: int, step: int) -> list:
    """Batches from a position of an epoch's list on, of whole steps."""
    batches = []
    for epoch, begin in ((first[0], first[1]), *((later, 0) for later in range(first[0] + 1, 2))):
        end = LENGTH - (LENGTH - begin) % step
        batches += [[epoch, [*range(place, place + batch)]] for place in range(begin, end, batch)]
    return batches


@pytest.mark.parametrize(
    ("saved", "save_at", "resumed", "first"),
    [
        ({"batch_size": 4}, 3, {"batch_size": 6}, (0, 12)),  # more tiles a batch, as on more processes
        ({"batch_size": 4}, 2, {"batch_size": 3}, (0, 8)),  # fewer; the epoch's end moves with its start
        ({"batch_size": 6}, 4, {"batch_size": 8}, (1, 0)),  # what is left of the epoch is no whole step any more
        ({"batch_size": 4}, 7, {"batch_size": 3}, (1, 0)),  # the epoch was over, though it has more batches now
        ({"batch_size": 2}, 15 + 4, {"batch_size": 5}, (1, 8)),
        ({"batch_size": 8}, 2, {"batch_size": 4, "accumulate_grad_batches": 2}, (0, 16)),  # half the processes
        ({"batch_size": 3, "accumulate_grad_batches": 2}, 3, {"batch_size": 6}, (0, 6)),  # in a step: it begins anew
        ({"batch_size": 3, "accumulate_grad_batches": 3}, 5, {"batch_size": 3, "accumulate_grad_batches": 3}, (0, 9)),
    ],
)  # fmt: skip
def test_goes_on_at_the_next_tile(
    saved: dict[str, int], save_at: int, resumed: dict[str, int], first: tuple[int, int], tmp_path: Path
) -> None:
    whole = fit(tmp_path, "whole", save_at, **saved)
    step = saved["batch_size"] * saved.get("accumulate_grad_batches", 1)
    assert whole == expected((0, 0), saved["batch_size"], step)
    after = fit(tmp_path, "after", resume="whole", **resumed)
    step = resumed["batch_size"] * resumed.get("accumulate_grad_batches", 1)
    assert after == expected(first, resumed["batch_size"], step)
    steps = torch.load(tmp_path / "whole.ckpt")["global_step"]
    assert steps == save_at // saved.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize("second", [8, 9, 13])
@pytest.mark.parametrize("accumulate", [1, 7])
def test_resumes_again_after_an_epochs_last_batch(second: int, accumulate: int, tmp_path: Path) -> None:
    """Lightning's counts of epochs must be those of a run that went through, or else the next resume repeats tiles."""
    settings = {"batch_size": 4, "accumulate_grad_batches": accumulate}
    fit(tmp_path, "first", 7, **settings)
    fit(tmp_path, "second", second, "first", **settings)
    done = (second - 7) // accumulate * accumulate * 4
    assert fit(tmp_path, "third", resume="second", **settings) == expected((1, done), 4, 4 * accumulate)


def test_two_processes_share_the_draws(tmp_path) -> None:
    process = start(toy_runs.run_on_two_processes, tmp_path)
    process.join(120)
    assert process.exitcode == 0

    def lines(name):
        return [
            [json.loads(line) for line in (tmp_path / f"{name}.{rank}").read_text().splitlines()] for rank in (0, 1)
        ]

    data = MemoryDataModule(edge=8, batch_size=3, epoch_length=31, val_bank=9, val_queries=5)
    for epoch in (0, 1):
        data.sampler.set_epoch(epoch)
        whole = data.sampler.global_rows()
        ranks = [[line for line in rank if line[0] == epoch] for rank in lines("train")]
        assert [len(rank) for rank in ranks] == [5, 5]  # 31 draws: 5 steps of 2 x 3
        for step, (first, second) in enumerate(zip(*ranks, strict=True)):
            positions = sorted(first[1] + second[1])
            assert positions == list(range(6 * step, 6 * step + 6))
            assert dict(zip(first[1] + second[1], first[2] + second[2], strict=True)) == {
                p: int(whole[p]) for p in positions
            }
    for name, picked in (("val0", data.bank[:8]), ("val1", data.queries[:4])):
        ranks = [[line for line in rank if line[0] == 0] for rank in lines(name)]
        assert len(ranks[0]) == len(ranks[1])
        seen = sorted(chain.from_iterable(row for _, _, row in chain(*ranks)))
        np.testing.assert_array_equal(seen, picked)

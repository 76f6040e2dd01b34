"""A run goes on at the very next tile with another number of processes, batch size or accumulation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from memory_tiles import MemoryDataModule
from toy_runs import QUIET, Toy

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
    for epoch, start in ((first[0], first[1]), *((later, 0) for later in range(first[0] + 1, 2))):
        end = LENGTH - (LENGTH - start) % step
        batches += [[epoch, [*range(place, place + batch)]] for place in range(start, end, batch)]
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

"""Runs in processes of their own: killed ones, resumed, against one that was not."""

import json
import os
import signal
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_terrafm import tiny_terrafm, trainer

from processes import start
from terrafm_tg.callbacks import AtomicCheckpointIO
from terrafm_tg.datamodules import SimulatedDataModule


class LossFile(Callback):
    """Appends every loss to a file at once, and may kill the process, as a scheduler would."""

    def __init__(self, path: Path, kill_after: int | None = None) -> None:
        self.path, self.kill_after = path, kill_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        key = f"{trainer.current_epoch}/{batch_idx}"
        with self.path.open("a") as file:
            file.write(json.dumps([key, outputs["loss"].item().hex(), batch["position"].tolist()]) + "\n")
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.kill_after:
            os.killpg(0, signal.SIGKILL)


def fit(folder: Path, world: Path, name: str, accumulate: int, kill_after: int | None) -> None:
    """One run over two epochs of four batches; a checkpoint every two batches."""
    os.setsid()  # a kill takes its workers too
    data = SimulatedDataModule(
        root=world, cells=40, cell_size=144, batch_size=4, num_workers=1, epoch_length=16, val_share=0.1
    )
    saves = folder / f"checkpoints_{accumulate}_{name.removesuffix('_resumed')}"
    save = ModelCheckpoint(saves, filename="last", every_n_train_steps=2 // accumulate, enable_version_counter=False)
    run = trainer(
        folder,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[LossFile(folder / f"{name}_{accumulate}.txt", kill_after), save],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        limit_val_batches=1,
        val_check_interval=0.5,
    )
    last = saves / "last.ckpt" if name.endswith("_resumed") else None
    run.fit(tiny_terrafm(frequent_classes=None), data, ckpt_path=last)


def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, small_world: Path) -> None:
    """Bit for bit, with a worker, stochastic depth and validation between.

    Once from a checkpoint of an epoch's last batch, once from mid-epoch with accumulation.
    """
    for accumulate, place, first in ((1, 5, "1/0"), (2, 3, "0/2")):
        found: dict[str, dict[str, list]] = {}
        for name, kill_after in (("whole", None), ("killed", place), ("killed_resumed", None)):
            process = start(fit, tmp_path, small_world, name, accumulate, kill_after)
            process.join()
            assert process.exitcode == (-signal.SIGKILL if kill_after else 0)
            lines = (tmp_path / f"{name}_{accumulate}.txt").read_text().splitlines()
            found[name] = {line[0]: line[1:] for line in map(json.loads, lines)}
        whole = list(found["whole"].items())
        assert len(whole) == 8
        assert found["killed"] == dict(whole[:place])
        assert next(iter(found["killed_resumed"])) == first
        assert found["killed_resumed"] == dict(whole[list(found["whole"]).index(first) :])

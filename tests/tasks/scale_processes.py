"""The same run on 1, 2 and 4 processes, and with accumulated micro-batches, through the real datamodule.

Started by test_scale_out.py in a process of its own, which forks them.
"""

from pathlib import Path
from typing import Any

import torch
from forked_ranks import fork_ranks, overlay_strategy
from lightning.pytorch import Callback
from tiny_terrafm import make_sample, tiny_terrafm, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.datasets.tiles.dataset import collate_tiles
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.optimization import whole
from terrafm_tg.transforms import SensorBatch

#: Tiles of an optimiser step, however they are shared out.
STEP = 8
#: Two steps an epoch and a tail, which is one micro-batch of two tiles and more.
LENGTH = 2 * STEP + 5
#: Name -> processes and accumulated micro-batches.
WAYS = {
    "joint": (1, 1),
    "accumulated": (1, 4),
    "two": (2, 1),
    "four": (4, 1),
    "both": (2, 2),
    "sharded": (2, 2),
    "mixed_joint": (1, 1),
    "mixed": (2, 1),
}


def mixed(rank: int, ranks: int) -> list[dict[str, Tensor]]:
    """A rank's tiles of two steps: in each, radar alone in the first half and L2A alone in the second."""
    places = range(rank * STEP // ranks, (rank + 1) * STEP // ranks)
    return [make_sample(STEP * s + p, ("s1rtc",) if p < STEP // 2 else ("s2l2a",)) for s in (0, 1) for p in places]


class Record(Callback):
    """Keeps what each optimiser step saw and did, and writes it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[dict[str, Any]] = []
        self._seen: dict[str, Any] = {"views": {}, "loss": []}

    def on_fit_start(self, trainer: Any, pl_module: TerraFM) -> None:
        self.start = weights(pl_module)

        def look(_: Any, given: tuple[Any, ...], views: dict[str, SensorBatch]) -> None:
            self._seen["views"] |= prints(given[0]["position"], views)

        pl_module.multicrop.register_forward_hook(look)

    def on_before_optimizer_step(self, trainer: Any, pl_module: TerraFM, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self._seen["grads"] = {name: sample(p.grad) for name, p in named if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, pl_module: TerraFM, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen["loss"].append(outputs["loss"] * trainer.accumulate_grad_batches)
        centers = pl_module.center.centers.clone()
        if trainer.global_step == len(self.steps):  # an accumulated micro-batch: nothing has moved
            assert not self.steps or torch.equal(centers, self.steps[-1]["centers"])
            return
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append(self._seen | {"centers": centers, "state": weights(pl_module), "lr": lr})
        self._seen = {"views": {}, "loss": []}

    def on_train_end(self, trainer: Any, pl_module: TerraFM) -> None:
        content = {"start": self.start, "steps": self.steps}
        torch.save(content, self.path.with_name(f"{self.path.name}_{trainer.global_rank}.pt"))


def sample(x: Tensor) -> Tensor:
    """One in 17 of a tensor's numbers: files stay small."""
    return whole(x).flatten()[::17].float().clone()


def weights(task: TerraFM) -> Tensor:
    """Student, teacher and heads."""
    return torch.cat([sample(p) for p in task.parameters()])


def prints(positions: Tensor, views: dict[str, SensorBatch]) -> dict[tuple[str, int, int, str], Tensor]:
    """Of each view and sensor a fingerprint, two numbers: keyed by group, view, position in the epoch, sensor."""
    found = {}
    for name, group in views.items():
        for sensor, idx in group.sample_idx.items():
            ramp = torch.linspace(0, 1, group.images[sensor][0].numel()).view_as(group.images[sensor][0])
            both = torch.stack([group.images[sensor].mean((1, 2, 3)), (group.images[sensor] * ramp).mean((1, 2, 3))], 1)
            for row, value in zip(idx.tolist(), both, strict=True):
                view, tile = divmod(row, len(positions))
                found[name, view, int(positions[tile]), sensor] = value
    return found


def fit(rank: int, ranks: int, folder: Path, world: Path, name: str, epochs: int) -> None:
    """One rank of a run of epochs of two steps each."""
    processes, accumulate = WAYS[name]
    size, settings = STEP // processes // accumulate, {"frequent_classes": None}
    if name.startswith("mixed"):
        data, settings = DataLoader(mixed(rank, processes), size, collate_fn=collate_tiles), {}
    else:
        data = SimulatedDataModule(
            root=world, batch_size=size, num_workers=0, epoch_length=LENGTH, val_share=0.1, seed=1
        )
    task = tiny_terrafm(drop_path=0.0, lr=8e-3, lr_batch=256, clip_grad=0.05, **settings)
    run = trainer(
        folder,
        max_epochs=epochs,
        devices=processes,
        strategy=overlay_strategy("fsdp" if name == "sharded" else "gpu8", processes),
        accumulate_grad_batches=accumulate,
        callbacks=[Record(folder / name)],
        limit_val_batches=0,
    )
    run.fit(task, data)


def run(folder: Path, world: Path, epochs: int, *ways: str) -> None:
    """Runs each way after the other."""
    for way in ways:
        for process in fork_ranks(WAYS[way][0], folder / way, fit, folder, world, way, epochs):
            process.join()

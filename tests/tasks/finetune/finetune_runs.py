"""Short fine-tuning runs on made-up batches."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from terrafm_tg.tasks.finetune.metrics import Metrics, Score

SIZE = 32


def samples(count: int, **values: Any) -> list[dict[str, Any]]:
    """Samples with the `i`-th of each value."""
    return [{key: value[i] for key, value in values.items()} for i in range(count)]


def images(channels: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Normalised noise, (count, channels, 32, 32)."""
    return 0.5 + 0.2 * torch.randn(count, channels, SIZE, SIZE, generator=generator)


def loader(data: list[dict[str, Any]], batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    """Batches of them."""
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, generator=torch.Generator().manual_seed(0))


class Rates(Callback):
    """Notes each step's learning rate, (scale, rate) per group, as the optimiser took it."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[float, float]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.steps.append([(group["lr_scale"], group["lr"]) for group in groups])


def scores(
    kind: str, prediction: Tensor, target: Tensor, count: int, ignore_index: int | None = None, **settings: Any
) -> list[Score]:
    """Scores of a whole test set, in batches of `batch` samples; only true averages without it."""
    batch = settings.pop("batch", None)
    metrics = Metrics(kind, count, ignore_index, **settings)
    for part, true in zip(prediction.split(batch or 99), target.split(batch or 99), strict=True):
        metrics.update(part, true)
    return [score for score in metrics.compute() if batch or score.average == "true"]

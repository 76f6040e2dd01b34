"""Keeps what ``terrafm predict`` computes, which Lightning hands to nobody on the command line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import move_data_to_device

from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import atomic_write


@checked()
class PredictionWriter(BasePredictionWriter):
    """Writes each batch's predictions to ``<folder>/<loader>_<process>_<batch>.pt``, atomically.

    A file holds ``predictions``, what the task's ``predict_step`` returned, on the CPU, and ``samples``, the numbers of
    the samples in their dataset, None with a GeoSampler. ``torch.load(path, weights_only=True)`` reads it.

    Args:
        folder: Where to write; ``predictions`` in the trainer's ``default_root_dir`` where None.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        folder = Path(trainer.default_root_dir, "predictions") if self.folder is None else Path(self.folder)
        path = folder / f"{dataloader_idx}_{trainer.global_rank}_{batch_idx:06d}.pt"
        indices = list(batch_indices or [])
        numbers = all(isinstance(index, int) for index in indices)  # TorchGeo's GeoSamplers draw slices
        samples = indices if indices and numbers else None
        with atomic_write(path, sole_writer=True) as partial:
            torch.save({"predictions": move_data_to_device(prediction, "cpu"), "samples": samples}, partial)

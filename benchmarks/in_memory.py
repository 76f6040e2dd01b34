"""Tiles of random numbers that lie in memory: what a step costs where nothing has to be read."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchgeo.datamodules import BaseDataModule

from terrafm_tg.datasets.tiles.dataset import TileDataset, check_tile_size
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.modalities import MODALITIES, Modality, get_modalities
from terrafm_tg.radiometry import STEPS


class InMemoryDataModule(BaseDataModule):
    """Hands out a few ready batches again and again, to measure training alone.

    A batch is as the other datamodules give it: native resolutions in stored integers, radar as hundredths of a
    decibel. Positions run on, so that every batch has other crops and modalities.

    Args:
        modalities: What each tile has; all by default.
        batch_size: Tiles per step and process.
        tile_size: Edge of a tile in pixels of 10 m, a multiple of 6.
        batches: Different batches.
        epoch_length: Tiles per epoch over all processes; the paper's 1.53 million cells of four tiles by default.
        on_device: Whether the images lie on the device already; otherwise in memory of the host, page-locked where
            there is a GPU.
        seed: Of the numbers.
        num_workers: For overlays that set it; nothing is read.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    # The task's own hook is used instead of TorchGeo's, which would normalize every image with one mean.
    on_after_batch_transfer = LightningDataModule.on_after_batch_transfer

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        batch_size: int = 64,
        tile_size: int = 534,
        batches: int = 2,
        epoch_length: int = 6_120_000,
        on_device: bool = True,
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        if batch_size < 2:
            raise TerraFMError(
                f"`batch_size` is {batch_size}: training compares the tiles of a batch, so give at least 2."
            )
        if batches < 1:
            raise TerraFMError(f"`batches` is {batches}: give at least 1.")
        check_tile_size(tile_size)
        super().__init__(TileDataset, batch_size, 0)
        self.save_hyperparameters(logger=False)
        self.modalities = get_modalities(modalities)

    def setup(self, stage: str) -> None:
        """Nothing is read."""

    @property
    def land_cover_share(self) -> np.ndarray:
        """Share of the draws per land-cover class, (12,): the first counts as frequent, as one must be."""
        share = np.ones(len(CLASS_NAMES))
        share[0] = 2
        return share / share.sum()

    def train_dataloader(self) -> "MemoryLoader":
        """The batches, made when first asked for."""
        trainer = self.trainer
        rank, ranks = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        length = self.hparams["epoch_length"] // (self.batch_size * ranks)
        accumulated = 1 if trainer is None else trainer.accumulate_grad_batches
        if length < accumulated:
            times = "" if accumulated == 1 else f" ({accumulated} batches)"
            raise TerraFMError(
                f"One step takes {self.batch_size * ranks * accumulated} tiles{times} and an epoch has "
                f"{self.hparams['epoch_length']}: lower `batch_size`, or raise `epoch_length`."
            )
        ready = self._ready
        if trainer is not None and trainer.strategy.root_device.type == "cuda":
            device = trainer.strategy.root_device
            move = (lambda x: x.to(device)) if self.hparams["on_device"] else Tensor.pin_memory
            ready = [{k: move(v) if k.startswith("image_") else v for k, v in batch.items()} for batch in ready]
        return MemoryLoader(ready, length, rank, ranks)

    @cached_property
    def _ready(self) -> list[dict[str, Tensor]]:
        """The batches in the host's memory; all ranks have the same tiles, at other positions."""
        generator = torch.Generator().manual_seed(self.hparams["seed"])
        return [self._batch(generator) for _ in range(self.hparams["batches"])]

    def _batch(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Images and land cover; the rest depends on the step."""
        size = self.batch_size
        batch = {"land_cover": torch.randint(len(CLASS_NAMES), (size,), generator=generator)}
        batch["complete"] = torch.ones(size, len(MODALITIES), dtype=torch.bool)
        for modality in self.modalities:
            batch[f"sample_idx_{modality.name}"] = torch.arange(size)
            for resolution, bands in modality.native.items():
                edge = self.hparams["tile_size"] * 10 // resolution
                batch[modality.native_key(resolution)] = _pixels(modality, (size, len(bands), edge, edge), generator)
        return batch


class MemoryLoader:
    """Yields ready batches in turn, each with the positions of its step.

    Args:
        ready: The batches.
        length: Batches per epoch and process.
        rank: Of this process.
        ranks: Processes.
    """

    def __init__(self, ready: Sequence[dict[str, Tensor]], length: int, rank: int = 0, ranks: int = 1) -> None:
        self.ready = ready
        self.length = length
        self.rank = rank
        self.ranks = ranks
        self.batch_size = len(ready[0]["land_cover"])
        self._epoch = -1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The next epoch."""
        self._epoch += 1
        places = torch.arange(self.batch_size) * self.ranks + self.rank
        for step in range(self.length):
            position = places + step * self.batch_size * self.ranks
            yield self.ready[step % len(self.ready)] | {
                "position": position,
                "row": position,
                "epoch": torch.full_like(position, self._epoch),
                "damaged": torch.full_like(position, -1),
            }


def _pixels(modality: Modality, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Stored pixels around the modality's training mean, none of them missing."""
    if modality.unit == "dB":
        return torch.randint(-30 * STEPS, 0, shape, generator=generator, dtype=torch.int16)
    return torch.randint(1, 8000, shape, generator=generator, dtype=torch.int16).view(torch.uint16)

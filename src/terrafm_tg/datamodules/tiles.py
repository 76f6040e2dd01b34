"""The base of the datamodules of tiles: split, sampler, loaders."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torchgeo.datamodules import BaseDataModule

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SHARE, check_arguments
from terrafm_tg.utils.shared import shared_arrays

from .loading.cache import CachedTiles
from .loading.faults import DamageLog, FaultTolerant
from .loading.loader import TileDataLoader
from .loading.split import even_pick, split_blocks, split_places

_log = logging.getLogger(__name__)

#: Settings that change how fast tiles come, not which; the state has a step's tiles for `batch_size`.
_RESOURCES = {"batch_size", "num_workers", "cache", "max_damaged_share", "prefetch_factor", "ring", "disk_cache"}
_RESOURCES |= {"disk_cache_gb"}
_LIMITS = {
    **dict.fromkeys(("batch_size", "val_block", "epoch_length", "prefetch_factor"), COUNT),
    **dict.fromkeys(("num_workers", "val_gap", "val_bank", "val_queries", "seed"), NOT_NEGATIVE),
    **dict.fromkeys(("val_share", "ocean_keep", "max_damaged_share"), SHARE),
}


class TileDataModule(BaseDataModule):
    """Base of the datamodules that feed batches of native-resolution tiles.

    A batch is that of :func:`~terrafm_tg.datasets.collate_tiles` and ``damaged`` (see
    :class:`~terrafm_tg.datamodules.loading.faults.FaultTolerant`). It is neither normalized nor augmented here: the
    views are made on the device, by the task. The loaders:

    * training: the draws of a :class:`~terrafm_tg.samplers.LandCoverSampler` over the training cells; the
      epoch's incomplete last optimizer step (of all processes and accumulated batches) is left out;
      resumable, also on another number of processes;
    * validation: two loaders, the *bank* (tiles of training cells) and the *queries* (of held-out cells),
      each an even pick over land cover; none where ``val_share`` is 0;
    * test: the bank, and all tiles of held-out cells;
    * prediction: all tiles of the index, in its order. A sample whose ``damaged`` is not negative shows
      another tile.

    Args:
        modalities: Modalities to read; all that the data have where None.
        batch_size: Tiles per step and process.
        num_workers: Processes that read, per training process; one less than its cores, at most 16, where
            None.
        val_share: Share of the tiles to hold out, in whole blocks of cells; 0 for none.
        val_block: Edge of such a block in cells.
        val_gap: Cells left out between training and held-out ones.
        val_places: Names of places to hold out instead, such as cities: folders of scenes that share ground
            (:func:`~terrafm_tg.datamodules.loading.split.place_names`).
        val_bank: Tiles in the bank; all training tiles where None.
        val_queries: Tiles to query; all held-out ones where None.
        power: Power of the inverse frequency that tiles are drawn with; 0 draws all equally often.
        by: Index columns that define the frequency together; ``land_cover``, ``climate`` and ``region``, those that
            the index has, where None.
        ocean_keep: Probability that an ocean cell is kept.
        epoch_length: Tiles per epoch over all processes; the number of training tiles where None.
        seed: Of the split, the picks and the draws.
        cache: Keep decoded tiles in memory that the workers share
            (:class:`~terrafm_tg.datamodules.loading.cache.CachedTiles`), which must have room for all of them.
        max_damaged_share: Share of replaced samples from which on a run ends.
        prefetch_factor: Batches that each worker reads ahead.
        ring: Take batches from the workers through shared memory that is made once
            (:mod:`terrafm_tg.datamodules.loading.ring`): room for ``prefetch_factor + 1`` batches per worker.

    Raises:
        TerraFMError: From ``setup("fit")``: if a batch is a single tile, or larger than an epoch; if the
            split leaves nothing, or there are more processes than tiles.
    """

    #: The dataset, where `make_dataset` does not say more.
    kind: Callable[..., TileDataset]
    # The task's own hook is used instead of TorchGeo's, which would normalize every image with one mean.
    on_after_batch_transfer = LightningDataModule.on_after_batch_transfer

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        val_share: float = 0.1,
        val_block: int = 4,
        val_gap: int = 1,
        val_places: Sequence[str] | None = None,
        val_bank: int | None = 2000,
        val_queries: int | None = 1000,
        power: float = 0.5,
        by: Sequence[str] | str | None = None,
        ocean_keep: float = 0.02,
        epoch_length: int | None = None,
        seed: int = 0,
        cache: bool = False,
        max_damaged_share: float = 0.05,
        prefetch_factor: int = 2,
        ring: bool = True,
    ) -> None:
        check_arguments(TileDataModule.__init__, locals(), **_LIMITS)
        super().__init__(TileDataset, batch_size, num_workers or 0)
        # logger=False: Lightning refuses to log a setting, such as a seed, that the task has too with another
        # value.
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():  # plain values: a checkpoint loads with weights_only=True
            if isinstance(value, os.PathLike | tuple):
                self.hparams[name] = list(value) if isinstance(value, tuple) else os.fspath(value)
        self.damage = DamageLog(max_damaged_share)

    def make_dataset(self) -> TileDataset:
        """Opens the dataset, with ``native=True``; called once per process.

        Here of :attr:`kind`, by all settings of this datamodule that have the name of one of its parameters.
        """
        names = [name for name in signature(self.kind).parameters if name in self.hparams]
        return self.kind(native=True, **{name: self.hparams[name] for name in names})

    @cached_property
    def tiles(self) -> TileDataset:
        """The dataset on disk."""
        return self.make_dataset()

    @cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Index rows of training and of held-out tiles."""
        options = [self.hparams[name] for name in ("val_share", "val_block", "val_gap", "seed")]
        table, places = self.tiles.table, self.hparams["val_places"]

        def make() -> dict[str, np.ndarray]:
            rows = split_places(table, places) if places else split_blocks(table, *options)
            return dict(zip(("train", "held_out"), rows, strict=True))

        rows = shared_arrays(table, f"split {options} {places}", make)
        train, held_out = rows["train"], rows["held_out"]
        rank_zero_info(f"{len(train)} tiles to train on, {len(held_out)} held out, of {len(table)}.")
        return train, held_out

    @cached_property
    def sampler(self) -> LandCoverSampler:
        """Draws the training tiles."""
        options = {name: self.hparams[name] for name in ("power", "by", "ocean_keep", "seed")}
        return LandCoverSampler(self.tiles, self.split[0], self.hparams["epoch_length"], **options)

    @property
    def land_cover_share(self) -> np.ndarray:
        """Share of the training draws per land-cover class, (12,); tells dual centering what is frequent."""
        return self.sampler.land_cover_share()

    def setup(self, stage: str) -> None:
        """Reads the index and, to train, checks that the settings fit it.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            TerraFMError: See the class.
        """
        self.dataset = self.tiles
        if stage != "fit":
            return
        if self.batch_size < 2:
            raise TerraFMError(
                f"`batch_size` is {self.batch_size}: training compares the samples of a batch, so give at least 2."
            )
        if (step := self._step_tiles) > (length := self.sampler.global_length):
            raise TerraFMError(
                f"One step takes {step} tiles (`batch_size` x processes x `accumulate_grad_batches`) and an epoch has "
                f"{length}: lower `batch_size`, or raise `epoch_length`."
            )

    def train_dataloader(self) -> TileDataLoader:
        """Loads the draws of the current epoch; every process has the same number of batches."""
        self.sampler.step = self._step_tiles
        options = {"drop_last": True, "persistent_workers": True, "trainer": self._fitting}
        return self._loader(self._source, self.sampler, **options)

    def val_dataloader(self) -> list[TileDataLoader]:
        """Loads the bank and the queries; nothing where no tile is held out."""
        return [self._in_order(self._source, rows) for rows in (self.bank, self.queries) if len(self.queries)]

    def test_dataloader(self) -> list[TileDataLoader]:
        """Loads the bank and all held-out tiles; nothing where no tile is held out."""
        held_out = self.split[1]
        return [self._in_order(self.tiles, rows) for rows in (self.bank, held_out) if len(held_out)]

    def predict_dataloader(self) -> TileDataLoader:
        """Loads all tiles, in the order of the index."""
        return self._in_order(self.tiles, np.arange(len(self.tiles)))

    @cached_property
    def bank(self) -> np.ndarray:
        """Index rows of the k-NN bank, ascending: training tiles, even over land cover."""
        return self._pick(self.sampler.rows, self.hparams["val_bank"])

    @cached_property
    def queries(self) -> np.ndarray:
        """Index rows of the queries, ascending: held-out tiles, even over land cover."""
        return self._pick(self.split[1], self.hparams["val_queries"])

    def state_dict(self) -> dict[str, Any]:
        """Returns the settings that decide the tiles of each step; part of each checkpoint."""
        own = {name: value for name, value in self.hparams.items() if name not in _RESOURCES}
        if self.trainer is None:
            return own
        return own | {
            "by": self.sampler.by,
            "batch_size x processes x accumulate_grad_batches": self._step_tiles,
            "tiles of an epoch": self.sampler.global_length,
            "tiles of the index": self._fingerprint,
        }

    @cached_property
    def _fingerprint(self) -> str:
        """The number of tiles, and a digest of their names, modalities, bands and land cover, in their order."""
        table = self.tiles.table
        names = ("cell", "quadrant", "land_cover")
        held = table[[name for name in table if name in names or name.startswith(("has_", "bands_"))]]

        def make() -> dict[str, np.ndarray]:
            hashes = pd.util.hash_pandas_object(held.astype({"cell": "category"}), index=False).to_numpy()
            return {"sha256": np.frombuffer(sha256(hashes).digest(), np.uint8)}

        digest = shared_arrays(table, "fingerprint", make)["sha256"].tobytes()
        return f"{len(table):,} ({digest.hex()[:12]})"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Names each setting that differs from that of the resumed run; this run's is used."""
        for name, value in self.state_dict().items() if self._fitting else ():
            before = state_dict.get(name, value)
            if before != value:
                _log.warning(
                    "`%s` was %s when the checkpoint was written and is %s now: other tiles follow than in an "
                    "uninterrupted run.",
                    name,
                    before,
                    value,
                )

    @property
    def _fitting(self) -> Trainer | None:
        """The trainer, where it trains."""
        trainer = self.trainer
        return trainer if trainer is not None and trainer.state.fn == TrainerFn.FITTING else None

    @property
    def _step_tiles(self) -> int:
        """Tiles of an optimizer step, over all processes."""
        trainer = self.trainer
        return self.batch_size * (trainer.world_size * trainer.accumulate_grad_batches if trainer else 1)

    def _pick(self, rows: np.ndarray, count: int | None) -> np.ndarray:
        table, seed = self.tiles.table, self.hparams["seed"]

        def make() -> dict[str, np.ndarray]:
            cover = table["land_cover"] if "land_cover" in table else np.full(len(table), -1)
            return {"rows": even_pick(np.asarray(cover), np.sort(rows), count, seed)}

        rows = rows if count is None else shared_arrays(table, f"pick {count} {seed}", make, rows)["rows"]
        # `ddp` synchronizes buffers in each forward pass: all ranks need the same number of batches.
        return rows[: len(rows) - len(rows) % self.sampler.world_size]

    def _in_order(self, tiles: TileDataset, rows: np.ndarray) -> TileDataLoader:
        seed = self.hparams["seed"]
        return self._loader(tiles, LandCoverSampler(tiles, rows, power=0, ocean_keep=1, seed=seed, shuffle=False))

    def _loader(self, tiles: TileDataset, sampler: LandCoverSampler, **options: Any) -> TileDataLoader:
        wanted = self.hparams["num_workers"]
        if wanted is None:
            processes = 1 if self.trainer is None else self.trainer.num_devices
            wanted = min(suggested_max_num_workers(processes), 16)
        if workers := min(wanted, math.ceil(len(sampler) / self.batch_size)):
            context = "fork" if self.hparams["cache"] else None  # a forked worker inherits the cache
            options |= {"num_workers": workers, "multiprocessing_context": context}
            options |= {"prefetch_factor": self.hparams["prefetch_factor"]}
        else:
            options.pop("persistent_workers", None)
        return TileDataLoader(
            FaultTolerant(tiles, sampler),
            self.damage,
            sampler=sampler,
            batch_size=self.batch_size,
            ring=self.hparams["ring"],
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    @cached_property
    def _source(self) -> TileDataset:
        """The tiles, or a cache of them."""
        return CachedTiles(self.tiles) if self.hparams["cache"] else self.tiles

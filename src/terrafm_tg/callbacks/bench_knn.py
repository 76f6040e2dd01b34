"""Watches, during training, what the encoder's embeddings are good for on benchmark datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.knn import TEMPERATURE, K, knn_votes
from terrafm_tg.models import TerraFMViT

if TYPE_CHECKING:  # the benchmarks are imported by the runs that use them
    from terrafm_tg.datasets.bench import BenchDataset
    from terrafm_tg.evaluation.encoders import BenchEncoder

#: Attributes of a task that may be its encoder, the first of them that it has.
_ENCODERS = ("teacher", "encoder", "backbone", "model")


class _Pair(NamedTuple):
    """The bank and the queries of one dataset."""

    bank: BenchDataset
    query: BenchDataset


class BenchKNN(Callback):
    """Logs the k-NN of ``terrafm bench`` on benchmark datasets at the end of training epochs.

    Logs ``bench/<dataset>/knn_accuracy`` from 0 to 1 (of several labels ``knn_f1`` or ``knn_map``, the dataset's own
    metric), the same on every rank. Each rank embeds its share of the images, so that none waits for another's work,
    and an error on one stops all. Random numbers of the training are left as they were.

    The training split votes; by default the validation split is scored, so that a checkpoint can be chosen by it.

    Args:
        datasets: Names, patterns or benchmarks, as ``terrafm bench`` takes them; of classes or several labels.
        root: Folder of the benchmarks.
        every_n_epochs: How often.
        split: ``"val"`` or ``"test"``.
        encoder: Name of the task's attribute that holds the encoder; by default ``teacher``, else ``encoder``,
            ``backbone`` or ``model``.
        model: What it is, as ``terrafm bench`` names it, such as ``"timm/resnet50"``; not needed for TerraFM's.
        stem: Which TerraFM modality reads Sentinel-2; the dataset's own level where None.
        pooling: ``"token"`` or ``"mean"``.
        size: Pixels to resize to; the dataset's usual size where None, the stored one where 0.
        fraction: Share of the training split.
        bands: Band names ``"corrected"`` or ``"labelled"``.
        k: Neighbors.
        temperature: Of their votes, exp(cosine / temperature).
        batch_size: Images per forward.
        num_workers: Processes that decode, per rank.

    Raises:
        TerraFMError: If a dataset is unknown or a segmentation, or a setting is wrong.

    Example:
        >>> Trainer(callbacks=[BenchKNN(["m-eurosat"], "data/bench", every_n_epochs=5)])
    """

    def __init__(
        self,
        datasets: Sequence[str] | str,
        root: str | Path,
        every_n_epochs: int = 1,
        split: Literal["val", "test"] = "val",
        encoder: str | None = None,
        model: str | None = None,
        stem: str | None = None,
        pooling: str = "token",
        size: int | None = None,
        fraction: float = 1.0,
        bands: Literal["corrected", "labelled"] = "corrected",
        k: int = K,
        temperature: float = TEMPERATURE,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        from terrafm_tg.evaluation.bench.config import read_datasets
        from terrafm_tg.evaluation.encoders import ModelSpec

        self.tasks = read_datasets(datasets)
        dense = [task.name for task in self.tasks if task.kind == "segmentation"]
        if dense:
            raise TerraFMError(f"BenchKNN takes classes or several labels, and {dense[0]} has masks: leave it out.")
        if every_n_epochs < 1 or split not in ("val", "test"):
            raise TerraFMError(
                f"BenchKNN got every_n_epochs={every_n_epochs} and split={split!r}: use 1 or more, and val or test."
            )
        self.root, self.every_n_epochs, self.split = Path(root), every_n_epochs, split
        self.encoder, self.model = encoder, model
        self.spec = ModelSpec(model or "terrafm_tiny", stem=stem, pooling=pooling, size=size)
        self.fraction, self.bands = fraction, bands
        self.k, self.temperature = k, temperature
        self.batch_size, self.num_workers = batch_size, num_workers
        self._pairs: list[_Pair] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the datasets and finds the encoder, before the run has taken its time.

        Raises:
            TerraFMError: If a dataset is not there, or there is no encoder that can read it.
        """
        from terrafm_tg.datasets.bench import open_bench

        if stage != "fit" or self._pairs:
            return
        self._pairs = [
            _Pair(
                open_bench(task.name, self.root, "train", fraction=self.fraction, bands=self.bands),
                open_bench(task.name, self.root, self.split, bands=self.bands),
            )
            for task in self.tasks
        ]
        with isolate_rng():
            for pair in self._pairs:
                self._encoder(pl_module, pair.bank)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores and logs.

        Raises:
            TerraFMError: On all ranks, if one of them met a damaged file.
        """
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with isolate_rng():
            for pair in self._pairs:
                metric = "accuracy" if pair.bank.task.kind == "multiclass" else pair.bank.task.metric
                value = self._score(trainer, pl_module, pair)
                pl_module.log(f"bench/{pair.bank.task.name}/knn_{metric}", value, rank_zero_only=False, sync_dist=False)

    def _score(self, trainer: Trainer, pl_module: LightningModule, pair: _Pair) -> float:
        from terrafm_tg.evaluation.protocols.embedded import to_labels
        from terrafm_tg.tasks.finetune.metrics import Metrics

        device = trainer.strategy.root_device
        encoder = self._encoder(pl_module, pair.bank).to(device)
        bank, query = (self._embed(trainer, encoder, data) for data in pair)
        task = pair.bank.task
        share = knn_votes(
            query[0].to(device),
            bank[0].to(device),
            to_labels(bank[1].to(device), task.kind, len(task.classes)),
            self.k,
            self.temperature,
        ).cpu()
        metrics = Metrics.of(task)
        metrics.update(share - 0.5 if task.kind == "multilabel" else share, query[1])
        return metrics.value() / 100

    def _embed(self, trainer: Trainer, encoder: BenchEncoder, data: BenchDataset) -> tuple[Tensor, Tensor]:
        """Computes embeddings and labels of all samples in their order, of which this rank computes every n-th."""
        from terrafm_tg.datasets.bench import BenchSubset
        from terrafm_tg.evaluation.encoders.embeddings import embeddings

        ranks = trainer.world_size
        own = list(range(trainer.global_rank, len(data), ranks))
        share: Any = None
        try:
            if own:
                found = embeddings(
                    encoder,
                    BenchSubset(data, own),
                    batch_size=self.batch_size,
                    num_workers=self.num_workers,
                    device=trainer.strategy.root_device,
                )
                share = own, found.pooled(self.spec.pooling), found.target
        except TerraFMError as error:  # the others must not wait for this rank's share
            share = error
        shares = _gather(share, ranks)
        for part in shares:
            if isinstance(part, TerraFMError):
                raise part
        order, x, y = zip(*(part for part in shares if part is not None), strict=True)
        places = torch.tensor([index for indices in order for index in indices]).argsort()
        return torch.cat(x)[places], torch.cat(y)[places]

    def _encoder(self, pl_module: LightningModule, data: BenchDataset) -> BenchEncoder:
        """Returns a copy of the task's encoder that reads the dataset."""
        from terrafm_tg.evaluation.encoders.backbone import TimmBackbone
        from terrafm_tg.evaluation.encoders.models import load
        from terrafm_tg.evaluation.encoders.reader import Reader

        names = _ENCODERS if self.encoder is None else (self.encoder,)
        module = next((x for name in names if isinstance(x := getattr(pl_module, name, None), nn.Module)), None)
        if module is None:
            raise TerraFMError(
                f"BenchKNN found no encoder in {type(pl_module).__name__}, which has no module {' or '.join(names)}: "
                "name its attribute with `encoder`."
            )
        if self.model is None and not isinstance(module, TerraFMViT):
            raise TerraFMError(
                f"BenchKNN does not know what reads images for {type(module).__name__}: say what it is with `model`, "
                "as terrafm bench names it, such as timm/resnet50."
            )
        encoder = load(self.spec, data.task, data)
        if isinstance(module, TerraFMViT) and self.model is None:
            readers = [(stem, x) for stem, x in encoder.readers.items() if isinstance(x, Reader)]
            bands = {stem: tuple(channel.band for channel in x.channels) for stem, x in readers}
            heads = cast("Any", module.blocks[0]).attn.num_heads
            model = TerraFMViT(bands=bands, embed_dim=module.embed_dim, depth=len(module.blocks), num_heads=heads)
            encoder.backbone = TimmBackbone(model, encoder.size, select=dict)
        _copy_weights(module, encoder.backbone.model)
        return encoder.eval()


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies all weights of ``target`` from ``source``, which may have a head besides.

    Raises:
        TerraFMError: If they are not of the same kind.
    """
    state, wanted = source.state_dict(), target.state_dict()
    try:
        target.load_state_dict({name: value for name, value in state.items() if name in wanted})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TerraFMError(
            f"BenchKNN cannot copy {type(source).__name__} into the model that reads the dataset: name the "
            f"model that it is with `model`, for the same bands ({reason})."
        ) from error


def _gather(share: Any, ranks: int) -> list[Any]:
    """Returns the shares of all ranks, on every rank."""
    if ranks == 1:
        return [share]
    shares: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(shares, share)
    return shares

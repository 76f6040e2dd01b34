"""Watches, during training, what the encoder's embeddings are good for on benchmark datasets."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from terrafm_tg.datasets.bench import BenchDataset, open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.bench.config import read_datasets
from terrafm_tg.evaluation.encoders import BenchEncoder, ModelSpec, load_encoder
from terrafm_tg.evaluation.encoders.embeddings import embeddings
from terrafm_tg.evaluation.knn import K, knn_votes
from terrafm_tg.models import TerraFMViT
from terrafm_tg.models.sizes import find_size
from terrafm_tg.tasks.finetune.metrics import Metrics
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SOME_SHARE, checked

#: Attributes of a task that may be its encoder, the first of them that it has.
_ENCODERS = ("teacher", "encoder", "backbone", "model")


@checked(
    every_n_epochs=COUNT, size=NOT_NEGATIVE, fraction=SOME_SHARE, k=COUNT, batch_size=COUNT, num_workers=NOT_NEGATIVE
)
class BenchKNN(Callback):
    """Logs the k-NN of ``terrafm bench`` on benchmark datasets at the end of training epochs.

    Logs ``bench/<dataset>/knn_accuracy`` from 0 to 1 (of several labels ``knn_f1`` or ``knn_map``, the dataset's own
    metric); each rank computes the same. Random numbers of the training are left as they were.

    The training split votes; by default the validation split is scored, so that a checkpoint can be chosen by it.

    Args:
        datasets: Names, patterns or benchmarks, as ``terrafm bench`` takes them; of classes or several labels.
        root: Folder of the benchmarks.
        every_n_epochs: How often.
        split: ``"val"`` or ``"test"``.
        encoder: Name of the task's attribute that holds the encoder; by default ``teacher``, else ``encoder``,
            ``backbone`` or ``model``.
        model: What it is, as ``terrafm bench`` names it, such as ``"timm/resnet50"``; not needed for TerraFM's.
        size: Pixels to resize to; the dataset's usual size where None, the stored one where 0.
        fraction: Share of the training split.
        k: Neighbors.
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
        size: int | None = None,
        fraction: float = 1.0,
        k: int = K,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        self.tasks = read_datasets(datasets)
        dense = [task.name for task in self.tasks if task.kind == "segmentation"]
        if dense:
            raise TerraFMError(f"BenchKNN takes classes or several labels, and {dense[0]} has masks: leave it out.")
        self.root, self.every_n_epochs, self.split = Path(root), every_n_epochs, split
        self.encoder, self.model, self.size, self.fraction, self.k = encoder, model, size, fraction, k
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the datasets and finds the encoder, before the run has taken its time.

        Raises:
            TerraFMError: If a dataset is not there, or there is no encoder that can read it.
        """
        if stage == "fit":
            with isolate_rng():
                for task in self.tasks:
                    bank, _ = self._open(task.name)
                    self._encoder(pl_module, bank)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores and logs.

        Raises:
            TerraFMError: If a file is damaged.
        """
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        device = trainer.strategy.root_device
        for task in self.tasks:
            with isolate_rng():
                splits = self._open(task.name)
                encoder = self._encoder(pl_module, splits[0])
                bank, query = (embeddings(encoder, x, None, self.batch_size, self.num_workers, device) for x in splits)
                several = task.kind == "multilabel"
                labels = bank.target if several else nn.functional.one_hot(bank.target, len(task.classes))
                share = knn_votes(query.token, bank.token, labels, self.k)
                metrics = Metrics.of(task)
                metrics.update(share - 0.5 if several else share, query.target)
            metric = "accuracy" if task.kind == "multiclass" else task.metric
            pl_module.log(f"bench/{task.name}/knn_{metric}", metrics.value() / 100, rank_zero_only=False)

    def _open(self, name: str) -> tuple[BenchDataset, BenchDataset]:
        """Opens the bank and the queries of a dataset."""
        bank = open_bench(name, self.root, "train", fraction=self.fraction)
        return bank, open_bench(name, self.root, self.split)

    def _encoder(self, pl_module: LightningModule, data: BenchDataset) -> BenchEncoder:
        """Returns a copy of the task's encoder that reads the dataset."""
        names = _ENCODERS if self.encoder is None else (self.encoder,)
        module = next((x for name in names if isinstance(x := getattr(pl_module, name, None), nn.Module)), None)
        if module is None:
            raise TerraFMError(
                f"BenchKNN found no encoder in {type(pl_module).__name__}, which has no module {' or '.join(names)}: "
                "name its attribute with `encoder`."
            )
        own = find_size(module.embed_dim, len(module.blocks)) if isinstance(module, TerraFMViT) else None
        name = self.model or own
        if name is None:
            raise TerraFMError(
                f"BenchKNN does not know what reads images for {type(module).__name__}: say what it is with `model`, "
                "as terrafm bench names it, such as timm/resnet50."
            )
        encoder = load_encoder(ModelSpec(name, size=self.size), data.task, data)
        model = encoder.backbone.model
        if isinstance(module, TerraFMViT) and isinstance(model, TerraFMViT):
            model.blocks = deepcopy(module.blocks)  # whose number a run may choose
        wanted = model.state_dict()
        try:
            model.load_state_dict({key: value for key, value in module.state_dict().items() if key in wanted})
        except RuntimeError as error:
            raise TerraFMError(
                f"BenchKNN cannot copy {type(module).__name__} into {name}, which reads the dataset: name the model "
                f"that it is with `model`, for the same bands ({' '.join(str(error).split())[:200]})."
            ) from error
        return encoder

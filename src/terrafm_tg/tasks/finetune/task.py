"""The part that all fine-tuning tasks on classes, pixels or labels share: checks, loss, scores."""

import abc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Subset
from torchgeo.tasks import BaseTask
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.builders import Weights
from terrafm_tg.models.sizes import find_size, split_name
from terrafm_tg.tasks.checkpoint_io import VerifiedCheckpoints
from terrafm_tg.utils.arguments import COUNT, SHARE, check_arguments

from .encoder import SensorImages
from .losses import LabelLoss
from .metrics import EpochScores
from .optimization import FineTuneOptimization, encoder_of
from .rates import check_target

#: A checkpoint's key for what its task saw in training: see :meth:`LabelTask.on_save_checkpoint`.
TRAINED_ON = "trained_on"


class LabelTask(VerifiedCheckpoints, BaseTask):
    """Base of the tasks: one loss and one set of metrics, by the rules of ``terrafm bench``.

    What is ignored has no part in loss and metrics, and a batch without anything else none in the epoch's. It reads
    the settings ``task``, ``num_classes``, ``num_labels``, ``labels``, ``ignore_index``, ``loss``, ``class_weights``,
    ``pos_weight`` and ``label_smoothing`` where a task has them. Put it before a task of TorchGeo among the base
    classes: it takes the place of that task's loss and metrics.
    """

    #: The batch's key that holds the classes.
    target_key = "mask"
    #: Stages whose metrics have the average precision of several labels.
    ranked: Sequence[str] = ()
    #: Mixes training batches; None for none.
    mixup: Callable[[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], Tensor]] | None = None
    #: Height and width of the training images by key, as the dataset has them and as the model reads them.
    image_size: dict[str, list[int]] | None = None
    input_size: dict[str, list[int]] | None = None

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""
        return self.hparams.get("task", "multiclass")

    @property
    def outputs(self) -> int:
        """Number of classes or labels; 1 for ``binary``."""
        h = self.hparams
        return {"binary": 1, "multilabel": h.get("num_labels")}.get(self.kind, h.get("num_classes")) or 1

    def configure_losses(self) -> None:
        """Makes the loss.

        Raises:
            TerraFMError: If there are not as many weights or names as classes.
        """
        h = self.hparams
        self.criterion: nn.Module = LabelLoss(
            self.kind,
            self.outputs,
            h["loss"] if "loss" in h else {"multiclass": "ce"}.get(self.kind, "bce"),
            h["ignore_index"],
            h.get("class_weights"),
            h.get("pos_weight"),
            0.0 if self.mixup else h.get("label_smoothing", 0.0),  # mixup smooths its targets itself
        )

    def configure_metrics(self) -> None:
        """Makes TorchGeo's metrics of each stage.

        Raises:
            TerraFMError: If there are not as many names as classes.
        """
        names = self.hparams["labels"]
        if names is not None and self.kind != "binary" and len(set(names)) != self.outputs:
            raise TerraFMError(
                f"`labels` names {', '.join(map(str, names))}, but there are {self.outputs} classes: give each a name "
                "of its own, or leave `labels` out."
            )
        for stage in ("train", "val", "test"):
            ranks = self.kind == "multilabel" and stage in self.ranked
            scores = EpochScores(self.kind, self.outputs, self.hparams["ignore_index"], names, f"{stage}_", ranks)
            setattr(self, f"{stage}_metrics", scores)

    def setup(self, stage: str) -> None:
        """Lets the hook below be this module's although there is a datamodule, without Lightning's warning."""
        super().setup(stage)
        warnings.filterwarnings("ignore", ".*overridden `on_before_batch_transfer` in `LightningModule`.*")

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Checks the classes, except for a prediction, while they are on the CPU.

        A wrong one would end on a GPU in an error that names nothing.

        Raises:
            TerraFMError: If a value is neither a class nor the one that is ignored.
        """
        if self.target_key in batch and not self.trainer.predicting:
            most = 2 if self.kind == "binary" else self.outputs
            check_target(batch[self.target_key], self.kind, most, self.hparams["ignore_index"], self.target_key)
        if self.trainer.training:
            self.image_size = _sizes(batch)
        return batch

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Notes the size of the images that the model reads."""
        self.input_size = _sizes(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what maps need to know: the task, sizes of images, and the datamodule's classes and statistics."""
        super().on_save_checkpoint(checkpoint)
        data = getattr(self._trainer, "datamodule", None)  # there may be no Trainer
        samples = getattr(data, "train_dataset", None)
        samples = samples.dataset if isinstance(samples, Subset) else samples
        classes = getattr(samples, "classes", None)
        normalize = getattr(getattr(data, "aug", None), "normalize", None)
        checkpoint[TRAINED_ON] = {
            "task": type(self).__name__,
            "image_size": self.image_size,
            "input_size": self.input_size,
            "classes": None if classes is None else [str(name) for name in classes],
            "statistics": getattr(normalize, "statistics", None),
        }

    def counts(self, batch: dict[str, Any]) -> bool:
        """Tells if any target of a batch counts."""
        ignored = self.hparams["ignore_index"]
        target = batch.get(self.target_key)
        return ignored is None or target is None or bool((target != ignored).any())

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes a batch into the validation loss and metrics, if any of it counts."""
        if self.counts(batch):
            super().validation_step(batch, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes a batch into the test loss and metrics, if any of it counts."""
        if self.counts(batch):
            super().test_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Logs the training metrics, where there are any."""
        if self.mixup is None:
            self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_epoch("test")

    def _log_epoch(self, stage: str) -> None:
        metrics: EpochScores = getattr(self, f"{stage}_metrics")
        found = metrics.compute()
        if not found:
            rank_zero_warn(f"No sample of this {stage} epoch has a class that counts: it has no scores.")
        self.log_dict(found)
        metrics.reset()


class SensorTask(FineTuneOptimization, LabelTask):
    """Base of the tasks that read one sensor or several, which the encoder fuses.

    A subclass builds ``model`` and ``images``, and says what the target of a batch is.

    Args:
        model: ``terrafm_<size>``, also with an ending such as ``_s2l1c`` or ``_rgb``.
        weights: Encoder weights: ``terrafm_base``, another name or enum, a path or URL; random where None.
        modalities: Sensors that batches may hold; any where None. Name exactly one where the key is ``image``.
            The stems of sensors that are not named stay as they are.
        bands: Bands in the order of the images' channels, by modality where there are several; all by default.
        normalize: Normalize batches of raw values here (dB; digital numbers), for datamodules that do not.
        statistics: Mean and standard deviation to normalize with: a file of ``terrafm stats``, or ``mean`` and ``std``
            by modality; those that the weights were trained with by default.
        labels: Names of the classes, for the log.
        class_weights: Weight of each class in the cross-entropy.
        ignore_index: Class, or value of the mask, that loss and metrics leave out.
        depth: Number of blocks, for quick runs; the model's own by default.
        drop_path: Rate of stochastic depth in the last block, linear from 0 in the first.
        label_smoothing: Share of the target that is spread over the classes, or of each label towards 0.5.
        freeze_backbone: Train the classifier or decoder only.
        grad_checkpointing: Recompute the blocks in the backward pass: less memory, more time.
        kwargs: As :class:`~terrafm_tg.tasks.finetune.optimization.FineTuneOptimization`.

    Raises:
        TerraFMError: If a setting is impossible, or the weights cannot be loaded.
    """

    images: SensorImages
    weights: Weights

    def __init__(
        self,
        model: str = "terrafm_base",
        weights: WeightsEnum | str | None = None,
        *,
        modalities: list[str] | None = None,
        bands: list[str] | dict[str, list[str]] | None = None,
        normalize: bool = False,
        statistics: dict[str, Any] | Path | None = None,
        labels: list[str] | None = None,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        depth: int | None = None,
        drop_path: float = 0.1,
        label_smoothing: float = 0.0,
        freeze_backbone: bool = False,
        grad_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        check_arguments(SensorTask.__init__, locals(), depth=COUNT, drop_path=SHARE, label_smoothing=SHARE)
        self.weights = weights
        super().__init__(**kwargs)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen encoder stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            encoder = encoder_of(self)
            encoder.eval()
            encoder.head_drop.train(mode)
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the encoder anew where the checkpoint's is of another size, or has other statistics, than here."""
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("statistics")
        state, own = checkpoint["state_dict"], encoder_of(self)
        token = next((name for name in state if name.endswith("cls_token")), None)
        if token is None:
            return
        blocks = token.removesuffix("cls_token") + "blocks."  # a decoder may have blocks, too
        width = state[token].shape[-1]
        depth = len({name.removeprefix(blocks).split(".")[0] for name in state if name.startswith(blocks)})
        size = find_size(width, depth)
        other = saved != self.hparams["statistics"]
        self.hparams["statistics"] = saved
        if (width, depth) == (own.embed_dim, own.depth) or size is None:
            if other:
                self.weights = None  # those of the checkpoint follow
                self.configure_models()
            return
        name = self.hparams["model"]
        self.hparams["model"], self.hparams["depth"] = name.replace(split_name(name)[0], size), depth
        self.weights = None  # those of the checkpoint follow
        self.configure_models()
        rank_zero_info(f"The encoder is the checkpoint's: {size} of {depth} blocks, not {name} as in the settings.")

    def target(self, batch: dict[str, Any]) -> Tensor:
        """The labels or masks of a batch.

        Raises:
            TerraFMError: If there are none, or their shape is not the task's.
        """
        if self.target_key not in batch:
            purpose = "segmentation" if self.target_key == "mask" else "classification"
            raise TerraFMError(
                f"The batch has no {self.target_key!r} (keys {', '.join(batch)}): use a dataset for {purpose}."
            )
        return self.shaped(batch[self.target_key])

    @abc.abstractmethod
    def shaped(self, target: Tensor) -> Tensor:
        """The labels or masks as the loss takes them.

        Raises:
            TerraFMError: If their shape is not the task's.
        """

    def training_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The loss of a batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes a batch into the validation loss and metrics, if any of it counts."""
        if self.counts(batch):
            self._step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Takes a batch into the test loss and metrics, if any of it counts."""
        if self.counts(batch):
            self._step(batch, "test")

    def _step(self, batch: dict[str, Any], stage: str) -> Tensor:
        images, target = self.images(batch), self.target(batch)
        mix = self.mixup if stage == "train" else None
        if mix is not None:
            images, target = mix(images, target)
        logits = self(images)
        if target.shape[-2:] != logits.shape[-2:] and self.target_key == "mask":
            raise TerraFMError(
                f"The masks are {target.shape[-2]}x{target.shape[-1]} px and the images "
                f"{logits.shape[-2]}x{logits.shape[-1]}: give both the same size."
            )
        loss: Tensor = self.criterion(logits, target)
        if mix is None:  # of a mixed image, no one class is right
            getattr(self, f"{stage}_metrics")(logits, target)
        self.log(f"{stage}_loss", loss, batch_size=len(target), prog_bar=stage == "train")
        return loss


def _sizes(batch: dict[str, Any]) -> dict[str, list[int]]:
    """Height and width of a batch's images, by key."""
    return {key: list(x.shape[-2:]) for key, x in batch.items() if key.startswith("image")}

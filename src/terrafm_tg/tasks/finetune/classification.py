"""Fine-tuning for classification: one class or several labels per image, from one sensor or several."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask
from torchgeo.tasks.mixins import ClassificationMixin
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError

from .encoder import build_backbone
from .inputs import CheckedClasses
from .mixing import SensorMixup
from .optimization import FineTuneOptimization


class FineTuneClassification(FineTuneOptimization, CheckedClasses, ClassificationMixin, BaseTask):
    """Fine-tunes the encoder with a linear classifier.

    Batches hold ``image`` or one ``image_<modality>`` per sensor, normalised, which the encoder fuses, and
    ``label``: classes (B,), or zeros and ones (B, num_labels). Logs the loss and TorchGeo's metrics; with several
    labels also the mean average precision, ``OverallAveragePrecision`` (micro) and ``AverageAveragePrecision``
    (macro).

    Args:
        model: ``terrafm_<size>``, also with an ending such as ``_s2l1c`` or ``_rgb``.
        weights: Encoder weights: ``terrafm_base``, another name or enum, a path or URL; random where None.
        modalities: Sensors that batches may hold; any where None. Name exactly one where the key is ``image``.
            The stems of sensors that are not named stay as they are.
        bands: Bands in the order of the images' channels, by modality where there are several; all by default.
        normalize: Normalise batches of raw values here (dB; digital numbers), for datamodules that do not.
        task: ``multiclass`` or ``multilabel``.
        num_classes: Number of classes, for ``multiclass``.
        num_labels: Number of labels, for ``multilabel``.
        labels: Names of the classes, for the log.
        class_weights: Weight of each class in the loss of ``multiclass``.
        pos_weight: Weight of each label's positives in the loss of ``multilabel``.
        ignore_index: Class that loss and metrics leave out.
        depth: Number of blocks, for quick runs; the model's own by default.
        global_pool: ``token`` (class token) or ``avg`` (mean of the patch tokens).
        dropout: Rate before the classifier.
        drop_path: Rate of stochastic depth in the last block, linear from 0 in the first.
        label_smoothing: Share of the target that is spread over the classes, or of each label towards 0.5.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        lr: Peak learning rate of the classifier.
        min_lr: Its value at the end of the cosine.
        warmup_epochs: Linear warm-up.
        weight_decay: Weight decay; none on biases, other 1-D tensors, class token and positions.
        layer_decay: Factor from a block's learning rate to that of the block below; 1 for none.
        freeze_backbone: Train the classifier only (linear probe).
        grad_checkpointing: Recompute the blocks in the backward pass: less memory, more time.

    Raises:
        TerraFMError: If a setting is impossible, or the weights cannot be loaded.
    """

    target_key = "label"

    def __init__(
        self,
        model: str = "terrafm_base",
        weights: WeightsEnum | str | None = None,
        modalities: list[str] | None = None,
        bands: list[str] | dict[str, list[str]] | None = None,
        normalize: bool = False,
        task: Literal["multiclass", "multilabel"] = "multiclass",
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        class_weights: Sequence[float] | None = None,
        pos_weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        depth: int | None = None,
        global_pool: Literal["token", "avg"] = "token",
        dropout: float = 0.0,
        drop_path: float = 0.1,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        lr: float = 5e-4,
        min_lr: float = 1e-6,
        warmup_epochs: float = 5,
        weight_decay: float = 0.05,
        layer_decay: float = 0.75,
        freeze_backbone: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        if (num_classes if task == "multiclass" else num_labels) is None:
            name = "num_classes" if task == "multiclass" else "num_labels"
            raise TerraFMError(f"`task: {task}` needs `{name}`: set how many there are.")
        if (mixup or cutmix) and ignore_index is not None:
            raise TerraFMError(
                f"`ignore_index` is {ignore_index}, which Mixup and CutMix cannot mix: leave such samples out of the "
                "training data, or set `mixup` and `cutmix` to 0."
            )
        self.weights = weights
        super().__init__()

    @property
    def outputs(self) -> int:
        """Number of classes or labels."""
        return self.hparams["num_classes" if self.hparams["task"] == "multiclass" else "num_labels"]

    @property
    def classes(self) -> int | None:
        """Number of classes; None with several labels."""
        return self.outputs if self.hparams["task"] == "multiclass" else None

    def configure_models(self) -> None:
        """Builds the encoder and its classifier."""
        h = self.hparams
        self.model, self.images = build_backbone(
            h, self.weights, num_classes=self.outputs, global_pool=h["global_pool"], drop_rate=h["dropout"]
        )
        if h["freeze_backbone"]:
            self.model.requires_grad_(False)
            self.model.head.requires_grad_(True)
        self.mixup = None
        if h["mixup"] or h["cutmix"]:
            several = h["task"] == "multilabel"
            self.mixup = SensorMixup(self.outputs, h["mixup"], h["cutmix"], h["label_smoothing"], several)

    def configure_losses(self) -> None:
        """Cross-entropy; with several labels binary cross-entropy. Smoothing is for training alone."""
        h = self.hparams
        several = h["task"] == "multilabel"
        given = h["pos_weight" if several else "class_weights"]
        weight = None if given is None else torch.tensor(given, dtype=torch.float32)
        if several:
            self.criterion: nn.Module = nn.BCEWithLogitsLoss(pos_weight=weight)
            self.train_criterion: nn.Module = self.criterion
            return
        ignored = {} if h["ignore_index"] is None else {"ignore_index": h["ignore_index"]}
        smoothing = 0.0 if self.mixup else h["label_smoothing"]  # mixup smooths its targets itself
        self.criterion = nn.CrossEntropyLoss(weight, **ignored)
        self.train_criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, **ignored)

    def configure_metrics(self) -> None:
        """TorchGeo's metrics, and average precision where there are several labels."""
        super().configure_metrics()
        if self.hparams["task"] == "multilabel":
            from torchmetrics.classification import MultilabelAveragePrecision

            for metrics in (self.val_metrics, self.test_metrics):
                metrics.add_metrics(
                    {
                        f"{name}AveragePrecision": MultilabelAveragePrecision(self.outputs, average=average)
                        for name, average in (("Overall", "micro"), ("Average", "macro"))
                    }
                )

    def train(self, mode: bool = True) -> "FineTuneClassification":
        """Sets the mode; a frozen encoder stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            self.model.eval()
            self.model.head_drop.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, classes) of anything that the encoder reads."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The loss of a batch."""
        images, label = self.images(batch), self._label(batch)
        if self.mixup is None:
            logits = self(images)
            self.train_metrics(self._scores(logits), label)
            target = self._target(label, self.hparams["label_smoothing"])
        else:  # what an image shows is no longer one class: no metrics
            images, target = self.mixup(images, label)
            logits = self(images)
        loss: Tensor = self.train_criterion(logits, target)
        self.log("train_loss", loss, batch_size=len(label), prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the training metrics."""
        if self.mixup is None:
            super().on_train_epoch_end()

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Updates the validation metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Updates the test metrics."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities (B, classes)."""
        return self._scores(self(self.images(batch)))

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        label = self._label(batch)
        logits = self(self.images(batch))
        getattr(self, f"{stage}_metrics")(self._scores(logits), label)
        self.log(f"{stage}_loss", self.criterion(logits, self._target(label)), batch_size=len(label))

    def _scores(self, logits: Tensor) -> Tensor:
        """Probabilities in fp32: those near 1 are equal in bf16, and mAP ranks them.

        torchmetrics takes logits, too, but tells them apart batch by batch, by their range.
        """
        logits = logits.float()
        return logits.sigmoid() if self.hparams["task"] == "multilabel" else logits.softmax(1)

    def _label(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels.

        Raises:
            TerraFMError: If there are none, or their shape is not the task's.
        """
        if "label" not in batch:
            raise TerraFMError(
                f"The batch has no 'label' (keys {', '.join(batch)}): use a dataset for classification."
            )
        label = batch["label"]
        several = self.hparams["task"] == "multilabel"
        if several and (label.ndim != 2 or label.shape[1] != self.outputs):
            raise TerraFMError(
                f"The labels have the shape {tuple(label.shape)}, but `num_labels: {self.outputs}` needs "
                f"(batch, {self.outputs}) zeros and ones: set `num_labels` to the dataset's number."
            )
        if not several and label.ndim != 1:
            raise TerraFMError(
                f"The labels have the shape {tuple(label.shape)}, but `task: multiclass` needs one class per image, "
                "(batch,): set `task: multilabel` with `num_labels`."
            )
        return label

    def _target(self, label: Tensor, smoothing: float = 0.0) -> Tensor:
        """What the loss compares with; classes are smoothed by the loss itself."""
        if self.hparams["task"] == "multiclass":
            return label
        return label.float() * (1 - smoothing) + 0.5 * smoothing

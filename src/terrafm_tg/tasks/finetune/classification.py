"""Fine-tuning for classification: one class or several labels per image, from one sensor or several."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SHARE, checked

from .encoder import build_backbone
from .task import SensorTask


@checked(num_classes=COUNT, num_labels=COUNT, dropout=SHARE, mixup=NOT_NEGATIVE, cutmix=NOT_NEGATIVE)
class FineTuneClassification(SensorTask):
    """Fine-tunes the encoder with a linear classifier.

    Batches hold ``image`` or one ``image_<modality>`` per sensor, normalized, which the encoder fuses, and
    ``label``: classes (B,), or zeros and ones (B, num_labels). Logs the loss and TorchGeo's metrics; with several
    labels also the mean average precision, ``OverallAveragePrecision`` (micro) and ``AverageAveragePrecision``
    (macro).

    Args:
        model: ``terrafm_<size>``, also with an ending such as ``_s2l1c`` or ``_rgb``.
        weights: Encoder weights: ``terrafm_base``, another name or enum, a path or URL; random where None.
        task: ``multiclass`` or ``multilabel``.
        num_classes: Number of classes, for ``multiclass``.
        num_labels: Number of labels, for ``multilabel``.
        pos_weight: Weight of each label's positives in the loss of ``multilabel``.
        global_pool: ``token`` (class token) or ``avg`` (mean of the patch tokens).
        dropout: Rate before the classifier.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        kwargs: As :class:`~terrafm_tg.tasks.finetune.task.SensorTask`.

    Raises:
        TerraFMError: If a setting is impossible, or the weights cannot be loaded.
    """

    target_key = "label"
    ranked = ("val", "test")

    def __init__(
        self,
        model: str = "terrafm_base",
        weights: WeightsEnum | str | None = None,
        *,
        task: Literal["multiclass", "multilabel"] = "multiclass",
        num_classes: int | None = None,
        num_labels: int | None = None,
        pos_weight: Sequence[float] | None = None,
        global_pool: Literal["token", "avg"] = "token",
        dropout: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if (num_classes if task == "multiclass" else num_labels) is None:
            name = "num_classes" if task == "multiclass" else "num_labels"
            raise TerraFMError(f"`task: {task}` needs `{name}`: set how many there are.")
        if (mixup or cutmix) and kwargs.get("ignore_index") is not None:
            raise TerraFMError(
                f"`ignore_index` is {kwargs['ignore_index']}, which Mixup and CutMix cannot mix: leave such samples "
                "out of the training data, or set `mixup` and `cutmix` to 0."
            )
        super().__init__(model=model, weights=weights, **kwargs)

    def configure_models(self) -> None:
        """Builds the encoder and its classifier."""
        h = self.hparams
        self.model, self.images = build_backbone(
            h, self.weights, num_classes=self.outputs, global_pool=h["global_pool"], drop_rate=h["dropout"]
        )
        if h["mixup"] or h["cutmix"]:
            several = self.kind == "multilabel"
            self.mixup = SensorMixup(self.outputs, h["mixup"], h["cutmix"], h["label_smoothing"], several)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities (B, classes), float32: those near 1 are equal in bf16."""
        logits = self(self.images(batch)).float()
        return logits.sigmoid() if self.kind == "multilabel" else logits.softmax(1)

    def shaped(self, target: Tensor) -> Tensor:
        """Classes (B,), or zeros and ones (B, num_labels).

        Raises:
            TerraFMError: If they have another shape.
        """
        if self.kind == "multilabel":
            if target.ndim != 2 or target.shape[1] != self.outputs:
                raise TerraFMError(
                    f"The labels have the shape {tuple(target.shape)}, but `num_labels: {self.outputs}` needs "
                    f"(batch, {self.outputs}) zeros and ones: set `num_labels` to the dataset's number."
                )
            return target
        if target.ndim != 1:
            raise TerraFMError(
                f"The labels have the shape {tuple(target.shape)}, but `task: multiclass` needs one class per image, "
                "(batch,): set `task: multilabel` with `num_labels`."
            )
        return target.long()


class SensorMixup:
    """timm's Mixup and CutMix with the same partner, share and box for all sensors of a sample.

    Args:
        num_classes: Number of classes or labels.
        mixup: Alpha of Mixup's Beta distribution; 0 for none.
        cutmix: Alpha of CutMix's; 0 for none. With both, each batch takes one of them at random.
        label_smoothing: Share of the target that is spread over all classes.
        multilabel: Whether targets are several labels per sample.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float, label_smoothing: float, multilabel: bool) -> None:
        from timm.data.mixup import Mixup

        several = {"multi_label": True} if multilabel else {}
        self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes, **several)

    def __call__(self, images: dict[str, Tensor], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Mixes each sample with its counterpart from the other end of the batch; of an odd one, the first stays.

        Args:
            images: Sensor -> (B, C, H, W), all of one size.
            target: Classes (B,) or labels (B, L).

        Returns:
            New images, and soft targets (B, L).

        Raises:
            TerraFMError: If the sensors differ in size.
        """
        sizes = {tuple(image.shape[-2:]) for image in images.values()}
        if len(sizes) > 1:
            raise TerraFMError(
                f"The sensors differ in size ({' and '.join(f'{h}x{w}' for h, w in sorted(sizes))} px): resample "
                "them to one grid."
            )
        count, joined = len(target), torch.cat(list(images.values()), 1)
        if count % 2:  # timm mixes pairs: the first sample with itself
            joined, target = torch.cat([joined, joined[:1]]), torch.cat([target, target[:1]])
        joined, target = (x[:count] for x in self.mix(joined, target))
        parts = joined.split([image.shape[1] for image in images.values()], 1)
        return dict(zip(images, parts, strict=True)), target

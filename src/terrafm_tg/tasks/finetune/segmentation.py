"""Fine-tuning for semantic segmentation: a class per pixel, from one sensor or several."""

from typing import Any, Literal, Self

from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.smp_encoder import feature_blocks

from .encoder import build_backbone
from .heads import Head, PatchHead, UPerNetHead, resized
from .task import SensorTask


class SensorSegmenter(nn.Module):
    """The encoder, fused over sensors, under a decoder; TorchGeo's models read one tensor.

    Args:
        encoder: The encoder.
        decoder: ``upernet`` (smp's, on the pyramid of four blocks) or ``linear`` (one layer on the last block).
        classes: Number of classes.
        width: Channels of UPerNet.
    """

    def __init__(self, encoder: TerraFMViT, decoder: str, classes: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder
        depth = len(encoder.blocks)
        self.blocks = feature_blocks(depth) if decoder == "upernet" else [depth - 1]
        if decoder == "upernet":
            self.decoder: Head = UPerNetHead(encoder.embed_dim, classes, width)
        else:
            self.decoder = PatchHead(encoder.embed_dim, classes, side=1)

    def forward(self, x: Any) -> Tensor:
        """Logits (B, classes, H, W) of anything that the encoder reads."""
        indices = sorted(set(self.blocks))  # of a shallow encoder fewer than four
        features = self.encoder.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
        found = dict(zip(indices, features, strict=True))
        maps = [found[block] for block in self.blocks]
        (logits,) = self.decoder(maps if len(maps) > 1 else maps[0])
        height, width = (PATCH_SIZE * n for n in features[-1].shape[-2:])
        return resized(logits, (height, width), align_corners=True)


class FineTuneSegmentation(SensorTask):
    """Fine-tunes the encoder for semantic segmentation.

    Batches hold ``image`` or one ``image_<modality>`` per sensor, normalized, which the encoder fuses, and
    ``mask``: classes (B, H, W). Logs the loss and TorchGeo's metrics; ``AverageJaccardIndex`` is the mIoU.

    Args:
        model: ``terrafm_<size>``, also with an ending such as ``_s2l1c`` or ``_rgb``.
        weights: Encoder weights: ``terrafm_base``, another name or enum, a path or URL; random where None.
        decoder: ``upernet``, on blocks 4, 6, 8 and 12 as in the paper's probing, or ``linear``.
        num_classes: Number of classes.
        loss: ``ce``, ``focal`` or ``dice``; class weights and smoothing are those of ``ce``.
        kwargs: As :class:`~terrafm_tg.tasks.finetune.task.SensorTask`.

    Raises:
        TerraFMError: If a setting is impossible, or the weights cannot be loaded.
    """

    def __init__(
        self,
        model: str = "terrafm_base",
        weights: WeightsEnum | str | None = None,
        *,
        decoder: Literal["upernet", "linear"] = "upernet",
        num_classes: int = 2,
        loss: Literal["ce", "focal", "dice"] = "ce",
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, weights=weights, **kwargs)

    def configure_models(self) -> None:
        """Builds the encoder and its decoder."""
        h = self.hparams
        encoder, self.images = build_backbone(h, self.weights)
        self.model = SensorSegmenter(encoder, h["decoder"], h["num_classes"])
        if h["freeze_backbone"]:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen encoder stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            self.model.encoder.eval()
        return self

    def logits(self, images: dict[str, Tensor], target: Tensor) -> Tensor:
        """Logits (B, classes, H, W).

        Raises:
            TerraFMError: If the masks have another size.
        """
        logits: Tensor = self(images)
        if logits.shape[-2:] != target.shape[-2:]:
            raise TerraFMError(
                f"The masks are {target.shape[-2]}x{target.shape[-1]} px and the images "
                f"{logits.shape[-2]}x{logits.shape[-1]}: give both the same size."
            )
        return logits

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Probabilities (B, classes, H, W), and where the batch has them its bounds and transform."""
        return {
            "probabilities": self(self.images(batch)).softmax(1),
            "bounds": batch.get("bounds"),
            "transform": batch.get("transform"),
        }

    def target(self, batch: dict[str, Any]) -> Tensor:
        """The masks of a batch, (B, H, W).

        Raises:
            TerraFMError: If there are none, or their shape is another one.
        """
        if "mask" not in batch:
            raise TerraFMError(f"The batch has no 'mask' (keys {', '.join(batch)}): use a dataset for segmentation.")
        mask = batch["mask"]
        mask = mask.squeeze(1) if mask.ndim == 4 else mask
        if mask.ndim != 3:
            raise TerraFMError(
                f"The masks have the shape {tuple(batch['mask'].shape)}, but segmentation needs one class per "
                "pixel, (batch, height, width)."
            )
        return mask.long()

"""Fine-tuning for semantic segmentation: a class per pixel, from one sensor or several."""

from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.smp_encoder import feature_blocks
from terrafm_tg.utils.arguments import COUNT, checked

from .encoder import build_backbone
from .heads import Head, PatchHead, UPerNetHead, resized
from .task import SensorTask


class Segmenter(nn.Module):
    """The encoder, fused over sensors, under a decoder; TorchGeo's models read one tensor.

    Args:
        encoder: The encoder.
        decoder: Reads the pyramid of four blocks (UPerNet), or the last block alone.
    """

    def __init__(self, encoder: TerraFMViT, decoder: Head) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        depth = len(encoder.blocks)
        self.blocks = feature_blocks(depth) if isinstance(decoder, UPerNetHead) else [depth - 1]

    def forward(self, x: Any) -> Tensor:
        """Logits (B, classes, H, W) of anything that the encoder reads."""
        indices = sorted(set(self.blocks))  # of a shallow encoder fewer than four
        features = self.encoder.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
        found = dict(zip(indices, features, strict=True))
        maps = [found[block] for block in self.blocks]
        (logits,) = self.decoder(maps if len(maps) > 1 else maps[0])
        height, width = (PATCH_SIZE * n for n in features[-1].shape[-2:])
        return resized(logits, (height, width), align_corners=True)


@checked(num_classes=COUNT)
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
        dim, classes = encoder.embed_dim, h["num_classes"]
        decoder = UPerNetHead(dim, classes) if h["decoder"] == "upernet" else PatchHead(dim, classes, side=1)
        self.model = Segmenter(encoder, decoder)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Probabilities (B, classes, H, W), and where the batch has them its bounds and transform."""
        return {
            "probabilities": self(self.images(batch)).softmax(1),
            "bounds": batch.get("bounds"),
            "transform": batch.get("transform"),
        }

    def shaped(self, target: Tensor) -> Tensor:
        """The masks (B, H, W).

        Raises:
            TerraFMError: If they have another shape.
        """
        mask = target.squeeze(1) if target.ndim == 4 else target
        if mask.ndim != 3:
            raise TerraFMError(
                f"The masks have the shape {tuple(target.shape)}, but segmentation needs one class per "
                "pixel, (batch, height, width)."
            )
        return mask.long()

"""Mixup and CutMix for images of several sensors."""

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError


class SensorMixup:
    """timm's Mixup and CutMix with the same partner, share and box for all sensors of a sample.

    Args:
        num_classes: Number of classes or labels.
        mixup: Alpha of Mixup's Beta distribution; 0 for none.
        cutmix: Alpha of CutMix's; 0 for none. With both, each batch takes one of them at random.
        label_smoothing: Share of the target that is spread over all classes.
        multilabel: Whether targets are several labels per sample.
    """

    def __init__(
        self, num_classes: int, mixup: float, cutmix: float, label_smoothing: float, multilabel: bool
    ) -> None:
        from timm.data.mixup import Mixup

        several = {"multi_label": True} if multilabel else {}
        self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes, **several)

    def __call__(self, images: dict[str, Tensor], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Mixes each sample with its mirror image in the batch.

        Args:
            images: Sensor -> (B, C, H, W), all of one size.
            target: Classes (B,) or labels (B, L).

        Returns:
            New images, and soft targets (B, L).

        Raises:
            TerraFMError: If B is odd, or the sensors differ in size.
        """
        if len(target) % 2:
            raise TerraFMError(
                f"Mixup and CutMix pair the samples of a batch, and {len(target)} is odd: set an even `batch_size` "
                "(with `drop_last`), or `mixup` and `cutmix` to 0."
            )
        sizes = {tuple(image.shape[-2:]) for image in images.values()}
        if len(sizes) > 1:
            raise TerraFMError(
                f"The sensors differ in size ({' and '.join(f'{h}x{w}' for h, w in sorted(sizes))} px): resample "
                "them to one grid."
            )
        joined, target = self.mix(torch.cat(list(images.values()), 1), target)
        parts = joined.split([image.shape[1] for image in images.values()], 1)
        return dict(zip(images, parts, strict=True)), target

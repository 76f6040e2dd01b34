"""Batches made ready for the encoder on the device: unit, normalisation, size, and turns of the square."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.transforms import Normalize
from terrafm_tg.transforms.orient import ORIENTATIONS, orient


class SensorTransforms(nn.Module):
    """Normalises a batch's images, resizes them, and turns each sample at random in training.

    Args:
        bands: Bands of each sensor's images, by modality, in the order of their channels.
        image: Which sensor the key ``image`` is of.
        size: Height and width to resize to; as they are where None. Masks are resized by nearest neighbour.
        augment: Turn and mirror each sample, its images and its mask alike; nothing else changes.
        radar_unit: Unit of Sentinel-1: ``dB``, or ``linear`` power.
    """

    def __init__(
        self,
        bands: Mapping[str, Sequence[str]],
        image: str | None = None,
        size: int | None = None,
        augment: bool = False,
        radar_unit: Literal["dB", "linear"] = "dB",
    ) -> None:
        super().__init__()
        self.normalize = Normalize(image, dict(bands), size)
        self.keys = {modality.key: modality for modality in MODALITIES.values()}
        if image is not None:
            self.keys["image"] = MODALITIES[image]
        self.augment = augment
        self.linear = radar_unit == "linear"

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Transforms a batch.

        Args:
            batch: Images (B, C, H, W) or, of several dates, (B, T, C, H, W); perhaps ``mask`` (B, H, W).

        Returns:
            A new dict with float32 images.

        Raises:
            TerraFMError: If a channel count is not the number of bands, or no image is there.
        """
        images = {key: batch[key] for key in self.keys if key in batch}
        if self.linear:
            images |= {k: 10 * x.log10() for k, x in images.items() if self.keys[k].unit == "dB"}
        batch = self.normalize(batch | images)
        if self.augment:
            keys = [*images, *(["mask"] if "mask" in batch else [])]
            orientation = torch.randint(ORIENTATIONS, (len(batch[keys[0]]),))
            batch |= {key: orient(batch[key], orientation) for key in keys}
        return batch

    def mean_std(self, modality: str) -> tuple[Tensor, Tensor]:
        """The normalisation as (x - mean) / std, (C,) each, with which TorchGeo's tasks undo it for their figures."""
        scale, shift = (self.normalize.get_buffer(f"{modality}_{part}") for part in ("scale", "shift"))
        return -shift / scale, 1 / scale

"""From a TorchGeo batch to what the encoder reads: one image, or several sensors to fuse."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modalities, get_modality
from terrafm_tg.models.inputs import Columns
from terrafm_tg.transforms import Normalize

#: Normalised images lie around 0.5, mostly within 0 to 1; a batch whose median is further from 0 is not normalised.
LARGEST_MEDIAN = 5.0


class SensorImages(nn.Module):
    """Takes the images out of a batch, by sensor.

    Args:
        modalities: Sensors that batches may hold, of ``s1rtc``, ``s2l1c``, ``s2l2a``; any where None. With one,
            the key ``image`` is that sensor's.
        columns: Stem channels of the images, by modality, where batches hold raw values (dB, digital numbers)
            that this module normalises; None where they are normalised.

    Raises:
        TerraFMError: If a modality is unknown.
    """

    def __init__(self, modalities: Sequence[str] | None = None, columns: Columns | None = None) -> None:
        super().__init__()
        self.modalities = None if modalities is None else [m.name for m in get_modalities(modalities)]
        self.normalize = None
        if columns is not None:
            self.normalize = Normalize(
                bands={name: get_modality(name).channel_names(picked) for name, picked in columns.items()}
            )
        self._checked: set[str] = set()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The images of each sensor that the batch has, (B, C, H, W).

        Raises:
            TerraFMError: If there is none, one is of no known sensor or not announced, or is not normalised.
        """
        known = {modality.key: modality.name for modality in MODALITIES.values()}
        expected = ", ".join(known if self.modalities is None else (f"image_{m}" for m in self.modalities))
        images = {known[key]: image for key, image in batch.items() if key in known}
        unknown = [key for key in batch if key.startswith("image_") and key not in known]
        if unknown:
            raise TerraFMError(
                f"The batch's key {unknown[0]!r} names no sensor of TerraFM: expected {expected}; rename it in the "
                "dataset's `transforms`, or drop it."
            )
        if "image" in batch:
            if images or self.modalities is None or len(self.modalities) != 1:
                raise TerraFMError(
                    "Nothing says which sensor the batch's key 'image' is of: set `modalities` to one name, such "
                    f"as [s2l2a], or name the key as one of {', '.join(known)}."
                )
            images = {self.modalities[0]: batch["image"]}
        if not images:
            raise TerraFMError(f"The batch holds no image (keys {', '.join(batch)}): expected {expected}.")
        surplus = [name for name in images if self.modalities is not None and name not in self.modalities]
        if surplus:
            raise TerraFMError(
                f"The batch holds image_{surplus[0]}, but `modalities` are {', '.join(self.modalities or ())}: add "
                f"{surplus[0]} there, or drop the key in the dataset."
            )
        if self.normalize is not None:
            normalized = self.normalize({MODALITIES[name].key: image for name, image in images.items()})
            return {name: normalized[MODALITIES[name].key] for name in images}
        for name, image in images.items():
            self._check_normalized(name, image)
        return images

    def _check_normalized(self, name: str, image: Tensor) -> None:
        """Looks at the first image of each sensor."""
        if name in self._checked:
            return
        self._checked.add(name)
        median = image.float().median().item()
        if abs(median) > LARGEST_MEDIAN:
            raise TerraFMError(
                f"The batch's {name} has a median of {median:.4g}, but normalised images lie around 0.5: set "
                "`normalize: true`, or use a datamodule that normalises as terrafm_tg.transforms.Normalize does."
            )


class CheckedClasses(LightningModule):
    """Mix-in that looks at the classes of each batch while it is on the CPU, where that waits for nothing.

    A wrong one would end on a GPU in an error that names nothing.
    """

    #: The batch's key that holds the classes.
    target_key: str

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where targets are no classes."""
        return self.hparams["num_classes"]

    def setup(self, stage: str) -> None:
        """Lets the hook below be this module's although there is a datamodule, without Lightning's warning."""
        warnings.filterwarnings("ignore", ".*overridden `on_before_batch_transfer` in `LightningModule`.*")

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Checks the classes, except for a prediction.

        Raises:
            TerraFMError: If a value is neither a class nor the one that is ignored.
        """
        if self.target_key in batch and self.classes is not None and not self.trainer.predicting:
            check_classes(batch[self.target_key], self.classes, self.hparams["ignore_index"], self.target_key)
        return batch


def check_classes(target: Tensor, num_classes: int, ignored: int | None, key: str) -> None:
    """Stops where a value is no class.

    Args:
        target: Classes of any shape.
        num_classes: How many there are.
        ignored: Value that counts as no class.
        key: The batch's key, for the message.

    Raises:
        TerraFMError: If a value is neither a class nor ``ignored``.
    """
    wrong = (target < 0) | (target >= num_classes)
    if ignored is not None:
        wrong &= target != ignored
    if wrong.any():
        raise TerraFMError(
            f"The batch's {key} holds the class {int(target[wrong][0])}, but `num_classes: {num_classes}` are 0 to "
            f"{num_classes - 1}: set `num_classes`, or `ignore_index` for a value that means no class."
        )

"""The encoder that is fine-tuned: which parts of it learn, and which images of a TorchGeo batch it reads."""

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modalities, get_modality
from terrafm_tg.models import TerraFMViT, build_encoder
from terrafm_tg.models.builders import Weights
from terrafm_tg.models.inputs import Columns
from terrafm_tg.transforms import Normalize
from terrafm_tg.transforms.statistics import Statistics, find_statistics

#: Normalized images lie around 0.5, mostly within 0 to 1; a batch whose median is further from 0 is not normalized.
LARGEST_MEDIAN = 5.0


class SensorImages(nn.Module):
    """Takes the images out of a batch, by sensor.

    Args:
        modalities: Sensors that batches may hold, of ``s1rtc``, ``s2l1c``, ``s2l2a``; any where None. With one,
            the key ``image`` is that sensor's.
        columns: Stem channels of the images, by modality, where batches hold raw values (dB, digital numbers)
            that this module normalizes; None where they are normalized.
        statistics: Mean and standard deviation by modality to normalize with; the published ones where None.

    Raises:
        TerraFMError: If a modality is unknown.
    """

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        columns: Columns | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.modalities = None if modalities is None else [m.name for m in get_modalities(modalities)]
        self.normalize = None
        if columns is not None:
            self.normalize = Normalize(
                bands={name: get_modality(name).channel_names(picked) for name, picked in columns.items()},
                statistics=statistics,
            )
        self._checked: set[str] = set()  # of each sensor the first images are looked at

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The images of each sensor that the batch has, (B, C, H, W).

        Raises:
            TerraFMError: If there is none, one is of no known sensor or not announced, or is not normalized.
        """
        known = {MODALITIES[name].key: name for name in self.modalities or MODALITIES}
        wrong = [key for key in batch if key.startswith("image_") and key not in known]
        if wrong:
            raise TerraFMError(
                f"The batch holds {wrong[0]!r}, expected {', '.join(known)}: add its sensor to `modalities`, rename it "
                "in the dataset's `transforms`, or drop it."
            )
        images = {known[key]: image for key, image in batch.items() if key in known}
        if "image" in batch:
            if images or self.modalities is None or len(self.modalities) != 1:
                raise TerraFMError(
                    "Nothing says which sensor the batch's key 'image' is of: set `modalities` to one name, such "
                    f"as [s2l2a], or name the key as one of {', '.join(known)}."
                )
            images = {self.modalities[0]: batch["image"]}
        if not images:
            raise TerraFMError(f"The batch holds no image (keys {', '.join(batch)}): expected {', '.join(known)}.")
        if self.normalize is not None:
            normalized = self.normalize({MODALITIES[name].key: image for name, image in images.items()})
            return {name: normalized[MODALITIES[name].key] for name in images}
        for name in images.keys() - self._checked:
            median = images[name].float().median().item()
            if abs(median) > LARGEST_MEDIAN:
                raise TerraFMError(
                    f"The batch's {name} has a median of {median:.4g}, but normalized images lie around 0.5: set "
                    "`normalize: true`, or use a datamodule that normalizes as terrafm_tg.transforms.Normalize does."
                )
            self._checked.add(name)
        return images


def build_backbone(
    settings: MutableMapping[str, Any], weights: Weights, **timm: Any
) -> tuple[TerraFMViT, SensorImages]:
    """Builds the encoder of a fine-tuning task, and what feeds it.

    Stems of sensors that the task does not name are frozen, and on request all but a classifier.

    Args:
        settings: The task's hyper-parameters: ``model``, ``modalities``, ``bands``, ``normalize``, ``depth``,
            ``drop_path``, ``grad_checkpointing``, ``freeze_backbone``, and ``statistics``, which become those of the
            weights where there are none.
        weights: Encoder weights; random where None.
        timm: Further settings of the encoder.

    Raises:
        TerraFMError: If a name is unknown, or the weights cannot be loaded.
    """
    named = settings["modalities"]
    encoder = build_encoder(
        settings["model"],
        weights,
        modality=named[0] if named is not None and len(named) == 1 else None,
        bands=settings["bands"],
        depth=settings["depth"],
        drop_path_rate=settings["drop_path"],
        **timm,
    )
    encoder.set_grad_checkpointing(settings["grad_checkpointing"])
    if named is None and encoder.modality is not None:  # the model's name says it
        named = [encoder.modality]
    if named is not None:
        freeze_unread(encoder, named)
    if settings["freeze_backbone"]:
        encoder.requires_grad_(False)
        encoder.head.requires_grad_(True)
    settings["statistics"] = find_statistics(settings["statistics"]) or encoder.statistics
    return encoder, SensorImages(named, encoder.columns if settings["normalize"] else None, settings["statistics"])


def freeze_unread(encoder: TerraFMViT, modalities: Collection[str]) -> None:
    """Freezes the stems that no image of ``modalities`` reaches, and the fusion where there is one of them.

    Their gradients are zero, not missing, and weight decay would shrink what no image trains.
    """
    for modality in MODALITIES.values():
        if modality.name not in modalities:
            encoder.patch_embed.get_submodule(f"conv2d_{modality.stem}").requires_grad_(False)
            encoder.patch_embed.get_parameter(f"{modality.stem}_embed").requires_grad_(False)
    if len(modalities) == 1:
        encoder.patch_embed.fusion.requires_grad_(False)

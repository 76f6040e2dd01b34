"""The encoder that is fine-tuned: which parts of it learn."""

from collections.abc import Collection, Mapping
from typing import Any

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import TerraFMViT, build_encoder
from terrafm_tg.models.sizes import Weights

from .inputs import SensorImages


def build_backbone(
    settings: Mapping[str, Any], weights: Weights, **timm: Any
) -> tuple[TerraFMViT, SensorImages]:
    """Builds the encoder of a fine-tuning task, and what feeds it.

    Stems of sensors that the task does not name are frozen.

    Args:
        settings: The task's hyper-parameters: ``model``, ``modalities``, ``bands``, ``normalize``, ``depth``,
            ``drop_path``, ``grad_checkpointing``.
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
    return encoder, SensorImages(named, encoder.columns if settings["normalize"] else None)


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

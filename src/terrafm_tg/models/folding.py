"""A faster encoder for inference: pairs of linear maps in the stem folded into single ones."""

import copy

import torch
from torch import nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.arguments import checked

from .vit import TerraFMViT


@checked()
@torch.no_grad()
def reparameterize(model: TerraFMViT) -> TerraFMViT:
    """Folds ``proj1`` into each stem's convolution, and ``proj2`` into ``proj3``: exact up to rounding.

    The fusion stays as it is, since it acts on ``proj1``'s output. The result's state dict has not the shapes
    of a checkpoint: load first, fold then.

    Args:
        model: The encoder; it is not changed.

    Returns:
        A new encoder of the same function.

    Raises:
        TerraFMError: If the encoder is folded already.
    """
    folded = copy.deepcopy(model)
    embed = folded.patch_embed
    value, mix, out = embed.projection.proj1, embed.projection.proj2, embed.projection.proj3
    if not isinstance(value, nn.Linear) or not isinstance(mix, nn.Linear):
        raise TerraFMError("The encoder is folded already: reparameterize the one that was loaded.")
    fold = value.weight.double()
    for modality in MODALITIES.values():
        stem = embed.get_submodule(f"conv2d_{modality.stem}")
        offset = embed.get_parameter(f"{modality.stem}_embed")
        weight, bias = stem.get_parameter("weight"), stem.get_parameter("bias")
        weight.copy_(torch.einsum("de,echw->dchw", fold, weight.double()))
        bias.copy_(fold @ (bias + offset[0]).double())
        offset.zero_()
    out.bias.copy_(out.weight.double() @ mix.bias.double() + out.bias.double())
    out.weight.copy_(out.weight.double() @ mix.weight.double())
    embed.projection.proj1 = embed.projection.proj2 = nn.Identity()
    return folded

"""Models of the dense tasks: a head on the encoder, with its weights."""

from collections.abc import Sequence
from typing import Any, Literal

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT, load_encoder_state, load_weights
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.sizes import BUILDERS, SIZES, split_name
from terrafm_tg.models.smp_encoder import feature_blocks, smp_entry
from terrafm_tg.models.weights import registered_weights

from .optimization import encoder_of

#: Heads of :func:`dense_model`.
Head = Literal["upernet", "unet", "segformer", "dpt", "linear"]

_SMP = {"upernet": smp.UPerNet, "unet": smp.Unet, "segformer": smp.Segformer}


class PatchLinear(nn.Module):
    """A linear map from each patch token to the classes of the patch's pixels: the linear probe of dense tasks.

    Args:
        encoder: The encoder.
        classes: Number of output channels.
    """

    def __init__(self, encoder: TerraFMViT, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Identity()
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(encoder.embed_dim, classes * PATCH_SIZE**2, kernel_size=1), nn.PixelShuffle(PATCH_SIZE)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes, H, W)."""
        features = self.encoder.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        return self.segmentation_head(self.decoder(features[-1]))


def dense_model(
    head: str,
    backbone: str,
    in_channels: int,
    classes: int,
    weights: WeightsEnum | str | bool | None = None,
    modality: str | None = None,
    bands: Sequence[str] | None = None,
) -> nn.Module:
    """An encoder with a head that predicts each pixel.

    Args:
        head: One of ``upernet``, ``unet``, ``segformer``, ``dpt``, ``linear``.
        backbone: ``terrafm_<size>``, or one of its variants by modality and for RGB.
        in_channels: Channels of the images.
        classes: Channels of the prediction.
        weights: A registered weight or its name, a file or URL of any kind that
            :func:`~terrafm_tg.models.load_encoder_state` reads; True for the size's registered weight.
        modality: What the images are, where the name does not say it.
        bands: Bands of the images in the order of their channels.

    Returns:
        A module with ``encoder``, ``decoder`` and ``segmentation_head``.

    Raises:
        TerraFMError: If a name is unknown, the encoder cannot read such images, or the weights are missing, damaged or
            of another size.
    """
    if backbone not in BUILDERS:
        raise TerraFMError(f"Backbone {backbone!r} is unknown: use one of {', '.join(BUILDERS)}.")
    settings = {
        name: value for name, value in (("modality", modality), ("bands", bands)) if value is not None
    }
    if not weights:
        return _build(head, backbone, in_channels, classes, settings)
    size = split_name(backbone)[0]
    source = registered_weights(size) if weights is True else weights
    state, _ = load_encoder_state(source, expected=size)
    model = _build(head, backbone, in_channels, classes, settings)
    load_weights(encoder_of(model), state, str(source))
    return model


def _build(head: str, backbone: str, in_channels: int, classes: int, settings: dict[str, Any]) -> nn.Module:
    """The model with random weights; ``settings`` are the encoder's."""
    if head in _SMP:
        # smp hands no settings to an encoder of its table, so each set of settings is an entry there.
        entry = f"{backbone}({settings})" if settings else backbone
        smp.encoders.encoders.setdefault(entry, smp_entry(backbone, **settings))
        return _SMP[head](entry, encoder_weights=None, in_channels=in_channels, classes=classes)
    if head == "dpt":
        blocks = feature_blocks(SIZES[split_name(backbone)[0]]["depth"])
        return smp.DPT(
            f"tu-{backbone}",
            encoder_weights=None,
            encoder_output_indices=blocks,
            in_channels=in_channels,
            classes=classes,
            **settings,
        )
    if head == "linear":
        return PatchLinear(timm.create_model(backbone, in_chans=in_channels, **settings), classes)
    raise TerraFMError(f"Head {head!r} is unknown: use one of {', '.join([*_SMP, 'dpt', 'linear'])}.")

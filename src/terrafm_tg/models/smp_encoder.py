"""The encoder for segmentation_models_pytorch (smp), and so for the dense tasks of TorchGeo."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L2A

from .inputs import PATCH_SIZE, input_channels
from .sizes import SIZES, split_name
from .vit import TerraFMViT
from .weights import find_encoder

#: Stages of smp's encoders: 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size.
STAGES = 5


def feature_blocks(depth: int) -> list[int]:
    """Blocks whose outputs are the features, counted from 0: 3, 5, 7 and 11 of 12, and the same shares of others."""
    return [max(round(depth * part / 12) - 1, 0) for part in (4, 6, 8, 12)]


def pyramid(features: Sequence[Tensor]) -> list[Tensor]:
    """Four maps of 1/16 of the image at 4, 2, 1 and 1/2 times their size.

    Bilinear, and by maxima: without parameters, a frozen encoder holds nothing untrained, and a checkpoint of the
    encoder holds every tensor.

    Args:
        features: Four maps (B, d, h, w).

    Returns:
        (B, d, 4 h, 4 w), (B, d, 2 h, 2 w), (B, d, h, w), and (B, d, h / 2, w / 2), rounded up.
    """
    first, second, third, last = features
    larger = [
        nn.functional.interpolate(x, scale_factor=scale, mode="bilinear") for x, scale in ((first, 4), (second, 2))
    ]
    return [*larger, third, nn.functional.max_pool2d(last, 2, ceil_mode=True)]


class TerraFMEncoder(TerraFMViT):
    """TerraFM as an encoder of smp: four blocks' features, normed, as a pyramid (the paper's UPerNet probing).

    Its parameters are the encoder's alone: the state dict is that of :class:`~terrafm_tg.models.TerraFMViT`. Twice the
    channels are two dates of one place, as TorchGeo's ``ChangeDetection`` passes them to ``unet``, ``upernet`` and
    ``segformer``: the encoder sees each date by itself, and the features of both are concatenated.

    Args:
        name: ``terrafm_<size>``, or one of its variants by modality and for RGB.
        depth: Number of stages: 5.
        output_stride: 32: an encoder of patches cannot be dilated.
        settings: More settings of :class:`~terrafm_tg.models.TerraFMViT`, such as ``modality`` and ``bands``.

    Raises:
        TerraFMError: If ``depth`` or ``output_stride`` is another, or a setting is wrong.

    Example:
        >>> model = smp.UPerNet("terrafm_tiny_s2l2a", encoder_weights=None, in_channels=12, classes=4)
        >>> model(torch.rand(2, 12, 64, 64)).shape
        torch.Size([2, 4, 64, 64])
    """

    #: What an image's height and width must be divisible by.
    output_stride = PATCH_SIZE

    def __init__(self, name: str, depth: int = STAGES, output_stride: int = 32, **settings: Any) -> None:
        if depth != STAGES:
            raise TerraFMError(f"TerraFM has features for {STAGES} stages, got {depth}: drop `encoder_depth`.")
        if output_stride != 32:
            raise TerraFMError(
                f"TerraFM cannot be dilated to an output stride of {output_stride}, as deeplabv3+ asks for: use "
                "upernet, unet or segformer."
            )
        size, preset = split_name(name)
        if "modality" not in settings:  # a modality of the caller's own replaces the name's, and its bands
            settings = preset | settings
        super().__init__(**(SIZES[size] | settings))
        self.name = name
        self.dates = 1

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image, none at 1/2, and the features' at 1/4, 1/8, 1/16 and 1/32."""
        return [self.in_chans, 0, *[self.dates * self.embed_dim] * 4]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Says how many channels the images have: those of one date or of two.

        Args:
            in_channels: Channels of a bare tensor.
            pretrained: For smp; the kernels keep all bands in either case.

        Raises:
            TerraFMError: If no stem reads that many channels.
        """
        names = (self.modality,) if self.modality else (S1RTC.name, S2L2A.name)
        known = {len(self.columns[name]) for name in names}
        self.dates = 2 if in_channels not in known and in_channels / 2 in known else 1
        self.in_chans = self.dates * input_channels(self.columns, self.modality, in_channels // self.dates)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]  # smp's encoders return their features
        """Features of one date, or of two.

        Args:
            x: Normalized images (B, C, H, W), or (B, 2 C, H, W).

        Returns:
            The image, an empty map of 1/2, and the maps of :func:`pyramid` with d or 2 d channels.
        """
        batch, channels, height, width = x.shape
        features = self.forward_intermediates(
            x.reshape(batch * self.dates, channels // self.dates, height, width),
            indices=feature_blocks(len(self.blocks)),
            norm=True,
            intermediates_only=True,
        )
        maps = [f.unflatten(0, (batch, self.dates)).flatten(1, 2) for f in pyramid(features)]
        return [x, x.new_empty(batch, 0, height // 2, width // 2), *maps]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes the encoder out of what TorchGeo's ``extract_backbone`` found in the checkpoint of any task.

        Raises:
            TerraFMError: If there is none in it, or one of another size.
        """
        if not any(name.endswith("cls_token") for name in state_dict):
            raise TerraFMError(
                "TorchGeo finds no TerraFM encoder in these weights: run `terrafm export` on the file and pass the "
                ".ckpt that it writes."
            )
        state = {k: v for k, v in find_encoder(state_dict, "The checkpoint").items() if not k.startswith("head.")}
        return super().load_state_dict(state, strict=strict, assign=assign)


def smp_entry(name: str, **settings: Any) -> dict[str, Any]:
    """Makes the entry of smp's table of encoders for a name; ``settings`` are those of :class:`TerraFMEncoder`."""
    return {"encoder": TerraFMEncoder, "pretrained_settings": {}, "params": {"name": name, **settings}}

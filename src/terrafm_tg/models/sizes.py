"""Builders of the encoder by name, for timm, TorchGeo and people.

timm and torchvision are imported when a model is built, so that registering the names costs nothing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L2A, Modality, get_modality

if TYPE_CHECKING:
    from os import PathLike

    from torchvision.models._api import WeightsEnum

    from .vit import TerraFMViT

#: Where weights come from: a registered weight or its name, a file, a URL; True for the registered one.
type Weights = WeightsEnum | str | PathLike[str] | bool | None

#: Width, blocks and heads of each size. Base and large are the paper's, small its scaling study's, tiny ours.
SIZES: dict[str, dict[str, int]] = {
    "terrafm_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "terrafm_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "terrafm_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "terrafm_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}

#: What a name's ending presets, for callers that pass only a name, `in_chans` and `num_classes`.
VARIANTS: dict[str, dict[str, Any]] = {f"_{name}": {"modality": name} for name in MODALITIES}
VARIANTS["_rgb"] = {"modality": S2L2A.name, "bands": ("B04", "B03", "B02")}

#: The published checkpoint of the base model.
PUBLISHED_URL = "https://huggingface.co/MBZUAI/TerraFM/resolve/main/TerraFM-B.pth"


def terrafm_tiny(weights: Weights = None, **kwargs: Any) -> "TerraFMViT":
    """192 wide, 12 blocks, 3 heads; the arguments are those of :func:`build_encoder`."""
    return build_encoder("terrafm_tiny", weights, **kwargs)


def terrafm_small(weights: Weights = None, **kwargs: Any) -> "TerraFMViT":
    """384 wide, 12 blocks, 6 heads (ViT-S/16); the arguments are those of :func:`build_encoder`."""
    return build_encoder("terrafm_small", weights, **kwargs)


def terrafm_base(weights: Weights = None, **kwargs: Any) -> "TerraFMViT":
    """768 wide, 12 blocks, 12 heads (ViT-B/16); the arguments are those of :func:`build_encoder`."""
    return build_encoder("terrafm_base", weights, **kwargs)


def terrafm_large(weights: Weights = None, **kwargs: Any) -> "TerraFMViT":
    """1024 wide, 24 blocks, 16 heads (ViT-L/16); the arguments are those of :func:`build_encoder`."""
    return build_encoder("terrafm_large", weights, **kwargs)


def build_encoder(
    name: str, weights: Weights = None, *, pretrained: bool = False, **kwargs: Any
) -> "TerraFMViT":
    """Builds an encoder.

    Args:
        name: ``terrafm_<size>``, followed by ``_<modality>`` or ``_rgb`` where the caller cannot pass
            ``modality`` or ``bands``.
        weights: A registered weight or its name, a file or a URL; True for the size's registered weight. The
            number of blocks follows the file's.
        pretrained: The same as ``weights=True``, as timm says it.
        kwargs: Settings of :class:`~terrafm_tg.models.TerraFMViT` and of timm's ``create_model``
            (``features_only``, ``out_indices``, ``pretrained_cfg_overlay``).

    Returns:
        The encoder; with ``features_only=True`` timm's feature extractor around it.

    Raises:
        TerraFMError: If the name is unknown, or the weights are missing, damaged or of another size.
    """
    from timm.models import build_model_with_cfg

    from .inputs import guess_modality, input_channels, select_columns
    from .vit import TerraFMViT

    if name not in BUILDERS:
        raise TerraFMError(f"Model {name!r} is unknown: use one of {', '.join(BUILDERS)}.")
    size, preset = split_name(name)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if "modality" not in kwargs:  # a modality of the caller's own replaces the name's, and its bands
        kwargs = preset | kwargs
    modality = kwargs.get("modality")
    columns = select_columns(modality, kwargs.get("bands"))
    kwargs["in_chans"] = input_channels(columns, modality, kwargs.get("in_chans"))

    # timm itself loads what a caller's own pretrained_cfg points to, such as a local folder.
    overlay = kwargs.pop("pretrained_cfg_overlay", None)
    by_timm = overlay is not None or not isinstance(kwargs.get("pretrained_cfg"), str | None)
    if pretrained and by_timm:  # named, timm before 1.0.31 would cut its kernel to the input's channels
        overlay = (overlay or {}) | {"first_conv": None}
    checkpoint = None
    if weights or (pretrained and not by_timm):
        from .checkpoint import load_encoder_state, load_weights
        from .weights import registered_weights

        source = registered_weights(size) if weights in (True, None, False) else weights
        checkpoint, meta = load_encoder_state(source, expected=size)
        kwargs.setdefault("depth", meta["depth"])
    model = build_model_with_cfg(
        TerraFMViT,
        name,
        pretrained=pretrained and by_timm,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **(SIZES[size] | kwargs),
    )
    bare = get_modality(modality or guess_modality(kwargs["in_chans"], columns))
    config = cast("dict[str, Any]", model.pretrained_cfg)  # of a feature extractor, too
    config |= {} if by_timm else data_config(bare, columns[bare.name])
    config["first_conv"] = first_conv(bare)
    if checkpoint is not None:
        load_weights(model if isinstance(model, TerraFMViT) else model.model, checkpoint, str(source))
    return model


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """``terrafm_base_s1rtc`` -> its size ``terrafm_base`` and what its ending presets."""
    size = next(size for size in SIZES if name.startswith(size))
    return size, VARIANTS.get(name.removeprefix(size), {})


def _variant(name: str) -> Callable[..., "TerraFMViT"]:
    def build(weights: Weights = None, **kwargs: Any) -> "TerraFMViT":
        return build_encoder(name, weights, **kwargs)

    size, preset = split_name(name)
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f":func:`{size}` with {preset}."
    return build


#: All builders by the name they are registered under.
BUILDERS: dict[str, Callable[..., "TerraFMViT"]] = {
    "terrafm_tiny": terrafm_tiny,
    "terrafm_small": terrafm_small,
    "terrafm_base": terrafm_base,
    "terrafm_large": terrafm_large,
}
BUILDERS |= {size + ending: _variant(size + ending) for size in SIZES for ending in VARIANTS}


def _timm_cfg(name: str) -> dict[str, Any]:
    """For timm, a ``pretrained_cfg``: source, input size, and normalisation in the modality's unit."""
    size, preset = split_name(name)
    sensor = get_modality(preset.get("modality", S2L2A.name))
    return data_config(sensor, sensor.stem_columns(preset.get("bands", sensor.bands))) | {
        "first_conv": first_conv(sensor),
        "url": PUBLISHED_URL if size == "terrafm_base" else None,
        "num_classes": 0,
        "crop_pct": 1.0,
        "classifier": "head",
        "license": "mit",
        "origin_url": "https://github.com/mbzuai-oryx/TerraFM",
        "paper_name": "TerraFM: A Scalable Foundation Model for Unified Multisensor Earth Observation",
        "paper_ids": "arXiv:2506.06281",
    }


def first_conv(modality: Modality) -> str:
    """Returns the name of the convolution that reads a modality, for timm."""
    return f"patch_embed.conv2d_{modality.stem}"


def data_config(modality: Modality, columns: Sequence[int | None]) -> dict[str, Any]:
    """What timm's ``resolve_model_data_config`` reads: input size, mean and deviation in the modality's unit.

    A channel that no stem reads keeps its values.

    Args:
        modality: The modality of a bare tensor.
        columns: The stem channel of each channel of the tensor.
    """
    return {
        "input_size": (len(columns), 224, 224),
        "mean": tuple(0.0 if i is None else modality.mean[i] - 2 * modality.std[i] for i in columns),
        "std": tuple(1.0 if i is None else 4 * modality.std[i] for i in columns),
    }


#: Read by timm's registry.
default_cfgs = {name: _timm_cfg(name) for name in BUILDERS}

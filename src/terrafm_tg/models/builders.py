"""Builders of the encoder by name, registered with timm."""

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from timm.models import build_model_with_cfg, register_model
from torchvision.models._api import WeightsEnum

from terrafm_tg.modalities import S2L2A, Modality, get_modality
from terrafm_tg.transforms.statistics import with_statistics
from terrafm_tg.utils.arguments import checked

from .inputs import guess_modality, input_channels, select_columns
from .sizes import NAMES, SIZES, split_name
from .vit import TerraFMViT
from .weights import PUBLISHED_URL, load_encoder_state, load_weights, registered_weights

#: Where weights come from: a registered weight or its name, a file, a URL; True for the registered one.
type Weights = WeightsEnum | str | os.PathLike[str] | bool | None


@checked()
def build_encoder(name: str, weights: Weights = None, *, pretrained: bool = False, **kwargs: Any) -> TerraFMViT:
    """Builds an encoder.

    Args:
        name: ``terrafm_<size>``, followed by an ending of :data:`~terrafm_tg.models.sizes.VARIANTS` where the caller
            cannot pass ``modality`` or ``bands``.
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
        source = registered_weights(size) if isinstance(weights, bool | None) else weights
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
    encoder = model if isinstance(model, TerraFMViT) else model.model
    bare = get_modality(modality or guess_modality(kwargs["in_chans"], columns))
    if checkpoint is not None:
        load_weights(encoder, checkpoint, str(source), meta["statistics"])
    config = cast("dict[str, Any]", model.pretrained_cfg)  # of a feature extractor, too
    config |= {} if by_timm else data_config(with_statistics(bare, encoder.statistics), columns[bare.name])
    config["first_conv"] = f"patch_embed.conv2d_{bare.stem}"
    return model


def data_config(modality: Modality, columns: Sequence[int | None]) -> dict[str, Any]:
    """Returns what timm's ``resolve_model_data_config`` reads: input size, mean and standard deviation.

    They are in the modality's unit. A channel that no stem reads keeps its values.

    Args:
        modality: The modality of a bare tensor.
        columns: The stem channel of each channel of the tensor.
    """
    return {
        "input_size": (len(columns), 224, 224),
        "mean": tuple(0.0 if i is None else modality.mean[i] - 2 * modality.std[i] for i in columns),
        "std": tuple(1.0 if i is None else 4 * modality.std[i] for i in columns),
    }


def _timm_cfg(name: str) -> dict[str, Any]:
    """The ``pretrained_cfg`` of a name: source, input size, and normalization in the modality's unit."""
    size, preset = split_name(name)
    sensor = get_modality(preset.get("modality", S2L2A.name))
    return data_config(sensor, sensor.stem_columns(preset.get("bands", sensor.bands))) | {
        "first_conv": f"patch_embed.conv2d_{sensor.stem}",
        "url": PUBLISHED_URL if size == "terrafm_base" else None,
        "num_classes": 0,
        "crop_pct": 1.0,
        "classifier": "head",
        "license": "mit",
        "origin_url": "https://github.com/mbzuai-oryx/TerraFM",
        "paper_name": "TerraFM: A Scalable Foundation Model for Unified Multisensor Earth Observation",
        "paper_ids": "arXiv:2506.06281",
    }


#: Read by timm as it registers the builders.
default_cfgs = {name: _timm_cfg(name) for name in NAMES}


def _register(name: str) -> Callable[..., TerraFMViT]:
    """Makes the builder of a name, and registers it with timm."""

    def build(weights: Weights = None, **kwargs: Any) -> TerraFMViT:
        return build_encoder(name, weights, **kwargs)

    size, preset = split_name(name)
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Builds {name}: {SIZES[size] | preset}; the arguments are those of :func:`build_encoder`."
    return register_model(build)


#: All builders by the name they are registered under.
BUILDERS = {name: _register(name) for name in NAMES}

terrafm_nano, terrafm_tiny, terrafm_small, terrafm_base, terrafm_large = (BUILDERS[size] for size in SIZES)

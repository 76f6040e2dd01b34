"""Any model of timm: red, green and blue as photographs where the task has them, else all bands of the sensor."""

from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

from terrafm_tg.errors import TerraFMError

from .backbone import IMAGE, TimmBackbone, with_seed
from .bands import RGB
from .channels import find, rgb_channels
from .encoder import Encoder
from .request import Request

#: Statistics of models that state none.
_PHOTO = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_timm(request: Request) -> Encoder:
    """``timm/NAME``, by the name that ``timm.create_model`` takes.

    Pretrained weights are adapted to the number of bands by timm, by repeating and scaling the first layer's kernel.

    Raises:
        UnsupportedTaskError: If the task has none of the bands asked for.
        TerraFMError: If there is no such model, or its weights cannot be had.
    """
    spec = request.spec
    name = spec.model.removeprefix("timm/")
    if not is_model(split_model_name_tag(name)[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise TerraFMError(f"timm has no model {name!r}: use one of `timm.list_models()`, such as {near}.")
    cfg = get_pretrained_cfg(name)
    fixed = bool(cfg and cfg.fixed_input_size)
    patch = _patch(name) if fixed else 32
    size = request.size(patch)
    colours = find(request.task, request.optical, RGB, "mean") if request.optical else []
    if spec.channels is None and colours and None not in colours:
        channels = rgb_channels(*((cfg.mean, cfg.std) if cfg else _PHOTO))
        reader = request.reader(channels, size, sources=colours)
    else:
        own, sources = request.own_channels()
        reader = request.reader(own, size, sources=sources)
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": len(reader.channels)}
    if fixed:
        settings["img_size"] = size
    if spec.weights not in (None, "default"):
        if not Path(spec.weights).is_file():
            raise TerraFMError(
                f"There is no file {spec.weights} of weights for timm/{name}: correct `weights`, or use default."
            )
        settings["pretrained_cfg_overlay"] = {"file": spec.weights}
    try:
        model = with_seed(spec.seed, lambda: timm.create_model(name, spec.weights is not None, **settings))
    except (OSError, RuntimeError, HfHubHTTPError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TerraFMError(
            f"The weights of timm/{name} could not be loaded ({reason}): give `weights` the path of a file, or fetch "
            "them once with a network."
        ) from error
    return Encoder(request, {IMAGE: reader}, TimmBackbone(model, size), size)


def _patch(name: str) -> int:
    """Pixels per patch, from a model without weights; 32, the stride of networks of stages, where it has none."""
    import torch

    with torch.device("meta"):
        embed = getattr(timm.create_model(name, num_classes=0), "patch_embed", None)
    side = int(embed.patch_size[0]) if embed is not None and hasattr(embed, "patch_size") else 32
    return side if side > 4 else 32

"""The models that TorchGeo registers: which weight, which sensors, and which adapter runs it."""

from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
from torchgeo.models import get_model_weights, list_models
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError

from .encoder import Encoder
from .request import Request
from .torchgeo_adapters import (
    load_copernicusfm,
    load_croma,
    load_deo,
    load_dofa,
    load_earthloc,
    load_panopticon,
    load_resnet,
    load_scalemae,
    load_swin,
    load_tilenet,
    load_vit,
)

#: How each is run, by the start of its name.
ADAPTERS = {
    "copernicusfm_": load_copernicusfm,
    "croma_": load_croma,
    "deo_": load_deo,
    "dofa_": load_dofa,
    "earthloc": load_earthloc,
    "panopticon_": load_panopticon,
    "resnet": load_resnet,
    "scalemae_": load_scalemae,
    "swin_": load_swin,
    "tilenet": load_tilenet,
    "vit_": load_vit,
}

#: What the others want instead of an image.
UNSUPPORTED = {
    "aurora_": "states of the atmosphere",
    "olmoearth_": "time series with their dates, through a package of its own",
    "presto": "time series of single pixels",
    "satclip": "coordinates",
    "tessera": "time series of single pixels",
    "unet": "pairs of images, and gives masks, not embeddings",
}


def load_torchgeo(request: Request) -> Encoder:
    """``torchgeo/NAME``, by the name that ``torchgeo.models.get_model`` takes.

    Raises:
        UnsupportedTaskError: If the model takes no images of a sensor that the task has.
        TerraFMError: If there is no such model or weight, or the weight cannot be had.
    """
    name = request.spec.model.removeprefix("torchgeo/")
    for start, reads in UNSUPPORTED.items():
        if name.startswith(start):
            raise request.unsupported(f"it takes {reads}")
    known = [model for model in list_models() if model.startswith(tuple(ADAPTERS))]
    if name not in known:
        raise TerraFMError(f"TorchGeo has no model {name!r}: use one of {', '.join(known)}.")
    adapter = next(adapter for start, adapter in ADAPTERS.items() if name.startswith(start))
    weight = find_weight(name, request.spec.weights)
    if weight is None:
        return adapter(request, name, None)
    place = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weight.url).path).name)
    try:
        return adapter(request, name, weight)
    except (OSError, RuntimeError, EOFError, LookupError, UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100].rstrip(". ")
        what = "is damaged" if place.is_file() else "could not be downloaded"
        raise TerraFMError(
            f"The weights {weight.name} of {name} cannot be loaded, because their file {what} ({reason}): fetch "
            f"{weight.url} to {place}."
        ) from error


def find_weight(name: str, weights: str | None) -> WeightsEnum | None:
    """The weight of that name, with or without the enum's; "default" for the only one there is.

    Raises:
        TerraFMError: If there is none, or "default" could be several.
    """
    if weights is None:
        return None
    try:
        members: list[WeightsEnum] = list(get_model_weights(name).__members__.values())
    except KeyError as error:
        raise TerraFMError(
            f"TorchGeo has no weights of {name}: leave `weights` out for random ones."
        ) from error
    if weights == "default" and len(members) == 1:
        return members[0]
    for member in members:
        if weights in (member.name, str(member)):
            return member
    raise TerraFMError(
        f"{name} has no weights {weights!r}: use one of {', '.join(member.name for member in members)}."
    )

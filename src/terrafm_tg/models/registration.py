"""Registers the encoder with timm, smp and TorchGeo, whichever are installed."""

import warnings
from importlib.util import find_spec

from .builders import BUILDERS  # timm's registry: each builder enters it where it is made
from .sizes import split_name
from .weights import WEIGHTS, ShortNames, TerraFMWeights


def register() -> None:
    """Makes the names known: to timm in any case, to smp and TorchGeo where they are installed."""
    if find_spec("segmentation_models_pytorch"):  # its table, from which TorchGeo's dense tasks take their encoders
        from segmentation_models_pytorch.encoders import encoders

        from .smp_encoder import smp_entry

        encoders.update({name: smp_entry(name) for name in BUILDERS})
    if find_spec("torchgeo"):
        register_torchgeo()


def register_torchgeo() -> None:
    """Adds the builders and weights to TorchGeo's tables, for which it has no function; warns where there are none."""
    try:
        from torchgeo.models import api

        models, weights = api._model, api._model_weights
    except (ImportError, AttributeError) as error:  # a TorchGeo that is broken, or that moved to timm's registry
        warnings.warn(
            f"TorchGeo's get_model() and get_weight() do not know TerraFM ({error}): use timm.create_model(), "
            "`weights: true` in TorchGeo's tasks, or the TorchGeo that terrafm-tg is tested with.",
            stacklevel=2,
        )
        return
    for name, builder in BUILDERS.items():
        models[name] = builder
        weights[name] = weights[builder] = WEIGHTS.get(split_name(name)[0], TerraFMWeights)
    weights["terrafm"] = ShortNames  # get_weight() compares its argument with str() of every member

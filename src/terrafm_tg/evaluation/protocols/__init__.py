"""Ways to judge an encoder: each a frozen dataclass of its settings that takes any model of :mod:`..encoders`."""

import dataclasses
import importlib
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.finetune.metrics import Score

from .base import Context, Protocol, Splits

__all__ = ["PROTOCOLS", "Context", "Protocol", "Score", "Splits", "get_protocol", "make_protocol"]

#: Where each protocol is defined, by its name; imported when it is asked for.
PROTOCOLS: dict[str, tuple[str, str]] = {
    "knn": ("knn", "KNN"),
    "linear-probe": ("probes", "LinearProbe"),
    "logistic": ("logistic", "Logistic"),
    "segmentation-probe": ("probes", "SegmentationProbe"),
    "upernet": ("finetune", "FrozenUPerNet"),
    "finetune": ("finetune", "FineTune"),
    "copernicus-frozen": ("copernicus", "CopernicusFrozen"),
}


def get_protocol(name: str) -> type[Protocol]:
    """The protocol's class.

    Raises:
        TerraFMError: If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise TerraFMError(f"Protocol {name!r} is unknown: use one of {', '.join(PROTOCOLS)}.")
    module, attribute = PROTOCOLS[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def make_protocol(name: str, **settings: Any) -> Protocol:
    """The protocol with these settings, its own defaults for the others.

    Raises:
        TerraFMError: If there is no such protocol or setting.
    """
    protocol = get_protocol(name)
    known = [field.name for field in dataclasses.fields(protocol)]
    for setting in settings:
        if setting not in known:
            raise TerraFMError(f"Protocol {name!r} has no setting {setting!r}: it has {', '.join(known) or 'none'}.")
    return protocol(**settings)

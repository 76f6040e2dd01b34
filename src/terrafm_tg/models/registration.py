"""Registers the encoder with timm, TorchGeo and smp as they are imported, or at once where they already are.

Importing this package costs nothing then; importing TorchGeo's models takes seconds.
"""

import importlib.abc
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from .sizes import BUILDERS, split_name


def register_timm() -> None:
    """Adds the builders to timm's registry."""
    from timm.models import is_model, register_model

    for name, builder in BUILDERS.items():
        if not is_model(name):
            register_model(builder)


def register_torchgeo() -> None:
    """Adds the builders and weights to TorchGeo's tables, for which it has no function."""
    from torchgeo.models import api

    from .weights import WEIGHTS

    models, weights = getattr(api, "_model", None), getattr(api, "_model_weights", None)
    if not isinstance(models, dict) or not isinstance(weights, dict):
        warnings.warn(
            "This TorchGeo keeps its models elsewhere, so get_model() and get_weight() do not know TerraFM: "
            "use terrafm_tg.models.build_encoder(), or the TorchGeo that terrafm-tg was tested with.",
            stacklevel=2,
        )
        return
    for name, builder in BUILDERS.items():
        models[name] = builder
        weights[name] = weights[builder] = WEIGHTS[split_name(name)[0]]


def register_smp() -> None:
    """Adds the encoder to the table of segmentation_models_pytorch, from which TorchGeo's dense tasks take theirs."""
    from segmentation_models_pytorch.encoders import encoders

    from .smp_encoder import smp_entry

    for name in BUILDERS:
        encoders[name] = smp_entry(name)


#: What registers the names with a library, by the module whose import calls for it.
LIBRARIES = {
    "timm": register_timm,
    "torchgeo.models": register_torchgeo,
    "segmentation_models_pytorch.encoders": register_smp,
}


def install() -> None:
    """Registers with each library now if it has been imported, else as soon as it is."""
    for library, register in LIBRARIES.items():
        if library in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _AfterImport(library, register))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, and runs an action once right after it was executed."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Executes a module with its own loader, which it restores first, and then the action."""

    def __init__(self, loader: importlib.abc.Loader, finder: _AfterImport) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
            self.finder.action()

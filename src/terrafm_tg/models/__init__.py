"""The encoder: a timm Vision Transformer behind a stem per modality, its weights and their registration."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builders import build_encoder, terrafm_base, terrafm_large, terrafm_nano, terrafm_small, terrafm_tiny
    from .checkpoint import load_weights
    from .export import export_encoder, export_onnx
    from .folding import reparameterize
    from .vit import TerraFMViT
    from .weights import TerraFM_Base_Weights, load_encoder_state, terrafm_transforms

__all__ = [
    "TerraFMViT",
    "TerraFM_Base_Weights",
    "build_encoder",
    "export_encoder",
    "export_onnx",
    "load_encoder_state",
    "load_weights",
    "reparameterize",
    "terrafm_base",
    "terrafm_large",
    "terrafm_nano",
    "terrafm_small",
    "terrafm_tiny",
    "terrafm_transforms",
]

#: The module that defines a public name, where it is not `builders`.
_ELSEWHERE = {
    "TerraFMViT": "vit",
    "TerraFM_Base_Weights": "weights",
    "export_encoder": "export",
    "export_onnx": "export",
    "load_encoder_state": "weights",
    "load_weights": "checkpoint",
    "reparameterize": "folding",
    "terrafm_transforms": "weights",
}


def __getattr__(name: str) -> Any:
    """Imports the module that defines ``name`` when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ELSEWHERE.get(name, 'builders')}", __name__), name)

"""The encoder: a timm Vision Transformer behind a stem per modality, its weights and their registration."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import export_encoder, load_encoder_state, load_weights
    from .export import export_onnx
    from .folding import reparameterize
    from .sizes import build_encoder, terrafm_base, terrafm_large, terrafm_small, terrafm_tiny
    from .vit import TerraFMViT
    from .weights import TerraFM_Base_Weights, terrafm_transforms

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
    "terrafm_small",
    "terrafm_tiny",
    "terrafm_transforms",
]

_MODULES = {
    "sizes": ("build_encoder", "terrafm_base", "terrafm_large", "terrafm_small", "terrafm_tiny"),
    "checkpoint": ("export_encoder", "load_encoder_state", "load_weights"),
    "folding": ("reparameterize",),
    "export": ("export_onnx",),
    "vit": ("TerraFMViT",),
    "weights": ("TerraFM_Base_Weights", "terrafm_transforms"),
}


def __getattr__(name: str) -> Any:
    """Imports the part that defines ``name`` when it is first asked for."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

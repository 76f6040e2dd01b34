"""The encoder: a timm Vision Transformer behind a stem per modality, its weights and their registration."""

from .builders import build_encoder, terrafm_base, terrafm_large, terrafm_nano, terrafm_small, terrafm_tiny
from .export import export_encoder, export_onnx
from .folding import reparameterize
from .vit import TerraFMViT
from .weights import TerraFM_Base_Weights, load_encoder_state, load_weights, terrafm_transforms

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

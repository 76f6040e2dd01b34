"""Any Earth-observation encoder, ours or another's, reading any benchmark dataset."""

from .encoder import BenchEncoder
from .models import load_encoder
from .spec import ModelSpec, UnsupportedTaskError

__all__ = ["BenchEncoder", "ModelSpec", "UnsupportedTaskError", "load_encoder"]

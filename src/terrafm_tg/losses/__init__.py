"""DINO's loss, TerraFM's dual centering, and what keeps dimensions in short runs of small batches."""

from .contrast import PlaceContrast
from .dino import DINOLoss, teacher_entropy
from .dual_center import DualCenter

__all__ = ["DINOLoss", "DualCenter", "PlaceContrast", "teacher_entropy"]

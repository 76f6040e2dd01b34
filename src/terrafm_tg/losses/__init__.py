"""DINO's loss and TerraFM's dual centering."""

from .dino import DINOLoss, teacher_entropy
from .dual_center import DualCenter

__all__ = ["DINOLoss", "DualCenter", "teacher_entropy"]

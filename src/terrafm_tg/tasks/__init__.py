"""LightningModules: TerraFM's pretraining."""

from .terrafm import TerraFM

__all__ = ["TerraFM"]

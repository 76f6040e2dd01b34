"""LightningModules: TerraFM's pretraining, fine-tuning, and TorchGeo's dense tasks with what they lack."""

from .finetune_change import FineTuneChangeDetection
from .finetune_classification import FineTuneClassification
from .finetune_segmentation import FineTuneSegmentation
from .segmentation import TerraFMPixelwiseRegression, TerraFMSegmentation
from .terrafm import TerraFM

__all__ = [
    "FineTuneChangeDetection",
    "FineTuneClassification",
    "FineTuneSegmentation",
    "TerraFM",
    "TerraFMPixelwiseRegression",
    "TerraFMSegmentation",
]

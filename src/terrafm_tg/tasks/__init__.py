"""LightningModules: TerraFM's pretraining, and fine-tuning."""

from .finetune_change import FineTuneChangeDetection
from .finetune_classification import FineTuneClassification
from .finetune_segmentation import FineTuneSegmentation
from .terrafm import TerraFM

__all__ = ["FineTuneChangeDetection", "FineTuneClassification", "FineTuneSegmentation", "TerraFM"]

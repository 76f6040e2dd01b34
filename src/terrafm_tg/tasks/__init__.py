"""LightningModules: TerraFM's pretraining, fine-tuning, and TorchGeo's dense tasks with what they lack."""

from .finetune.classification import FineTuneClassification
from .finetune.segmentation import FineTuneSegmentation
from .finetune.torchgeo_tasks import FineTuneChangeDetection, TerraFMPixelwiseRegression, TerraFMSegmentation
from .pretrain.terrafm import TerraFM

__all__ = [
    "FineTuneChangeDetection",
    "FineTuneClassification",
    "FineTuneSegmentation",
    "TerraFM",
    "TerraFMPixelwiseRegression",
    "TerraFMSegmentation",
]

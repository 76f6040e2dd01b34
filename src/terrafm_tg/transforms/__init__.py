"""Normalization, and the views of pretraining: multi-crop and augmentation on the device."""

from .augment import Augment
from .multicrop import MultiCrop, SensorBatch
from .normalize import Normalize

__all__ = ["Augment", "MultiCrop", "Normalize", "SensorBatch"]

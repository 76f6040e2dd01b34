"""Normalisation, and the views of pretraining: multi-crop and augmentation on the device."""

from .augment import Augment
from .contact_sheet import draw_contact_sheet
from .multicrop import MultiCrop, SensorBatch
from .normalize import Normalize

__all__ = ["Augment", "MultiCrop", "Normalize", "SensorBatch", "draw_contact_sheet"]

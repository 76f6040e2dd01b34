"""Normalisation, and the views of pretraining: multi-crop and augmentation on the device."""

from .augment import Augment
from .contact_sheet import draw_contact_sheet
from .multicrop import MultiCrop, ViewGroup
from .normalize import Normalize

__all__ = ["Augment", "MultiCrop", "Normalize", "ViewGroup", "draw_contact_sheet"]

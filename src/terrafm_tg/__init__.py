"""TerraFM for TorchGeo and Lightning: multisensor pretraining on Sentinel-1 and Sentinel-2.

Importing it registers ``terrafm_tiny``, ``_small``, ``_base`` and ``_large`` with timm and TorchGeo.
"""

from .errors import DamagedTileError, TerraFMError
from .modalities import MODALITIES, S1RTC, S2L1C, S2L2A, Modality
from .models.registration import install

__all__ = ["MODALITIES", "S1RTC", "S2L1C", "S2L2A", "DamagedTileError", "Modality", "TerraFMError"]

install()

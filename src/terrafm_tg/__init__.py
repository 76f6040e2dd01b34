"""TerraFM for TorchGeo and Lightning: multisensor pretraining on Sentinel-1 and Sentinel-2.

Importing it registers ``terrafm_nano``, ``_tiny``, ``_small``, ``_base`` and ``_large`` with timm and, where they are
installed, with smp and TorchGeo; it takes as long as importing these.
"""

import sys
from pathlib import Path

from .errors import DamagedTileError, TerraFMError
from .modalities import MODALITIES, S1RTC, S2L1C, S2L2A, Modality

__version__ = "0.1.0"

__all__ = ["MODALITIES", "S1RTC", "S2L1C", "S2L2A", "DamagedTileError", "Modality", "TerraFMError", "__version__"]

# The command answers `--help` and mistakes at once, and registers as soon as it has something to build.
if Path(sys.argv[0] if sys.argv else "").name not in ("terrafm", "terrafm.exe"):
    from .models.registration import register

    register()

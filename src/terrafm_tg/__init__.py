"""TerraFM for TorchGeo and Lightning: multisensor pretraining on Sentinel-1 and Sentinel-2.

Importing it registers ``terrafm_nano``, ``_tiny``, ``_small``, ``_base`` and ``_large`` with timm and, where they are
installed, with smp and TorchGeo; it takes as long as importing these.
"""

import sys
from pathlib import Path
from typing import Any

from .errors import DamagedTileError, TerraFMError
from .modalities import MODALITIES, S1RTC, S2L1C, S2L2A, Modality

__version__ = "0.1.0"

__all__ = ["MODALITIES", "S1RTC", "S2L1C", "S2L2A", "DamagedTileError", "Modality", "TerraFMError", "__version__"]

# The command answers `--help` and mistakes at once, and registers as soon as it has something to build.
if Path(sys.argv[0] if sys.argv else "").name not in ("terrafm", "terrafm.exe"):
    from .models.registration import register

    register()


def __getattr__(name: str) -> Any:
    """Finds :func:`~terrafm_tg.inference.embed.embed` as ``terrafm_tg.embed`` when it is first asked for."""
    if name == "embed":
        from .inference.embed import embed

        return embed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

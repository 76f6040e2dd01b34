"""Major-TOM Core for the Trainer."""

import os
from typing import Any

from terrafm_tg.datasets import MajorTOM

from .tiles import TileDataModule

_OPTIONS = ("root", "modalities", "tile_size", "index", "harmonise", "ambiguous_offset", "remote")


class MajorTOMDataModule(TileDataModule):
    """Batches from Major-TOM Core on disk.

    Run ``terrafm index`` on the root first, so that land cover is known.

    Args:
        root: Folder with ``Core-S2L2A``, ``Core-S2L1C``, ``Core-S1RTC``, any of them.
        tile_size: Edge of a tile in pixels of 10 m: half a cell's.
        index: Path of a tile index instead of ``root/index.parquet``.
        harmonise: Take the offset of processing baseline 04.00 off.
        ambiguous_offset: What to do where a product's name does not tell it: ``error``, ``present``,
            ``absent``, ``drop``; see :class:`~terrafm_tg.datasets.MajorTOM`.
        remote: Read rows whose file is not on disk from their URL.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        tile_size: int = 534,
        index: str | os.PathLike[str] | None = None,
        harmonise: bool = True,
        ambiguous_offset: str = "error",
        remote: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> MajorTOM:
        """The tiles of the root."""
        return MajorTOM(native=True, **{name: self.hparams[name] for name in _OPTIONS})

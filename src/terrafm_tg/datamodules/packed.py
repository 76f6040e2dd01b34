"""A packed store for the Trainer."""

import os
from typing import Any

from terrafm_tg.datasets import PackedTiles

from .tiles import TileDataModule

_OPTIONS = ("root", "modalities", "index", "harmonise", "ambiguous_offset")


class PackedDataModule(TileDataModule):
    """Batches from a store that ``terrafm pack`` made.

    Args:
        root: Folder of the store, or its URL.
        index: Path of a tile index with a part of the store's rows, instead of all.
        harmonise: Take the offset of processing baseline 04.00 off.
        ambiguous_offset: What to do where a product's name does not tell it: ``error``, ``present``,
            ``absent``, ``drop``; see :class:`~terrafm_tg.datasets.MajorTOM`.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        index: str | os.PathLike[str] | None = None,
        harmonise: bool = True,
        ambiguous_offset: str = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> PackedTiles:
        """The tiles of the store."""
        return PackedTiles(native=True, **{name: self.hparams[name] for name in _OPTIONS})

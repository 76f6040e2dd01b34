"""MMEarth for the Trainer."""

import os
from typing import Any

from terrafm_tg.datasets import MMEarthTiles

from .tiles import TileDataModule


class MMEarthDataModule(TileDataModule):
    """Batches from MMEarth on disk: see :class:`~terrafm_tg.datasets.MMEarthTiles`.

    Args:
        root: Folder that holds ``data_1M_v001``, ``data_1M_v001_64`` or ``data_100k_v001``.
        subset: ``MMEarth``, ``MMEarth64`` or ``MMEarth100k``; the one that lies there where None.
        index: Path of a tile index instead of ``root/index.parquet``.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        subset: str | None = None,
        index: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> MMEarthTiles:
        """The tiles of the subset."""
        options = {name: self.hparams[name] for name in ("root", "modalities", "subset", "index")}
        return MMEarthTiles(native=True, **options)

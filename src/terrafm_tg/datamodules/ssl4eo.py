"""SSL4EO-S12 for the Trainer."""

import os
from pathlib import Path
from typing import Any

from terrafm_tg.datasets import SSL4EOS12Tiles
from terrafm_tg.datasets.ssl4eo_rows import find_splits

from .tiles import TileDataModule


class SSL4EOS12DataModule(TileDataModule):
    """Batches from SSL4EO-S12 on disk: see :class:`~terrafm_tg.datasets.SSL4EOS12Tiles`.

    Args:
        root: Folder with ``s1``, ``s2c``, ``s2a``, any of them.
        index: Path of a tile index instead of ``root/index.parquet``.
        download: Let TorchGeo download what is missing (1.5 TB for all three sensors).
        checksum: Let it check what it downloads.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        index: str | os.PathLike[str] | None = None,
        download: bool = False,
        checksum: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def prepare_data(self) -> None:
        """Download what is missing, where that is asked for, in one process."""
        if self.hparams["download"]:
            modalities, checksum = self.hparams["modalities"], self.hparams["checksum"]
            find_splits(Path(self.hparams["root"]), modalities, True, checksum)

    def make_dataset(self) -> SSL4EOS12Tiles:
        """The tiles of the sites."""
        options = {name: self.hparams[name] for name in ("root", "modalities", "index")}
        return SSL4EOS12Tiles(native=True, **options)

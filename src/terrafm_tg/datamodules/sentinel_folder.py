"""A folder of Sentinel GeoTIFFs for the Trainer."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from terrafm_tg.datasets import SentinelFolder

from .tiles import TileDataModule

_OPTIONS = (
    *(
        "root",
        "modalities",
        "tile_size",
        "index",
        "folders",
        "bands",
        "radar_unit",
        "optical_scale",
        "offsets",
    ),
    *("ambiguous_offset", "harmonise", "max_days"),
)


class SentinelFolderDataModule(TileDataModule):
    """Batches from a folder of GeoTIFFs per modality: see :class:`~terrafm_tg.datasets.SentinelFolder`.

    Args:
        root: The folder.
        tile_size: Larger images are cut into tiles of this many pixels; smaller ones are used whole.
        index: Path of a tile index instead of ``root/index.parquet``.
        folders: Folder below the root by modality; usual names are looked for where None.
        bands: Band order by modality, for files that do not name their bands and are not in the usual order.
        radar_unit: ``dB`` or ``linear``.
        optical_scale: Digital numbers per stored unit: 10,000 where the files hold reflectance from 0 to 1.
        offsets: Whether optical files hold the offset of processing baseline 04.00: 0, 1000, ``detect`` or
            the path of a CSV file, for all or by modality.
        ambiguous_offset: What to do where it could not be found out: ``error``, ``present``, ``absent``,
            ``drop``.
        harmonise: Take the offset off.
        max_days: Do not join images that are further apart in time.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        tile_size: int = 534,
        index: str | os.PathLike[str] | None = None,
        folders: Mapping[str, str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        radar_unit: str = "dB",
        optical_scale: float = 1.0,
        offsets: int | str | Mapping[str, int | str] | None = None,
        ambiguous_offset: str = "error",
        harmonise: bool = True,
        max_days: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> SentinelFolder:
        """The tiles of the folder."""
        return SentinelFolder(native=True, **{name: self.hparams[name] for name in _OPTIONS})

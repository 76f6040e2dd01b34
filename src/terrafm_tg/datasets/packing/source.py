"""What lies below a root: Major-TOM, SSL4EO-S12, MMEarth or a folder of GeoTIFFs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.base import TileDataset
from terrafm_tg.datasets.index_file import NAME
from terrafm_tg.datasets.major_tom import MajorTOM
from terrafm_tg.datasets.major_tom_rows import FOLDERS
from terrafm_tg.datasets.mmearth import MMEarthTiles
from terrafm_tg.datasets.sentinel_folder import SentinelFolder
from terrafm_tg.datasets.ssl4eo import SSL4EOS12Tiles
from terrafm_tg.errors import TerraFMError

from .folder import MARKER


def open_source(
    root: Path, modalities: Sequence[str] | None = None, tile_size: int | None = None, **folder: Any
) -> TileDataset:
    """The dataset that lies below a root, as it is stored: offsets of the baseline stay in the numbers.

    Args:
        root: The folder; its ``index.parquet`` is used where there is one.
        modalities: Those to read; all where None.
        tile_size: Edge of a tile in 10 m pixels; where None, that of the index, or what the files suggest.
        **folder: Settings of :class:`~terrafm_tg.datasets.SentinelFolder`; None for its default.

    Raises:
        TerraFMError: If there is none, or a setting is not for it.
    """
    given = {name: value for name, value in folder.items() if value is not None}
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with the data to pack.")
    if (root / MARKER).is_file():
        raise TerraFMError(f"{root} is a packed store already: give the folder of its source.")
    kind = next((kind for kind in (SSL4EOS12Tiles, MMEarthTiles) if kind.lies_in(root)), None)
    if any((root / name / "metadata.parquet").is_file() for name in FOLDERS.values()):
        kind = MajorTOM
    if kind is not None and given:
        raise TerraFMError(
            f"{', '.join(given)} is for folders of GeoTIFFs, {root} holds {kind.__name__}: leave it out."
        )
    if kind is MMEarthTiles or kind is SSL4EOS12Tiles:
        return kind(root, modalities, native=True)
    kind = kind or SentinelFolder
    size = tile_size or _indexed_size(root / NAME) or kind.find_tile_size(root)
    return kind(root, modalities, native=True, tile_size=size, harmonise=False, **given)


def _indexed_size(path: Path) -> int | None:
    """The tile size that an index was made for."""
    if not path.is_file():
        return None
    try:
        return json.loads(pq.read_schema(path).metadata[b"terrafm"])["tile_size"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None  # whoever reads the whole of it says what is wrong

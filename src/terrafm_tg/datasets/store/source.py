"""What lies below a root: Major-TOM, SSL4EO-S12, MMEarth or a folder of GeoTIFFs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.folder.dataset import SentinelFolder
from terrafm_tg.datasets.index.file import NAME
from terrafm_tg.datasets.majortom.dataset import MajorTOM
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.datasets.mmearth import MMEarthTiles
from terrafm_tg.datasets.ssl4eo import SSL4EOS12Tiles
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import TerraFMError

from .folder import MARKER

#: Settings that some kinds have, and others not.
_SETTINGS: dict[Any, tuple[str, ...]] = {
    MajorTOM: ("tile_size", "remote"),
    SentinelFolder: ("tile_size", "radar_unit", "optical_scale"),
}


def open_source(
    root: Path, modalities: Sequence[str] | None = None, tile_size: int | None = None, **settings: Any
) -> TileDataset:
    """The dataset that lies below a root, as it is stored: offsets of the baseline stay in the numbers.

    Args:
        root: The folder; its ``index.parquet`` is used where there is one.
        modalities: Those to read; all where None.
        tile_size: Edge of a tile in 10 m pixels; where None, that of the index, or what the files suggest.
        **settings: Of the dataset: `remote` of Major-TOM, `radar_unit` and `optical_scale` of a folder of
            GeoTIFFs; None for the default.

    Raises:
        TerraFMError: If there is none, or a setting is not for it.
    """
    given = {name: value for name, value in {"tile_size": tile_size, **settings}.items() if value is not None}
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with the data to pack.")
    if (root / MARKER).is_file():
        raise TerraFMError(f"{root} is a packed store already: give the folder of its source.")
    if any((root / folder / "metadata.parquet").is_file() for folder in FOLDERS.values()):
        kind: Any = MajorTOM
    else:
        kind = next((kind for kind in (SSL4EOS12Tiles, MMEarthTiles) if kind.lies_in(root)), SentinelFolder)
    for name in given:
        if name not in _SETTINGS.get(kind, ()):
            raise TerraFMError(
                f"`{name}` is no setting for {root}, which holds {kind.__name__}: leave it out."
            )
    if kind in _SETTINGS:
        given["tile_size"] = tile_size or _indexed_size(root / NAME) or kind.find_tile_size(root)
        given["harmonise"] = False
    return kind(root, modalities, native=True, **given)


def _indexed_size(path: Path) -> int | None:
    """The tile size that an index was made for."""
    if not path.is_file():
        return None
    try:
        return json.loads(pq.read_schema(path).metadata[b"terrafm"])["tile_size"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None  # whoever reads the whole of it says what is wrong

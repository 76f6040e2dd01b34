"""The kind of data below a root: Major-TOM, SSL4EO-S12, MMEarth or a folder of scenes."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, checked

from .folder.dataset import SentinelFolder
from .majortom.dataset import MajorTOM
from .majortom.rows import FOLDERS
from .mmearth import MMEarthTiles
from .ssl4eo import SSL4EOS12Tiles
from .store.dataset import PackedTiles
from .store.folder import MARKER
from .tiles.dataset import TileDataset
from .tiles.index_file import NAME, read_made_for

Kind = type[MajorTOM] | type[SSL4EOS12Tiles] | type[MMEarthTiles] | type[SentinelFolder]
#: Settings that some kinds have, and others not.
_SETTINGS: dict[Kind, tuple[str, ...]] = {
    MajorTOM: ("tile_size", "remote"),
    SentinelFolder: ("tile_size", *SentinelFolder.SETTINGS, "mask_clouds", "remote"),
}


def find_kind(root: Path) -> Kind:
    """Finds the dataset that reads a root; a folder of scenes where it is nothing else.

    Raises:
        TerraFMError: If it is a folder within Major-TOM's.
    """
    if root.resolve().name in FOLDERS.values() and (root / "metadata.parquet").is_file():
        raise TerraFMError(f"{root} is a part of a Major-TOM root: give the folder above it, {root.resolve().parent}.")
    if any((root / folder / "metadata.parquet").is_file() for folder in FOLDERS.values()):
        return MajorTOM
    if SSL4EOS12Tiles.lies_in(root):
        return SSL4EOS12Tiles
    return MMEarthTiles if MMEarthTiles.lies_in(root) else SentinelFolder


@checked(tile_size=COUNT)
def open_source(
    root: Path, modalities: Sequence[str] | None = None, tile_size: int | None = None, **settings: Any
) -> MajorTOM | SSL4EOS12Tiles | MMEarthTiles | SentinelFolder:
    """Opens the dataset below a root as it is stored: offsets of the baseline stay in the numbers.

    Args:
        root: Archive to pack (Major-TOM, SSL4EO-S12, MMEarth or a folder of scenes); its ``index.parquet`` is used
            where there is one.
        modalities: Those to read; all where None.
        tile_size: Edge of a tile in 10 m pixels; where None, that of the index, or as the files suggest.
        **settings: Of the dataset: `remote` of Major-TOM, those of :class:`SentinelFolder` of a folder of scenes; None
            for the default.

    Raises:
        TerraFMError: If there is none, or a setting is not for it.
    """
    given = {name: value for name, value in {"tile_size": tile_size, **settings}.items() if value is not None}
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with the data to pack.")
    if (root / MARKER).is_file():
        raise TerraFMError(f"{root} is a packed store already: give the folder of its source.")
    kind = find_kind(root)
    for name in given:
        if name not in _SETTINGS.get(kind, ()):
            raise TerraFMError(f"`{name}` is no setting for {root}, which holds {kind.__name__}: leave it out.")
    if kind in _SETTINGS:
        given["tile_size"] = tile_size or read_made_for(root / NAME).get("tile_size") or kind.find_tile_size(root)
        given["harmonize"] = False
    return kind(root, modalities, native=True, **given)


def open_tiles(root: str, **settings: Any) -> TileDataset:
    """Opens the tiles below a root as training reads them (``native=True``), of whatever kind they are.

    Args:
        root: Folder of an archive or a packed store, or the URL of a store.
        **settings: Of its dataset; where ``tile_size`` is not given it is that of the index, or as the files suggest.

    Raises:
        TerraFMError: If there is nothing, or a setting is not for it.
    """
    path = Path(root)
    packed = "://" in root or (path / MARKER).is_file()
    if not packed and not path.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with an archive of tiles.")
    kind = PackedTiles if packed else find_kind(path)
    known = signature(kind).parameters
    for name in settings:
        if name not in known or name in ("root", "native", "transforms"):
            raise TerraFMError(f"`{name}` is no setting for {root}, which holds {kind.__name__}: leave it out.")
    if "tile_size" in known and settings.get("tile_size") is None:
        found = read_made_for(path / NAME).get("tile_size")
        settings["tile_size"] = found or find_kind(path).find_tile_size(path)
    return kind(root, native=True, **settings)

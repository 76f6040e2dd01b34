"""Builds the tile index of a dataset once: modalities, dates, offsets, land cover, climate, region."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from geopandas import GeoDataFrame
from rich.table import Table

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES

from .baseline import OFFSET, UNKNOWN
from .esa_worldcover import CLASS_NAMES, ESAWorldCover
from .index_file import NAME, write_index
from .layers import climate_zone, land_cover, region
from .major_tom import MajorTOM
from .major_tom_rows import FOLDERS
from .sentinel_folder import SentinelFolder
from .tile_table import as_index, as_table


def build_index(
    root: str | os.PathLike[str],
    worldcover: str | os.PathLike[str] | ESAWorldCover | None = None,
    climate: str | os.PathLike[str] | None = None,
    regions: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> GeoDataFrame:
    """Build the tile index of a Major-TOM root or of a folder of GeoTIFFs, and write it as GeoParquet.

    The file appears whole or not at all. Datasets find it in their root and use it from then on; they refuse
    it once the files there have changed.

    Args:
        root: A Major-TOM root (:class:`~terrafm_tg.datasets.MajorTOM`), or a folder with a folder of GeoTIFFs
            per modality (:class:`~terrafm_tg.datasets.SentinelFolder`).
        worldcover: The map, or folder of its tiles; ``WorldCover`` below the root where None, if it is there.
        climate: GeoTIFF of climate zone codes; ``climate.tif`` below the root where None, if it is there.
        regions: Vector file of regions; ``regions.geojson`` below the root where None, if it is there.
        out: The file to write instead of ``root/index.parquet``.
        workers: Processes that read the map; 0 for this one, None for one per core where there is much to do.
        progress: Show a bar.
        **settings: Of the dataset's ``scan``: ``tile_size`` (half a cell, or 534, where not given),
            ``remote``; ``folders``, ``bands``, ``offsets``, ``max_days``.

    Returns:
        The index, as the dataset has it: ``land_cover`` (0 to 10, 11 ocean, -1 unknown),
        ``land_cover_share``, ``climate`` and ``region`` (-1 unknown) besides the columns of ``scan``.

    Raises:
        TerraFMError: If there is nothing to index, a map cannot be read, or WorldCover covers no tile.
    """
    root = Path(root)
    if not root.is_dir():
        raise TerraFMError(
            f"{root} is no folder: give a Major-TOM root, or a folder of GeoTIFFs per modality."
        )
    if worldcover is None and (root / "WorldCover").is_dir():
        worldcover = root / "WorldCover"
    if climate is None and (root / "climate.tif").is_file():
        climate = root / "climate.tif"
    if regions is None and (root / "regions.geojson").is_file():
        regions = root / "regions.geojson"
    major_tom = any((root / folder / "metadata.parquet").is_file() for folder in FOLDERS.values())
    kind = MajorTOM if major_tom else SentinelFolder
    settings.setdefault("tile_size", kind.find_tile_size(root))
    table = as_table(kind.scan(root, **settings))
    index = as_index(table, settings["tile_size"])
    unknown = np.full(len(index), UNKNOWN)
    cover, share = unknown.astype(np.int8), np.zeros((len(index), 11), dtype=np.float32)
    if worldcover is not None:
        source = worldcover if isinstance(worldcover, ESAWorldCover) else ESAWorldCover(worldcover)
        cover, share = land_cover(index, source, workers, progress)
    table = table.assign(
        land_cover=cover,
        land_cover_share=list(share),
        climate=unknown.astype(np.int16) if climate is None else climate_zone(index, Path(climate)),
        region=unknown.astype(np.int16) if regions is None else region(index, Path(regions)),
    )
    made_for = {name: settings.get(name, default) for name, default in kind.SETTINGS.items()}
    made_for |= {"tile_size": settings["tile_size"], "state": kind.state(root)}
    write_index(table, root / NAME if out is None else Path(out), made_for)
    return as_index(table, settings["tile_size"])


def summary_table(index: GeoDataFrame) -> Table:
    """What a tile index holds, for people: modalities, offsets, land cover, and what is not known."""
    table = Table(caption=_caption(index), caption_justify="left", min_width=60)
    table.add_column("")
    table.add_column("tiles", justify="right")
    table.add_column("share", justify="right")

    def add(label: str, rows: np.ndarray, indent: bool = False) -> None:
        table.add_row(f"{'  ' * indent}{label}", f"{rows.sum():,}", f"{rows.mean():.1%}")

    for modality in MODALITIES.values():
        if f"has_{modality.name}" not in index:
            continue
        has, offset = (index[f"{column}_{modality.name}"].to_numpy() for column in ("has", "offset"))
        add(modality.title, has)
        if modality.unit == "DN":
            add("with the +1000 DN of baseline 04.00", has & (offset == OFFSET), indent=True)
        if (has & (offset == UNKNOWN)).any():
            add("not known whether with it", has & (offset == UNKNOWN), indent=True)
    table.add_section()
    cover = index["land_cover"].to_numpy()
    for number, name in enumerate(CLASS_NAMES if (cover != UNKNOWN).any() else ()):
        add(name, cover == number)
    return table


def _caption(index: GeoDataFrame) -> str | None:
    unknown = float((index["land_cover"] == UNKNOWN).mean())
    if unknown == 1:
        return "No land cover: give the folder of ESA WorldCover to sample by it."
    if unknown == 0:
        return None
    return f"{unknown:.1%} of the tiles lie where ESA WorldCover is not at hand: their land cover is unknown."

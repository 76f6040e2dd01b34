"""One unit of packing: the tiles of one source file, decoded once, into one shard. Runs in a worker process."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import DamagedTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import quantise

from .plan import file_bytes
from .shards import Record, shard_table, write_shard


@dataclass(frozen=True)
class PackUnit:
    """What a worker is given.

    Args:
        tiles: The source, with the rows of this unit only; see :func:`tiles_of`.
        modality: Which to pack.
        path: The shard to write.
        quantise: Store radar as hundredths of a decibel.
    """

    tiles: TileDataset
    modality: Modality
    path: Path
    quantise: bool


def pack_unit(unit: PackUnit) -> tuple[pd.DataFrame, int]:
    """Write the shard of a unit, unless an earlier run did.

    Returns:
        What the shard holds (:func:`~terrafm_tg.datasets.store.shards.shard_table`), a row per tile of the unit, and
        how many bytes the source has of it.

    Raises:
        OSError: If the shard cannot be written.
    """
    if unit.path.is_file():
        table = shard_table(unit.path)
    else:
        unit.path.parent.mkdir(exist_ok=True)
        table = write_shard(unit.path, unit.modality, _records(unit))
    return table, _source_bytes(unit.tiles, unit.modality)


def tiles_of(tiles: TileDataset, table: pd.DataFrame) -> TileDataset:
    """A dataset with some rows of another, as a worker process is given: pixels as they are stored.

    Args:
        tiles: The dataset.
        table: Rows of its tile table.
    """
    part = copy.copy(tiles)
    for name in [name for name in vars(part) if isinstance(getattr(type(part), name, None), cached_property)]:
        del part.__dict__[name]
    part.index = table.assign(**{
        name: column.array.remove_unused_categories()
        for name, column in table.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    })  # fmt: skip
    part.__dict__ |= {"transforms": None, "harmonise": False, "root": Path(part.root).absolute()}
    return part


def _source_bytes(tiles: TileDataset, modality: Modality) -> int:
    """Bytes of the bands' columns in Parquet parts, or of image files."""
    table, root, name = tiles.table, Path(tiles.root), modality.name
    if f"part_{name}" not in table:
        files = table.get(f"path_{name}", pd.Series(dtype=object)).unique()
        return sum(file_bytes(root, path, modality) for path in files)
    groups = table.groupby(f"part_{name}", observed=True)[f"group_{name}"].unique()
    total = 0
    for part, numbers in groups.items():
        with contextlib.suppress(OSError, pa.ArrowException):  # whoever reads the pixels says so
            held = pq.read_metadata(root / str(part))
            bands = {band.lower() for band in modality.bands}
            columns = [i for i, column in enumerate(held.schema.names) if column.lower() in bands]
            total += sum(
                held.row_group(int(g)).column(i).total_compressed_size for g in numbers for i in columns
            )
    return total


def _records(unit: PackUnit) -> Iterator[Record]:
    """The unit's tiles in their order; those of a cell are decoded together."""
    tiles, modality = unit.tiles, unit.modality
    cells, quadrants = (tiles.table[name].to_numpy() for name in ("cell", "quadrant"))
    ahead: dict[int, dict[int, np.ndarray] | None] = {}
    for row in range(len(tiles)):
        groups, fault = None, ""
        try:
            if row not in ahead:
                ahead |= tiles._read_together(row, modality)
            groups = ahead.pop(row)
        except DamagedTileError as error:
            fault = error.reason
        if groups is None:
            fault = fault or "it is absent"
        elif unit.quantise and modality.unit == "dB":
            # double precision: the same integers on every kind of processor
            groups = {resolution: quantise(group.astype(np.float64)) for resolution, group in groups.items()}
        yield Record(cells[row], int(quadrants[row]), groups, fault)

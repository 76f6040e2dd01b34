"""Packing: the tiles of any dataset of ours to a store that is read at memory speed; parallel, resumable, appendable.

The work is split by source file, so that each is read once. A unit of work gives one shard, whose name tells what was
planned to go in: what is there already, from a stopped run or from one before, is not made again. The index of the
store comes last.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.index_file import NAME
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import remove_leftovers
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.trust import remove_below

from .folder import FORMAT, alone_in, read_store_index, write_store_index
from .plan import ShardPlan, plan_shards, select_tiles, source_names, tiles_per_shard, write_planned
from .report import COUNTS, DamageList, PackReport
from .report import DAMAGED as DAMAGED
from .table import PLACES, join_tables, take_over, with_categories


def pack(
    tiles: TileDataset,
    out: str | os.PathLike[str],
    quantize_radar: bool = False,
    shard_mb: float = 512,
    workers: int | None = None,
    scheduler: str | None = None,
    max_damaged_share: float = 0.05,
    progress: bool = True,
) -> PackReport:
    """Writes the tiles of a dataset into a packed store, or adds them to one.

    The same tiles and settings give the same files, byte for byte, whatever the number of processes and however
    often the run was stopped and started again. What the store holds already from the same source files is not read
    again; what it holds from files that are gone stays. A shard that the index names and the new one does not is
    removed once that is in place.

    A tile that cannot be read, or of which a band holds only nodata, is left out (in that modality), named in the log
    once, and listed in ``damaged.csv`` of the store.

    Args:
        tiles: The tiles to pack, in their modalities; pixels are stored as they lie at the source, with the offset of
            the processing baseline. A cell's four tiles are decoded together.
        out: Folder of the store: absent, empty, or a store that was made with the same settings.
        quantize_radar: Store radar as int16 hundredths of a decibel, 0.005 dB from the truth at most, in half the
            bytes before compression; False keeps float32 linear power, exactly.
        shard_mb: Largest shard, in megabytes of pixels before compression.
        workers: Number of processes; 0 works in this one. By default one per core where there is much to do.
        scheduler: Address of a Dask cluster, whose machines see the same files, instead of local processes.
        max_damaged_share: Largest share of tiles that may be damaged, checked once ten tiles are damaged (0: none).
        progress: Show a bar.

    Returns:
        The numbers of tiles and bytes, by modality.

    Raises:
        TerraFMError: If ``out`` is something else, in the source or around it, a setting is wrong or not the
            store's, too many tiles are damaged, or the store cannot be written.
    """
    out, root = Path(out).absolute(), Path(tiles.root).absolute()
    _check_apart(root, out)
    if shard_mb <= 0:
        raise TerraFMError(f"`shard_mb` is {shard_mb}: give the megabytes of a shard, such as 512.")
    settings: dict[str, Any] = {
        "format": FORMAT,
        "tile_size": tiles.tile_size,
        "quantise_radar": quantize_radar,  # as format 1 spells it
    }
    try:
        with alone_in(out, settings):
            packing = _Packing(tiles, root, out, quantize_radar, max_damaged_share)
            packing.plan(shard_mb * 1e6)
            packing.run(workers, scheduler, progress)
            return packing.finish(settings)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise TerraFMError(
            f"The store {out} cannot be written ({reason}): mend that and run the same command again, it goes on from "
            "there."
        ) from error


class _Packing:
    """The state of one run; see :func:`pack`."""

    def __init__(self, tiles: TileDataset, root: Path, out: Path, quantize: bool, max_damaged_share: float) -> None:
        self.tiles = select_tiles(tiles, with_categories(tiles.table))
        self.root, self.out, self.quantize = root, out, quantize
        self.damage = DamageList(out / DAMAGED, max_damaged_share)
        self.before = with_categories(read_store_index(str(out))[0]) if (out / NAME).is_file() else None
        self.named = _shards(self.before) if self.before is not None else set()
        self.sources: dict[str, np.ndarray] = {}
        self.places: dict[str, list[pd.DataFrame]] = {}  # by modality, the columns `PLACES` by row of the tiles
        self.units: list[ShardPlan] = []
        self.report = PackReport(pd.DataFrame(0, [m.name for m in tiles.modalities], list(COUNTS)))

    def plan(self, limit: float) -> None:
        """Plans the shards to write, of at most ``limit`` bytes each."""
        table = self.tiles.table
        for modality in self.tiles.modalities:
            name, steps = modality.name, self.quantize and modality.unit == "dB"
            sources = self.sources[name] = source_names(table, self.root, modality, "steps" if steps else "")
            todo = (sources > 0) & ~np.isin(sources, self.damage.known(name))
            self.before, found = take_over(self.before, name, sources, self.out)
            todo[found.index] = False
            self.places[name] = [found]
            self.report.counts.at[name, "before"] = len(found)
            item = 2 if steps or modality.unit == "DN" else 4
            most = tiles_per_shard(table, modality, self.tiles.tile_size, limit, item)
            self.units += plan_shards(table, modality, sources, todo, most)

    def run(self, workers: int | None, scheduler: str | None, progress: bool) -> None:
        """Writes the shards."""
        planned = sum(len(unit.rows) for unit in self.units)
        work = partial(write_planned, out=self.out, quantized=self.quantize)
        results = run_units(work, self, workers=workers, scheduler=scheduler, title="Packing", progress=progress)
        for number, shard in results:
            unit, name = self.units[number], self.units[number].modality.name
            sources = self.sources[name][unit.rows]
            places = shard.assign(shard=unit.path, source=sources)[list(PLACES)].set_axis(unit.rows)
            stored = places["bytes"] > 0
            self.places[name].append(places[stored].add_suffix(f"_{name}"))
            size = (self.out / unit.path).stat().st_size
            self.report.counts.loc[name, ["tiles", "damaged", "bytes"]] += [stored.sum(), (~stored).sum(), size]
            for row, fault in zip(unit.rows[~stored], shard["fault"][~stored.to_numpy()], strict=True):
                tile = self.tiles.table.iloc[row]
                place = (
                    str(tile.get(f"part_{name}", tile.get(f"path_{name}", ""))),
                    str(tile.get(f"group_{name}", "")),
                )
                self.damage.add(self.tiles.name(row), name, place, fault, int(self.sources[name][row]), planned)

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[tuple[TileDataset, ShardPlan]]:
        """Yields the jobs of the workers, made one after the other."""
        for unit in self.units:
            yield select_tiles(self.tiles, self.tiles.table.iloc[unit.rows]), unit

    def finish(self, settings: dict[str, Any]) -> PackReport:
        """Writes the index, then the list of damaged tiles; removes the shards that the index named until now."""
        records = {}
        for name, places in self.places.items():
            held = pd.concat([part for part in places if len(part)] or places).sort_index()
            records[name] = held.astype({f"shard_{name}": "category", f"layout_{name}": "category"})
        table = join_tables(self.tiles.table, records, self.before)
        if table.empty:
            raise TerraFMError(f"None of the {len(self.tiles):,} tiles of {self.root} can be packed.")
        write_store_index(table, self.out, settings)
        self.damage.write(self.root, self.sources)
        for shard in self.named - _shards(table):
            remove_below(self.out, shard)
        remove_leftovers(self.out)
        self.report.tiles, self.report.cells = len(table), table["cell"].nunique()
        return self.report


def _shards(table: pd.DataFrame) -> set[str]:
    """Returns the paths of the shards that a store's table names, below the store."""
    columns = (table[column] for column in table if column.startswith("shard_"))
    return set().union(*(column.dropna().astype("str").unique() for column in columns))


def _check_apart(root: Path, out: Path) -> None:
    """Refuses a store in its source, or around it."""
    real_root, real_out = root.resolve(), out.resolve()
    if real_root == real_out or real_root in real_out.parents or real_out in real_root.parents:
        raise TerraFMError(f"The store {out} and its source {root} lie in each other: name a folder beside the source.")

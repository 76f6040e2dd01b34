"""Packing: the tiles of any dataset of ours to a store that is read at memory speed; parallel, resumable, appendable.

The work is split by source file, so that each is read once. A unit of work gives one shard, whose name tells what was
planned to go in: what is there already, from a stopped run or from one before, is not made again. The index of the
store comes last.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.filesize import decimal

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.index_file import NAME
from terrafm_tg.datasets.tiles.table import with_categories
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.utils.arguments import NOT_NEGATIVE, POSITIVE, SHARE, checked
from terrafm_tg.utils.files import remove_leftovers, write_text
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.trust import remove_below

from .bucket import Bucket, upload_planned
from .folder import FORMAT, alone_in, append_log, clear_log, read_log, read_store_index, write_store_index
from .plan import ShardPlan, plan_shards, select_tiles, source_files, source_names, tiles_per_shard, write_planned
from .table import PLACES, entry_table, join_tables, take_over

_log = logging.getLogger(__name__)

#: Numbers of each modality: tiles packed now, in the store before from the same source files, and damaged; bytes of
#: the shards, in an object store of their records.
COUNTS = ("tiles", "before", "damaged", "bytes")
#: The list, below a store.
DAMAGED = "damaged.csv"
#: Damaged tiles from which on their share is judged, so that the first ones do not end a run.
MIN_DAMAGED = 10
_COLUMNS = ["modality", "tile", "file", "row_group", "reason", "source"]


@dataclass
class PackReport:
    """Numbers of a run of packing."""

    counts: pd.DataFrame  # A row per modality, with the columns :data:`COUNTS`
    tiles: int = 0  # in the store; where it was not merged, in the log of this run
    cells: int = 0  # of which they are
    merged: bool = True  # and in its index

    def in_words(self, out: str | os.PathLike[str]) -> str:
        """Returns a line per modality, and the sums."""
        lines = [
            f"{get_modality(name).title}: {row.tiles:,} tiles packed ({decimal(row.bytes)}), {row.before:,} before, "
            f"{row.damaged:,} damaged"
            for name, row in self.counts.iterrows()
        ]
        if self.counts["damaged"].any():
            lines.append(f"The damaged ones are listed in {os.fspath(out).rstrip('/')}/{DAMAGED}")
        where = out if self.merged else f"the log of {out}: pack the last part with --merge true"
        return "\n".join([*lines, f"{self.tiles:,} tiles of {self.cells:,} cells in {where}"])


class DamageList:
    """The damaged tiles of a store; each modality of a tile counts by itself.

    Args:
        path: The list of earlier runs, if there is one. What it names is not tried again until its source file is
            replaced, or the list is moved away.
        max_share: Largest share of damaged tiles among those to pack now, checked once ten are damaged (0: none is
            allowed).

    Raises:
        TerraFMError: If the share is none, or the list is not one.
    """

    def __init__(self, path: Path, max_share: float) -> None:
        self.path, self.max_share = path, max_share
        self.found: list[tuple[str, ...]] = []
        self.before = pd.DataFrame(columns=_COLUMNS, dtype=str)
        if path.is_file():
            try:
                self.before = pd.read_csv(path, dtype=str, keep_default_na=False)[_COLUMNS]
                if not (
                    self.before["source"].str.fullmatch("[0-9a-f]{16}") & self.before["modality"].isin(MODALITIES)
                ).all():
                    raise ValueError("other columns")
            except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
                raise TerraFMError(
                    f"{path} is no list of damaged tiles: move it away; they are tried again."
                ) from error

    def known(self, modality: str) -> np.ndarray:
        """Returns the sources of the tiles that could not be packed before: uint64, as in the store's index."""
        sources = self.before.loc[self.before["modality"] == modality, "source"]
        return np.array([int(source, 16) for source in sources], dtype=np.uint64)

    def add(self, tile: str, modality: str, place: tuple[str, str], reason: str, source: int, planned: int) -> None:
        """Notes a damaged tile (its source file and row group, and its number in the store's index) and logs its name.

        Raises:
            TerraFMError: If these are too many.
        """
        self.found.append((modality, tile, *place, reason, f"{source:016x}"))
        _log.warning("%s", DamagedTileError(f"{tile} {modality}", reason))
        count = len(self.found)
        if count > self.max_share * planned and (count >= MIN_DAMAGED or not self.max_share):
            raise TerraFMError(
                f"{count} of {planned:,} tiles to pack are damaged, and `max_damaged_share` is {self.max_share}: "
                "get the files that are named above again, or raise it; what was packed so far is kept."
            )

    def write(self, root: Path, sources: Mapping[str, np.ndarray]) -> None:
        """Writes the list atomically; none where nothing is damaged.

        Rows of an earlier run stay as long as their source, by modality, is the same, or gone.
        """
        stays = [
            int(row.source, 16) in sources.get(row.modality, ()) or not source_files(root, row.file)
            for row in self.before.itertuples()
        ]
        table = pd.concat([self.before[np.array(stays, bool)], pd.DataFrame(self.found, columns=_COLUMNS, dtype=str)])
        table = table.drop_duplicates(["modality", "source"]).sort_values(_COLUMNS)
        if len(table):
            write_text(self.path, table.to_csv(index=False))
        else:
            self.path.unlink(missing_ok=True)


@checked(shard_mb=POSITIVE, workers=NOT_NEGATIVE, max_damaged_share=SHARE)
def pack(
    tiles: TileDataset,
    out: str | os.PathLike[str],
    quantize_radar: bool = False,
    shard_mb: float = 512,
    workers: int | None = None,
    scheduler: str | None = None,
    max_damaged_share: float = 0.05,
    merge: bool = True,
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
        out: Folder of the store, or its place in an object store (``s3://bucket/prefix``, ``gs://...``): absent, empty,
            or a store that was made with the same settings.
        quantize_radar: Store radar as int16 hundredths of a decibel, 0.005 dB from the truth at most, in half the
            bytes before compression; False keeps float32 linear power, exactly.
        shard_mb: Largest shard, in megabytes of pixels before compression.
        workers: Number of processes; 0 works in this one. By default one per core where there is much to do.
        scheduler: Address of a Dask cluster, whose machines see the same files, instead of local processes.
        max_damaged_share: Largest share of tiles that may be damaged, checked once ten tiles are damaged (0: none).
        merge: Bring the index up to date. False leaves what is packed now to a later run, in the store's log: a part
            then takes as long as its own tiles do, however large the store is. Tiles that the store has already are
            packed again unless their shard would be the same.
        progress: Show a bar.

    Returns:
        The numbers of tiles and bytes, by modality.

    Raises:
        TerraFMError: If ``out`` is something else, in the source or around it, a setting is wrong or not the
            store's, too many tiles are damaged, or the store cannot be written.
    """
    root, url = Path(tiles.root).absolute(), os.fspath(out) if "://" in os.fspath(out) else None
    settings: dict[str, Any] = {
        "format": FORMAT,
        "tile_size": tiles.tile_size,
        "quantise_radar": quantize_radar,  # as format 1 spells it
    }
    try:
        with ExitStack() as stack:
            if url is None:
                folder, bucket = Path(out).absolute(), None
                _check_apart(root, folder)
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="terrafm-pack-")))
                bucket = Bucket(url, folder, [DAMAGED])
            stack.enter_context(alone_in(folder, settings))
            packing = _Packing(tiles, root, folder, quantize_radar, max_damaged_share, merge, bucket)
            packing.plan(shard_mb * 1e6)
            packing.run(workers, scheduler, progress)
            return packing.merge(settings) if merge else packing.log(settings)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise TerraFMError(
            f"The store {out} cannot be written ({reason}): mend that and run the same command again, it goes on from "
            "there."
        ) from error


class _Packing:
    """The state of one run; see :func:`pack`."""

    def __init__(
        self,
        tiles: TileDataset,
        root: Path,
        out: Path,
        quantize: bool,
        max_damaged_share: float,
        merge: bool,
        bucket: Bucket | None,
    ) -> None:
        self.bucket = bucket
        self.tiles = select_tiles(tiles, with_categories(tiles.table))
        self.root, self.out, self.quantize = root, out, quantize
        self.damage = DamageList(out / DAMAGED, max_damaged_share)
        tables = [with_categories(table) for table in read_log(out)] if merge else []
        self.logged = bool(tables)
        if merge and (out / NAME).is_file():
            tables.append(with_categories(read_store_index(str(out))[0]))
        self.before = join_tables(tables, tiles.tile_size) if len(tables) > 1 else next(iter(tables), None)
        self.named = set[str]().union(*map(_shards, tables))
        self.sources: dict[str, np.ndarray] = {}
        self.places: dict[str, list[pd.DataFrame]] = {}  # by modality, the columns `PLACES` by row of the tiles
        self.units: list[ShardPlan] = []
        self.report = PackReport(pd.DataFrame(0, [m.name for m in tiles.modalities], list(COUNTS)))

    def plan(self, limit: float) -> None:
        """Plans the shards to write, of at most ``limit`` bytes each."""
        table = self.tiles.table
        for modality in self.tiles.modalities:
            name, steps = modality.name, self.quantize and modality.unit == "dB"
            salt = "steps" * steps + "clouds" * getattr(self.tiles, "mask_clouds", False)
            sources = self.sources[name] = source_names(table, self.root, modality, salt)
            todo = (sources > 0) & ~np.isin(sources, self.damage.known(name))
            self.before, found = take_over(self.before, name, sources, self._holds)
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
        if self.bucket is not None:
            self.bucket.begin()
            work = partial(upload_planned, url=self.bucket.url, quantized=self.quantize)
        results = run_units(work, self, workers=workers, scheduler=scheduler, title="Packing", progress=progress)
        for number, shard in results:
            unit, name = self.units[number], self.units[number].modality.name
            sources = self.sources[name][unit.rows]
            places = shard.assign(shard=unit.path, source=sources)[list(PLACES)].set_axis(unit.rows)
            stored = places["bytes"] > 0
            self.places[name].append(places[stored].add_suffix(f"_{name}"))
            size = (self.out / unit.path).stat().st_size if self.bucket is None else places["bytes"].sum()
            self.report.counts.loc[name, ["tiles", "damaged", "bytes"]] += [stored.sum(), (~stored).sum(), size]
            for row, fault in zip(unit.rows[~stored], shard["fault"][~stored.to_numpy()], strict=True):
                tile = self.tiles.table.iloc[row]
                place = (
                    str(tile.get(f"part_{name}", tile.get(f"path_{name}", ""))),
                    str(tile.get(f"group_{name}", "")),
                )
                self.damage.add(self.tiles.name(row), name, place, fault, int(self.sources[name][row]), planned)

    def _holds(self, shard: str) -> bool:
        return (self.out / shard).is_file() if self.bucket is None else shard in self.bucket.held

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[tuple[TileDataset, ShardPlan]]:
        """Yields the jobs of the workers, made one after the other."""
        for unit in self.units:
            yield select_tiles(self.tiles, self.tiles.table.iloc[unit.rows]), unit

    def log(self, settings: dict[str, Any]) -> PackReport:
        """Writes the table of this run to the log, then the list of damaged tiles."""
        table = self._entry()
        append_log(table, self.out, settings)
        self.damage.write(self.root, self.sources)
        if self.bucket is not None:
            self.bucket.publish()
        return self._report(table[table.filter(regex="^has_").any(axis=1)], merged=False)

    def merge(self, settings: dict[str, Any]) -> PackReport:
        """Writes the index, then the list of damaged tiles; removes the shards that the index named until now."""
        entry = self._entry()
        if self.logged:  # so that a run that is stopped below leaves the log as new as the index, whatever comes next
            append_log(entry, self.out, settings)
        tables = [entry] if self.before is None else [entry, self.before]
        table = join_tables(tables, self.tiles.tile_size)
        write_store_index(table, self.out, settings)
        self.damage.write(self.root, self.sources)
        if self.bucket is not None:
            self.bucket.publish()
        for shard in self.named - _shards(table):
            remove_below(self.out, shard) if self.bucket is None else self.bucket.remove(shard)
        remove_leftovers(self.out)
        if self.bucket is not None:
            self.bucket.clear_log()
        clear_log(self.out)
        return self._report(table, merged=True)

    def _report(self, table: pd.DataFrame, merged: bool) -> PackReport:
        self.report.tiles, self.report.cells, self.report.merged = len(table), table["cell"].nunique(), merged
        return self.report

    def _entry(self) -> pd.DataFrame:
        """Makes the table of this run."""
        records = {}
        for name, places in self.places.items():
            held = pd.concat([part for part in places if len(part)] or places).sort_index()
            records[name] = held.astype({f"shard_{name}": "category", f"layout_{name}": "category"})
        table = entry_table(self.tiles.table, records, self.sources)
        if self.before is None and not table.filter(regex="^has_").any(axis=None):
            raise TerraFMError(f"None of the {len(self.tiles):,} tiles of {self.root} can be packed.")
        return table


def _shards(table: pd.DataFrame) -> set[str]:
    """Returns the paths of the shards that a store's table names, below the store."""
    columns = (table[column] for column in table if column.startswith("shard_"))
    return set().union(*(column.dropna().astype("str").unique() for column in columns))


def _check_apart(root: Path, out: Path) -> None:
    """Refuses a store in its source, or around it."""
    real_root, real_out = root.resolve(), out.resolve()
    if real_root == real_out or real_root in real_out.parents or real_out in real_root.parents:
        raise TerraFMError(f"The store {out} and its source {root} lie in each other: name a folder beside the source.")

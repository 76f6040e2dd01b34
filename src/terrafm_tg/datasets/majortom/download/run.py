"""The steps of a download: tables, choice of rows, footers, rows, tables of the local copy."""

import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import disk_usage
from threading import Event
from urllib.parse import urlparse

import numpy as np
import pandas as pd
from rich.console import Console

from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import NOT_NEGATIVE, SHARE, checked
from terrafm_tg.utils.files import remove_leftovers
from terrafm_tg.utils.parallel import Room
from terrafm_tg.utils.progress import count_units
from terrafm_tg.utils.remote import NotThereError, RemoteReader

from .product import KEPT, Product, row_keys
from .selection import Selection, cell_tiles, cover_of_index, cover_of_map, map_files

#: Where Major-TOM is published; the name of the product (``Core-S2L2A``) takes the place of ``{product}``.
SOURCE = "https://huggingface.co/datasets/Major-TOM/{product}/resolve/main"
#: Where ESA publishes its map of land cover.
WORLDCOVER = "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v200/2021/map"
#: Bytes of an average file of the map (117 GB in 2,651 files).
MAP_FILE_BYTES = 44_000_000
MOST_MAP_FILE = 1 << 30
#: Files of which a dry run reads the footers, per product; the sizes of other rows are taken to be the mean of these.
SAMPLE = 8
_ROOM = 1 << 27  # bytes of rows at the same time, whatever `connections` is; they take some four times as much
_RATE = 100.0  # MB/s for which a dry run says how long it will take
_logger = logging.getLogger(__name__)


@checked(max_gb=NOT_NEGATIVE, max_damaged=SHARE, connections=(1, 256))
def download(
    root: str | os.PathLike[str],
    selection: Selection,
    source: str = SOURCE,
    max_gb: float | None = None,
    max_damaged: float = 0.05,
    land_cover_from: str | os.PathLike[str] | None = None,
    worldcover: bool = False,
    worldcover_source: str = WORLDCOVER,
    connections: int = 16,
    dry_run: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Downloads a subset of Major-TOM Core into a local root that :class:`~terrafm_tg.datasets.MajorTOM` reads.

    First come the products' complete tables (``metadata.parquet``), then of each file that holds chosen rows the
    footer, then of each row the byte ranges of the columns that are needed. A row is kept as soon as it has come
    whole and was checked (size, Parquet page checksums where the source has them, cell and product, each band a
    TIFF). When all rows of a file have come they become one local file, one row per row group, pictures byte for
    byte as published. Files that are there are never changed, and rows that are there are not fetched again: a
    later download with another selection adds to the root. ``root/.download`` keeps the source's tables and
    footers, and rows while they wait.

    Args:
        root: Folder of the local copy; it is made where missing.
        selection: Which cells and products.
        source: Address of the products; ``{product}`` in it is replaced by ``Core-S2L2A`` and so on, which is
            appended where it does not occur.
        max_gb: The most that may be fetched, tables and footers too, and so be added to the disk, in GB.
        max_damaged: Share of the rows that may turn out damaged; beyond it the download stops.
        land_cover_from: For a selection by land cover: a tile index, such as one of the source's complete tables.
            Where None, ESA WorldCover is asked, whose files are fetched into ``root/WorldCover``.
        worldcover: Fetch the files of ESA WorldCover under the chosen cells into ``root/WorldCover``.
        worldcover_source: Address of the WorldCover files.
        connections: Files that are fetched at the same time.
        dry_run: Say what would be fetched; downloads only metadata.
        progress: Show bars.

    Returns:
        One row per product of a chosen cell: ``modality``, ``cell``, ``product_id`` and further columns of the
        source's table, ``part`` (file of the source), ``group`` (its row group), ``held`` (was on disk before),
        ``size`` (bytes to fetch; estimated in a dry run of many files) and ``damage``, why it was left out.

    Raises:
        TerraFMError: If a setting is wrong, nothing is chosen, it does not fit the budget or the disk, the source
            cannot be read, or too much is damaged. What has come is kept: the same call goes on.
    """
    for name, address, usual in (("source", source, SOURCE), ("worldcover_source", worldcover_source, WORLDCOVER)):
        if urlparse(address).scheme not in ("http", "https"):
            raise TerraFMError(
                f"`{name}` is {address!r}: give an address that begins with http:// or https://, such as {usual}."
            )
    budget = math.inf if max_gb is None else max_gb * 1e9
    root, reader, console = Path(root), RemoteReader(budget=budget), Console(stderr=True, quiet=not progress)
    room = Room(_ROOM)
    products = {name: Product(name, source, root, reader, room) for name in selection.products}
    maps = partial(_fetch_maps, reader, root / "WorldCover", worldcover_source, console)
    land_cover = partial(cover_of_map, root / "WorldCover", maps, progress)
    if land_cover_from is not None:
        land_cover = partial(_given, cover_of_index(Path(land_cover_from)))
    with _locked(root):
        tables = {}
        with count_units("Tables", len(products), console) as show:
            for name, product in products.items():
                tables[name] = product.read_table()
                show(advance=1)
        held = pd.concat([product.list_local(tables[name], not dry_run) for name, product in products.items()])
        chosen = selection.choose(pd.concat(tables.values(), ignore_index=True), land_cover)
        chosen = chosen.sort_values(["modality", "part", "group"], ignore_index=True)
        chosen["held"] = row_keys(chosen["cell"], chosen["product_id"]).isin(held)
        chosen = chosen.assign(size=_sizes(products, chosen, connections, dry_run, console), damage=None)
        if not dry_run:
            try:
                _fetch(products, chosen, connections, reader, max_damaged, console)
            finally:
                for name, product in products.items():
                    product.list_local(tables[name])
            if worldcover:
                maps(map_files(cell_tiles(chosen.drop_duplicates("cell").set_index("cell")["epsg"])))
    return chosen


def _given(cover: pd.DataFrame, zones: pd.Series) -> pd.DataFrame:
    """The land cover of an index, whatever the cells."""
    return cover


def download_summary(chosen: pd.DataFrame, dry_run: bool) -> str:
    """Sums up what :func:`download` returned, as a table for people."""
    damaged = chosen["damage"].notna()
    counts = {"rows": 1, "on disk": chosen["held"], "to fetch" if dry_run else "fetched": ~chosen["held"] & ~damaged}
    counts |= {"damaged": damaged, "GB": chosen["size"] / 1e9}
    table = pd.DataFrame(counts, chosen.index).groupby(chosen["modality"].map(FOLDERS)).sum().rename_axis(None)
    lasts = pd.Timedelta(seconds=math.ceil(table["GB"].sum() / _RATE * 1000))
    caption = f"{chosen['cell'].nunique():,} cells; {table['GB'].sum():,.3f} GB"
    if dry_run:
        caption = f"{caption} in {lasts} at {_RATE:g} MB/s, judging by up to {SAMPLE} files of each product"
    return f"{table.to_string(float_format='{:,.3f}'.format)}\n{caption}."


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keeps a second download out of the same root, and removes what a killed one was writing."""
    from filelock import FileLock, Timeout

    (root / KEPT).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / KEPT / "lock", timeout=0):
            remove_leftovers(root / KEPT, *(root / folder / "images" for folder in FOLDERS.values()))
            yield
    except Timeout as error:
        raise TerraFMError(f"Another download into {root} is under way: wait for its end.") from error


def _fetch_maps(reader: RemoteReader, folder: Path, source: str, console: Console, names: list[str]) -> None:
    """Fetches the map's files that are not there, if there is room; open sea has none."""
    missing = [name for name in names if not (folder / name).is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, len(missing) * MAP_FILE_BYTES, 0, reader)
    with count_units("WorldCover", len(missing), console) as show:
        for name in missing:
            with suppress(NotThereError):  # open sea
                reader.save(f"{source.rstrip('/')}/{name}", folder / name, MOST_MAP_FILE)
            show(advance=1)


def _sizes(
    products: dict[str, Product], chosen: pd.DataFrame, connections: int, dry_run: bool, console: Console
) -> pd.Series:
    """Reads the bytes of each row to fetch off the footers of the source's files; a dry run looks at some."""
    files = chosen[~chosen["held"]].groupby(["modality", "part"], observed=True)["group"]
    todo = pd.Series(dict(list(files)), dtype=object)
    if dry_run:
        some = todo.groupby(level=0, group_keys=False)
        todo = some.apply(lambda own: own.sample(min(len(own), SAMPLE), random_state=0))
    size = chosen["held"].map({True: 0.0, False: math.nan})
    with count_units("Footers", len(todo), console) as show, ExitStack() as stack:
        pool = ThreadPoolExecutor(connections)
        stack.callback(pool.shutdown, cancel_futures=True)
        read = pool.map(lambda key: products[key[0]].sizes(key[1], todo[key]), todo.index)
        for groups, found in zip(todo, read, strict=True):
            size[groups.index] = found
            show(advance=1)
    mean = size[~chosen["held"]].groupby(chosen["modality"]).transform("mean")
    return size.fillna(mean).astype(np.int64)


def _fetch(
    products: dict[str, Product],
    chosen: pd.DataFrame,
    connections: int,
    reader: RemoteReader,
    max_damaged: float,
    console: Console,
) -> None:
    """Fetches the rows that are not on disk, file by file; notes in ``damage`` why one was left out."""
    for row in chosen[chosen["held"]].itertuples():  # a run may have been killed before it tidied up
        products[row.modality].waiting(row.part, row.group).unlink(missing_ok=True)
    missing = chosen[~chosen["held"]]
    files = missing.groupby(["modality", "part"], observed=True)
    rows = ((row.size, products[row.modality].waiting(row.part, row.group)) for row in missing.itertuples())
    need = sum(size for size, waiting in rows if not waiting.is_file())
    spare = files["size"].sum().nlargest(connections).sum()
    _check_room(next(iter(products.values())).folder.parent, need, spare, reader)
    allowed, stop = math.ceil(max_damaged * len(missing)), Event()
    with count_units("Rows", missing["size"].sum(), console, in_bytes=True) as show, ExitStack() as stack:
        pool = ThreadPoolExecutor(connections)
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(stop.set)
        running = [pool.submit(products[name].fetch, part, rows, show, stop) for (name, part), rows in files]
        for file in as_completed(running):
            for label, reason in file.result().items():
                _logger.warning(reason)
                chosen.loc[label, "damage"] = reason
            if (count := chosen["damage"].notna().sum()) > allowed:
                raise TerraFMError(
                    f"{count:,} rows of the source are damaged, more than `max_damaged` {max_damaged:g} of those to "
                    f"fetch; the last: {reason}"
                )


def _check_room(root: Path, need: int, spare: int, reader: RemoteReader) -> None:
    """Refuses what does not fit the budget or the disk.

    Args:
        root: Where it is to go.
        need: Bytes to come.
        spare: Bytes that are needed besides while files are put together.
        reader: Keeps the budget, of which some may be spent.

    Raises:
        TerraFMError: If it does not fit; it says by how much.
    """
    free = max(0, disk_usage(root).free - spare)
    words = f"{root} has room for {free / 1e9:,.3f} GB, as files take theirs twice while they are written"
    limits: dict[str, float] = {words: free}
    if reader.budget < math.inf:
        limits[f"`max_gb` is {reader.budget / 1e9:g}"] = max(0, reader.budget - reader.came)
    for words, room in limits.items():
        if need > room:
            raise TerraFMError(
                f"The selection needs {need / 1e9:,.3f} GB more, and {words}: choose less, such as a `share` of "
                f"{0.98 * room / need:.2g} of it, raise the budget, or take another disk."
            )

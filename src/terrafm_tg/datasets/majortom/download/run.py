"""The steps of a download: tables, choice of rows, footers, rows, tables of the local copy."""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pandas as pd

from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import remove_leftovers
from terrafm_tg.utils.progress import watch_bytes
from terrafm_tg.utils.remote import NotThereError, RemoteReader

from .catalog import KEPT, MAP_FILE_BYTES, ROWS, SOURCE, WORLDCOVER, LocalProduct, fetch_table, read_table
from .parts import EXTRAS, PartRows, fetch_parts
from .plan import ProductCounts, Report, check_room, measure, missing_parts, staged_bytes
from .selection import Selection, cell_tiles, cover_from, map_files

_logger = logging.getLogger(__name__)


def download(
    root: str | os.PathLike[str],
    selection: Selection,
    source: str = SOURCE,
    extra: Sequence[str] | str = (),
    max_gb: float | None = None,
    max_damaged: float = 0.05,
    land_cover_from: str | os.PathLike[str] | None = None,
    worldcover: bool = False,
    worldcover_source: str = WORLDCOVER,
    connections: int = 16,
    retries: int = 8,
    timeout: float = 60.0,
    dry_run: bool = False,
    progress: bool = True,
) -> Report:
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
        extra: Columns that are left out otherwise: ``thumbnail``, ``cloud_mask``, ``B10``.
        max_gb: The most that may be added to the disk, in GB.
        max_damaged: Share of the rows that may turn out damaged; beyond it the download stops.
        land_cover_from: For a selection by land cover: a tile index, or a folder of ESA WorldCover. The map's files
            are fetched into ``root/WorldCover`` where None.
        worldcover: Fetch the files of ESA WorldCover under the chosen cells into ``root/WorldCover``.
        worldcover_source: Address of the WorldCover files.
        connections: Requests at the same time.
        retries: Failures in a row without a new byte after which to give up.
        timeout: Seconds without a byte that count as a failure.
        dry_run: Say what would be fetched; downloads only metadata.
        progress: Show bars.

    Returns:
        The counts of what was fetched.

    Raises:
        TerraFMError: If a setting is wrong, nothing is chosen, it does not fit the budget or the disk, the source
            cannot be read, or too much is damaged. What has come is kept: the same call goes on.
    """
    extra = [extra] if isinstance(extra, str) else extra
    if unknown := [name for name in extra if name not in EXTRAS]:
        raise TerraFMError(f"`extra` names {', '.join(unknown)}: it takes {', '.join(EXTRAS)}.")
    if connections < 1 or retries < 0 or timeout <= 0:
        raise TerraFMError(
            f"`connections` {connections}, `retries` {retries}, `timeout` {timeout:g}: give 1 or more, 0 or more, "
            "and seconds above 0."
        )
    start, root, reader = time.monotonic(), Path(root), RemoteReader(retries, timeout)
    report = Report({m: ProductCounts() for m in selection.products}, dry_run=dry_run)
    with _locked(root):
        with watch_bytes("Tables", None, lambda: reader.traffic.received, progress):
            tables = {m: fetch_table(reader, root, source, m) for m in selection.products}
        frames = {m: read_table(path, m) for m, path in tables.items()}
        local = {m: LocalProduct(root / FOLDERS[m], path) for m, path in tables.items()}
        for modality, product in local.items():
            product.adopt(frames[modality])
        fetch_maps = partial(_fetch_maps, reader, root / "WorldCover", worldcover_source, max_gb, progress)
        given = land_cover_from is not None
        cover = cover_from(Path(land_cover_from or root / "WorldCover"), None if given else fetch_maps, progress)
        chosen = selection.choose(pd.concat(frames.values(), ignore_index=True), cover)
        parts = missing_parts(root, source, chosen, local, extra)
        report.cells, largest = chosen["cell"].nunique(), 0
        with watch_bytes("Footers", None, lambda: reader.traffic.received, progress):
            for modality, counts in report.products.items():
                own = [part for part in parts if part.modality == modality]
                largest = max(largest, measure(reader, own, connections, counts, exact=not dry_run))
                counts.chosen = int((chosen["modality"] == modality).sum())
                counts.held = counts.chosen - counts.rows
        if not dry_run:
            for modality, product in local.items():
                product.drop_waiting(root / KEPT / FOLDERS[modality] / ROWS)
            report.waiting = staged_bytes(root)
            check_room(root, max(0, report.disk - report.waiting), largest, max_gb)
            with watch_bytes("Rows", report.disk, lambda: report.done + staged_bytes(root), progress):
                _fetch(reader, parts, connections, local, report, max_damaged)
            if worldcover:
                zones = chosen.drop_duplicates("cell").set_index("cell")["epsg"]
                fetch_maps(map_files(cell_tiles(zones)))
    report.traffic = reader.traffic
    report.seconds = time.monotonic() - start
    return report


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


def _fetch_maps(
    reader: RemoteReader, folder: Path, source: str, max_gb: float | None, progress: bool, names: list[str]
) -> None:
    """Fetches the map's files that are not there, if there is room; open sea has none."""
    missing = [name for name in names if not (folder / name).is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, len(missing) * MAP_FILE_BYTES, 0, max_gb)
    before = reader.traffic.received
    with watch_bytes("WorldCover", None, lambda: reader.traffic.received - before, progress and bool(missing)):
        for name in missing:
            with suppress(NotThereError):  # open sea
                reader.save(f"{source.rstrip('/')}/{name}", folder / name)


def _fetch(
    reader: RemoteReader,
    parts: Sequence[PartRows],
    connections: int,
    local: dict[str, LocalProduct],
    report: Report,
    max_damaged: float,
) -> None:
    """Fetches rows and lists those that have come; writes the tables at the end, whatever the end is."""
    allowed = math.ceil(max_damaged * sum(product.rows for product in report.products.values()))
    count = 0
    with ExitStack() as stack:
        for product in local.values():
            stack.callback(product.commit)
        for part, rows, damaged in stack.enter_context(closing(fetch_parts(reader, parts, connections))):
            for reason in damaged:
                _logger.warning(reason)
            report.products[part.modality].damaged += damaged
            if rows:
                local[part.modality].add(part.name, [row.position for row in rows], range(len(rows)))
                report.done += part.target.stat().st_size
            count += len(damaged)
            if count > allowed:
                raise TerraFMError(
                    f"{count:,} rows of the source are damaged, more than `max_damaged` {max_damaged:g} of those to "
                    f"fetch; the last: {damaged[-1]}"
                )

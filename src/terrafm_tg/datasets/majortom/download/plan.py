"""The plan of a download and its report: files of the source, rows of each, bytes over the line and on disk."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage

import numpy as np
import pandas as pd
from rich.filesize import decimal

from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.remote import RemoteReader, Traffic

from .catalog import KEPT, ROWS, LocalProduct, product_url, row_keys
from .parts import PartRows, SourceRow

#: Files of which a dry run reads the footers, per product; the others are estimated from them.
SAMPLE = 8


@dataclass
class ProductCounts:
    """Counts of one product: rows chosen, on disk already, to fetch or fetched; bytes on the line and on disk.

    Args:
        chosen: Rows of the selection.
        held: Of these, on disk before.
        rows: To fetch.
        files: Of the source, that hold these.
        line: Bytes of these rows over the line.
        disk: Bytes of these rows on disk.
        looked_at: Files whose footer the bytes were read from; the others are estimated.
        damaged: Reasons why rows were left out.
    """

    chosen: int = 0
    held: int = 0
    rows: int = 0
    files: int = 0
    line: int = 0
    disk: int = 0
    looked_at: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The work that a download did, or in a dry run would do.

    Args:
        products: By modality.
        cells: Cells of the selection.
        traffic: Over the line.
        seconds: How long it took.
        dry_run: True if it only looked.
        waiting: Bytes of rows that had come before.
        done: Bytes of the local files that were made.
    """

    products: dict[str, ProductCounts]
    cells: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    seconds: float = 0.0
    dry_run: bool = False
    waiting: int = 0
    done: int = 0

    @property
    def line(self) -> int:
        """Bytes of rows over the line."""
        return sum(product.line for product in self.products.values())

    @property
    def disk(self) -> int:
        """Bytes of rows on disk."""
        return sum(product.disk for product in self.products.values())

    def table(self, bandwidth: float) -> str:
        """Makes a table for people.

        Args:
            bandwidth: MB/s for which a dry run says how long it will take.
        """
        rows = {}
        for modality, own in self.products.items():
            came = {"to fetch" if self.dry_run else "fetched": own.rows - len(own.damaged)}
            damaged = {} if self.dry_run else {"damaged": len(own.damaged)}
            counts = {"rows": own.chosen, "on disk": own.held, **came, **damaged, "files": own.files}
            rows[FOLDERS[modality]] = {k: f"{v:,}" for k, v in counts.items()} | {"size": decimal(own.line)}
        return f"{pd.DataFrame(rows).T.to_string()}\n{self._caption(bandwidth)}"

    def _caption(self, bandwidth: float) -> str:
        if self.dry_run:
            estimated = [p for p in self.products.values() if p.looked_at < p.files]
            about = f"{sum(p.looked_at for p in estimated)} of {sum(p.files for p in estimated):,} files"
            how = f"sizes estimated from the footers of {about}" if estimated else "sizes are exact"
            lasts = timedelta(seconds=math.ceil(self.line / bandwidth / 1e6))
            return (
                f"{self.cells:,} cells; {how}: {decimal(self.line)} in {lasts} at {bandwidth:g} MB/s, "
                f"{decimal(self.disk)} on disk."
            )
        more = self.traffic.received - max(0, self.line - self.waiting)
        rate = self.traffic.received / max(self.seconds, 1e-9) / 1e6
        return (
            f"{self.cells:,} cells; {timedelta(seconds=round(self.seconds))}, {rate:,.1f} MB/s, "
            f"{self.traffic.requests:,} requests, {self.traffic.retries:,} of them again; {decimal(max(more, 0))} "
            "besides rows (tables, footers, maps, what came twice)."
        )


def missing_parts(
    root: Path, source: str, chosen: pd.DataFrame, local: dict[str, LocalProduct], extra: Sequence[str]
) -> list[PartRows]:
    """Lists the files of the source that hold rows which are chosen and not on disk, in the source's order."""
    parts = []
    for modality, rows in chosen.groupby("modality", sort=False):
        held = local[modality].keys()
        if len(held):
            rows = rows[~row_keys(rows["cell"], rows["product_id"]).isin(held)]
        rows = rows.sort_values(["part", "group"])
        own = tuple(name for name in extra if name != "B10" or modality == "s2l1c")
        for name, group in rows.groupby("part", observed=True):
            wanted = group[["group", "cell", "product_id", "position"]].itertuples(index=False, name=None)
            url = f"{product_url(source, str(modality))}/images/{name}"
            local_name = local[modality].free_name(str(name))
            parts.append(PartRows(root, str(modality), url, local_name, tuple(map(SourceRow._make, wanted)), own))
    return parts


def measure(
    reader: RemoteReader, parts: Sequence[PartRows], connections: int, counts: ProductCounts, exact: bool
) -> int:
    """Fills in the bytes that the rows of one product take, from the footers of its files.

    Args:
        reader: Reads them; those on disk are not read again.
        parts: The files.
        connections: Footers that are read at the same time.
        counts: Of the product; it gets ``rows``, ``files``, ``looked_at``, ``line``, ``disk``.
        exact: False reads only some footers, and estimates the rest.

    Returns:
        The bytes of the largest file to make.

    Raises:
        TerraFMError: If the source cannot be read or does not fit its table.
    """
    few = exact or len(parts) <= SAMPLE
    picked = range(len(parts)) if few else np.linspace(0, len(parts) - 1, SAMPLE).round().astype(int)
    look_at = [parts[i] for i in dict.fromkeys(picked)]

    def size(part: PartRows) -> list[int]:
        file = part.open(reader)
        return np.sum([file.row_bytes(row.group) for row in part.rows], axis=0).tolist()

    pool = ThreadPoolExecutor(connections)
    try:
        sizes = np.array(list(pool.map(size, look_at)), dtype=np.int64).reshape(-1, 2)
    finally:
        pool.shutdown(cancel_futures=True)
    counts.rows, counts.files, counts.looked_at = (sum(len(part.rows) for part in parts), len(parts), len(look_at))
    if known := sum(len(part.rows) for part in look_at):
        counts.line, counts.disk = (int(total * counts.rows / known) for total in sizes.sum(axis=0))
    return int(sizes[:, 1].max(initial=0))


def check_room(root: Path, need: int, spare: int, max_gb: float | None) -> None:
    """Refuses what does not fit the budget or the disk.

    Args:
        root: Where it is to go.
        need: Bytes to come.
        spare: Bytes that are needed besides while files are put together.
        max_gb: The budget in GB.

    Raises:
        TerraFMError: If it does not fit; it says by how much.
    """
    if max_gb is not None and need > max_gb * 1e9:
        raise TerraFMError(
            f"The selection needs {need / 1e9:,.3f} GB more, {need / 1e9 - max_gb:,.3f} GB above `max_gb` {max_gb:g}: "
            f"choose less, such as a `share` of {_floor(max_gb * 1e9 / need):g} of it, or raise the budget."
        )
    free = disk_usage(root).free
    if need + spare > free:
        raise TerraFMError(
            f"The selection needs {(need + spare) / 1e9:,.3f} GB while it is written, and {root} has "
            f"{free / 1e9:,.3f} GB free: choose less, such as a `share` of {_floor(free / (need + spare)):g} of it, "
            "or another disk."
        )


def staged_bytes(root: Path) -> int:
    """Bytes of the rows that wait to be put together."""
    total = 0
    for path in (root / KEPT).glob(f"*/{ROWS}/*/*.parquet"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # put together meanwhile
            continue
    return total


def _floor(share: float) -> float:
    """Rounds a share down to two digits."""
    scale = 10 ** (np.floor(np.log10(share)) - 1)
    return float(np.floor(share / scale) * scale)

"""What a download will do, or did, as tables for people."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from terrafm_tg.datasets.majortom.rows import FOLDERS

from .http import Traffic

_INTERVAL = 0.5  # seconds between two looks at how far it is


@dataclass
class Product:
    """Of one product: rows chosen, on disk already, to fetch or fetched; bytes on the line and on disk.

    Args:
        chosen: Rows of the selection.
        held: Of these, on disk before.
        rows: To fetch.
        files: Of the source, that hold these.
        line: Bytes of these rows over the line.
        disk: Bytes of these rows on disk.
        looked_at: Files whose footer the bytes were read from; the others are estimated.
        damaged: What is wrong with rows that were left out.
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
    """What a download did, or in a dry run would do.

    Args:
        products: By modality.
        cells: Cells of the selection.
        traffic: What went over the line.
        seconds: How long it took.
        dry_run: Whether it only looked.
        map_files: Files of ESA WorldCover that came.
        waiting: Bytes of rows that had come before.
        done: Bytes of the local files that were made.
    """

    products: dict[str, Product]
    cells: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    seconds: float = 0.0
    dry_run: bool = False
    map_files: int = 0
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

    def table(self, bandwidth: float) -> Table:
        """For people.

        Args:
            bandwidth: MB/s for which a dry run says how long it will take.
        """
        verb = "to fetch" if self.dry_run else "fetched"
        table = Table(caption=self._caption(bandwidth), caption_justify="left", min_width=70)
        for name in ("", "rows", "on disk", verb, *(["damaged"] * (not self.dry_run)), "files", "size"):
            table.add_column(name, justify="right" if name else "left")
        for modality, product in self.products.items():
            damaged = [] if self.dry_run else [f"{len(product.damaged):,}"]
            came = product.rows - len(product.damaged)
            counts = [f"{n:,}" for n in (product.chosen, product.held, came)]
            table.add_row(FOLDERS[modality], *counts, *damaged, f"{product.files:,}", decimal(product.line))
        return table

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


@contextmanager
def watch(title: str, total: int | None, reached: Callable[[], int], show: bool) -> Iterator[None]:
    """A bar in bytes on standard error.

    Args:
        title: Of the bar.
        total: Bytes in the end, where that is known.
        reached: Function that says how many have come; it is called now and then.
        show: Show it.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    stop = Event()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(title, total=total)

        def look() -> None:
            most = 0
            while not stop.wait(_INTERVAL):
                most = max(most, reached())
                bar.update(task, completed=most)

        thread = Thread(target=look, daemon=True)
        if show:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if show:
                thread.join()
                bar.update(task, completed=max(reached(), bar.tasks[task].completed))

"""Progress on standard error: a bar in a terminal, lines now and then in a log."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: Seconds between two lines of a log.
EVERY = 20.0


def with_bar[T](items: Iterable[T], title: str, total: int | None = None, shown: bool = True) -> Iterator[T]:
    """Goes through items and shows how far it is.

    Args:
        items: The items.
        title: Of the bar.
        total: Their number, where ``len`` does not tell it.
        shown: Show it.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with count_units(title, total, Console(stderr=True, quiet=not shown)) as show:
        for item in items:
            yield item
            show(advance=1)


@contextmanager
def count_units(
    title: str, total: float | None, console: Console, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Shows how far the work of the block is.

    The bar is drawn once a second: the thread that draws shares the interpreter with the work that may be measured.

    Args:
        title: Of the bar, or of the lines where the console is no terminal.
        total: Units in the end, where that is known.
        console: To draw on; nothing is drawn on a quiet one.
        in_bytes: Units are bytes, and come with their speed.

    Yields:
        A function that moves the bar by ``advance``, or shows ``now`` behind it.
    """
    if not console.is_terminal and not console.quiet:
        yield _Lines(title, total, console, decimal if in_bytes else "{:,}".format).add
        return
    counts = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn(), TimeElapsedColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    now = TextColumn("{task.fields[now]}", style="dim")
    with Progress(*columns, now, console=console, disable=console.quiet, transient=True, refresh_per_second=1) as bar:
        yield partial(bar.update, bar.add_task(title, total=total, now=""))


class _Lines:
    """A line after the first units that took long, then one each :data:`EVERY` seconds, and one at the end."""

    def __init__(self, title: str, total: float | None, console: Console, number: Callable[[int], str]) -> None:
        self.title, self.total, self.console, self.number = title, total, console, number
        self.done, self.start, self.told = 0.0, time.monotonic(), 0.0

    def add(self, advance: float = 0, now: str = "") -> None:
        self.done += advance
        passed = time.monotonic() - self.start
        ended = self.total is not None and self.done >= self.total and bool(advance)
        if passed - self.told < (EVERY if self.told else EVERY / 4) and not (ended and self.told):
            return
        self.told = passed
        whole = "" if self.total is None else f" of {self.number(int(self.total))}"
        left = ""
        if self.total and self.done and not ended:
            left = f", {timedelta(seconds=round(passed * (self.total / self.done - 1)))} left"
        self.console.print(f"{self.title}: {self.number(int(self.done))}{whole}{left} {now}".rstrip(), highlight=False)

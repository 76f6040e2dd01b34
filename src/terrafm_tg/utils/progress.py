"""Progress bars on standard error."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)


def with_bar[T](items: Iterable[T], title: str) -> Iterable[T]:
    """Goes through items with a bar that is gone at the end.

    Drawn once a second: the thread that draws shares the interpreter with the work that may be measured.

    Args:
        items: Of known number.
        title: Of the bar.
    """
    return track(items, title, console=Console(stderr=True), transient=True, refresh_per_second=1)


@contextmanager
def count_units(
    title: str, total: float | None, console: Console, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Shows a bar while the block runs.

    Args:
        title: Of the bar.
        total: Units in the end, where that is known.
        console: To draw on; nothing is drawn on a quiet one.
        in_bytes: Units are bytes, and come with their speed.

    Yields:
        A function that moves the bar by ``advance``, or shows ``now`` behind it.
    """
    counts = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn(), TimeElapsedColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    now = TextColumn("{task.fields[now]}", style="dim")
    with Progress(*columns, now, console=console, disable=console.quiet) as bar:
        yield partial(bar.update, bar.add_task(title, total=total, now=""))

"""Progress bars on standard error."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console, RenderableType
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
def count_units(title: str, total: int | None, console: Console) -> Iterator[Callable[..., None]]:
    """Shows a bar while the block runs.

    Args:
        title: Of the bar.
        total: Units in the end, where that is known.
        console: To draw on; nothing is drawn on a quiet one.

    Yields:
        A function that moves the bar by ``advance``, or shows ``now`` behind it.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    now = TextColumn("{task.fields[now]}", style="dim")
    with Progress(*columns, TimeRemainingColumn(), now, console=console, disable=console.quiet) as bar:
        yield partial(bar.update, bar.add_task(title, total=total, now=""))


@contextmanager
def watch_bytes(title: str, total: int | None, reached: Callable[[], int], show: bool) -> Iterator[None]:
    """Shows a bar in bytes while the block runs.

    Args:
        title: Of the bar.
        total: Bytes in the end, where that is known.
        reached: Tells how many have come; it is called now and then.
        show: False draws nothing.
    """

    class Watching(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.tasks:
                self.update(task.id, completed=max(reached(), task.completed))
            return super().get_renderables()

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    console = Console(stderr=True)
    with Watching(*columns, TimeRemainingColumn(), console=console, refresh_per_second=2, disable=not show) as bar:
        bar.add_task(title, total=total)
        yield

"""A progress bar beside something that is measured."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track


def shown[T](items: Iterable[T], title: str) -> Iterable[T]:
    """The items, with a bar on standard error that is gone at the end.

    Drawn once a second: the thread that draws shares the interpreter with what is measured.

    Args:
        items: Of known number.
        title: What is done with them.
    """
    return track(items, title, console=Console(stderr=True), transient=True, refresh_per_second=1)

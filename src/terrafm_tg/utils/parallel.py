"""Many units of work at once, on Dask: in this process, on this machine's cores, or on a cluster of machines."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from importlib.util import find_spec
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from terrafm_tg.errors import TerraFMError

from .progress import count_units

if TYPE_CHECKING:
    from distributed import Client

#: Processor seconds of work in this process after which others take over: each takes some seconds to start.
PATIENCE = 10.0
_AHEAD = 3  # units that each worker has been given, so that it does not wait for the next
#: Ctrl-C in a terminal reaches all processes: this one alone answers, and ends the workers, which else start anew.
_DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
_ANSWER = 10  # seconds in which the scheduler that is given must answer
_JOIN = 60  # seconds in which a worker must join the scheduler that is given


class Room:
    """Memory that threads share: who needs more than is free waits until others are done.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Takes so many bytes within it; all of them for what needs more."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def map_threads[U, R](function: Callable[[U], R], items: Iterable[U], threads: int) -> list[R]:
    """Calls a function with each item in threads, for work that waits; errors are raised as they are.

    Each has this thread's context variables: rasterio before 1.5 keeps there what GDAL is to read with.
    """
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            return [job.result() for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)


def run_units[U, R](
    function: Callable[[U], R],
    units: Iterable[U],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    title: str,
    progress: bool = True,
    describe: Callable[[U], str] | None = None,
) -> Iterator[tuple[int, R]]:
    """Calls a function with each unit of work; results come as they finish.

    Whatever the place, results are the same, only their order differs. A unit whose worker process dies is run
    again on another, so a unit must leave the same behind when it runs twice. On a cluster only a few units per
    worker are under way at a time, and no more results are held than these: there may be millions of units.

    Processes are started afresh, so a script that calls this does so under ``if __name__ == "__main__":``.

    Args:
        function: Called as ``function(unit)``; it and the units are pickled for each call, so let them be small.
        units: The work. With a length there is an end to the progress bar.
        workers: Processes on this machine; 0 for this process alone. None for one per core as soon as the first
            units, which run here, have taken :data:`PATIENCE` processor seconds.
        scheduler: Address of a Dask cluster that runs already, such as ``tcp://10.0.0.1:8786``, with this
            package and the same files on all its machines. Without `workers`.
        title: What the progress bar and messages call the work.
        progress: Show a bar, and where a cluster's dashboard is, on standard error.
        describe: What the progress bar calls the unit that was begun (on a cluster: handed out) last.

    Yields:
        Position of a unit, and the function's result.

    Raises:
        TerraFMError: As a unit raised it; or if Dask is not installed, no scheduler answers, a unit ended four
            worker processes, or the connection to the cluster is lost. The units under way are then stopped.
    """
    if workers is not None and (workers < 0 or scheduler is not None):
        wrong = f"is {workers}" if workers < 0 else f"{workers} and a scheduler ({scheduler}) are both given"
        raise TerraFMError(
            f"`workers` {wrong}: give a number of processes of this machine, 0 for none, or the scheduler alone."
        )
    if (workers or scheduler) and find_spec("distributed") is None:
        wanted = f"scheduler={scheduler!r}" if scheduler else f"workers={workers}"
        raise TerraFMError(f'{wanted} needs Dask: pip install "terrafm-tg[dask]", or set workers=0.')
    console = Console(stderr=True, quiet=not progress)
    total = len(units) if isinstance(units, Sized) else None
    with count_units(title, total, console) as show:
        if describe is not None:  # each is named as it is taken
            units = (show(now=escape(describe(unit))) or unit for unit in units)
        waiting = enumerate(units)
        if scheduler is None and not workers:
            may_leave = workers is None and find_spec("distributed") is not None and _cores() > 1
            spent = 0.0
            while (spent < PATIENCE or not may_leave) and (here := next(waiting, None)) is not None:
                start = time.process_time()
                result = function(here[1])
                spent += time.process_time() - start
                show(advance=1)
                yield here[0], result
        if (first := next(waiting, None)) is None:
            return
        with _cluster(workers, scheduler, None if total is None else total - first[0], console) as client:
            for done in _there(client, function, chain([first], waiting), title):
                show(advance=1)
                yield done


def _there(
    client: "Client", function: Callable[[Any], Any], waiting: Iterator[tuple[int, Any]], title: str
) -> Iterator[tuple[int, Any]]:
    """Runs units on a cluster: as one finishes, the next is sent."""
    from distributed import KilledWorker, as_completed

    running = as_completed(with_results=True, raise_errors=False)
    while True:
        # asked each time: machines join and leave
        most = _AHEAD * max(1, sum(client.nthreads().values()))
        for position, unit in islice(waiting, max(0, most - running.count())):
            running.add(client.submit(_call, function, position, unit, pure=False))
        if running.is_empty():
            return
        _, result = next(running)
        # Not by the future's status: of a result that is here already it changes when the worker that made it dies.
        if isinstance(result, list):
            yield result[0], result[1]
        elif not isinstance(result, tuple):
            raise TerraFMError(f"{title}: the connection to the Dask cluster was lost: start again to go on.")
        elif isinstance(error := result[1], KilledWorker):
            raise TerraFMError(
                f"{title}: a unit ended {error.allowed_failures + 1} worker processes, most likely for lack of memory: "
                "use fewer workers, or find that unit with workers=0."
            ) from error
        else:
            raise error


def _call(function: Callable[[Any], Any], position: int, unit: Any) -> list[Any]:
    """Returns a unit's position and result as a list, which tells it from an error."""
    return [position, function(unit)]


@contextmanager
def _cluster(workers: int | None, scheduler: str | None, units: int | None, console: Console) -> Iterator["Client"]:
    """Connects to the scheduler given, else starts processes on this machine, which end with it."""
    import logging

    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if scheduler is None:
            wanted = workers or _cores()
            try:
                cluster = LocalCluster(
                    n_workers=wanted if units is None else max(1, min(wanted, units)),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    preload=[_DEAF],
                )
            except RuntimeError as error:  # a script without it runs again in each process
                raise TerraFMError(
                    "Dask's worker processes did not start: in a script, put the work under "
                    '`if __name__ == "__main__":`, or set workers=0.'
                ) from error
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=_ANSWER))
                client.wait_for_workers(1, timeout=_JOIN)
            except (OSError, ValueError) as error:  # timeouts are OSErrors
                raise TerraFMError(
                    f"No Dask scheduler with workers answers at {scheduler!r}: start them with `dask scheduler` and "
                    "`dask worker ADDRESS`, or leave the scheduler out."
                ) from error
        threads = sum(client.nthreads().values())
        console.print(f"{threads} Dask workers; dashboard: {client.dashboard_link}")
        yield client


def _cores() -> int:
    """Cores that this process may use (a container may have fewer than the machine); 1 in a daemon."""
    import multiprocessing

    if multiprocessing.current_process().daemon:  # such as a DataLoader's worker: it may start no process
        return 1
    from dask.system import CPU_COUNT

    return CPU_COUNT

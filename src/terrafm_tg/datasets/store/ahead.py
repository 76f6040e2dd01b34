"""Records of a store on a server that are fetched before they are needed, many at a time, and kept on disk."""

import errno
import fcntl
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from io import FileIO
from pathlib import Path

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.remote import shared_reader

_log = logging.getLogger(__name__)
_CONNECTIONS = 24  # of a process; Arrow's client of a store has 25
_GAP = 1 / 20  # of a record: most that may lie before it, such as Arrow's heads, to be fetched with it
_PIECE = 1 << 23  # most bytes of a request for several records
_ROOM = 1 << 27  # bytes that a process holds, or is waiting for
Span = tuple[str, int, int]


class _Request:
    """Bytes of a shard that hold one record or several, one behind the other."""

    def __init__(self, path: str, start: int, stop: int) -> None:
        self.path, self.start, self.stop = path, start, stop
        self.spans: set[Span] = set()
        self.uses = 0  # to come
        self.body: Future[bytes] | None = None  # once it is asked for


class Ahead:
    """Fetches what will be read next, in that order, while what came is decoded; threads of its own.

    Records that lie side by side are one request. What fails here is no error: whoever needs it reads it again.

    Args:
        read: Reads the bytes from a start to a stop of a file.
    """

    def __init__(self, read: Callable[[str, int, int], bytes]) -> None:
        self._read, self._pool = read, ThreadPoolExecutor(_CONNECTIONS)
        self._requests: dict[Span, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._count = self._size = 0  # requests under way or not taken, and their bytes

    def expect(self, spans: Iterable[Span]) -> None:
        """Begins to fetch spans of files, (path, start, stop), in the order in which they will be taken.

        What was expected before and not taken is forgotten.
        """
        for request in self._requests.values():
            if request.body is not None:
                request.body.cancel()
        wanted = list(spans)
        self._requests = {}
        last: _Request | None = None
        for path, start, stop in sorted(set(wanted)):
            near = last is not None and last.path == path and start - last.stop <= _GAP * (stop - start)
            if last is None or not near or stop - last.start > _PIECE:
                last = _Request(path, start, stop)
            last.stop = max(last.stop, stop)
            last.spans.add((path, start, stop))
            self._requests[path, start, stop] = last
        for span in wanted:
            self._requests[span].uses += 1
        self._waiting = deque(dict.fromkeys(self._requests[span] for span in wanted))
        self._count = self._size = 0
        self._begin()

    def take(self, span: Span) -> bytes | None:
        """Returns the bytes of a span, when they have come; None where it is not expected, or could not be read."""
        if (request := self._requests.get(span)) is None:
            return None
        coming = request.body or self._submit(request)
        request.uses -= 1
        try:
            body = coming.result()
        except (OSError, TerraFMError):
            return None
        finally:
            if not request.uses:
                for held in request.spans:
                    del self._requests[held]
                self._count, self._size = self._count - 1, self._size - (request.stop - request.start)
                self._begin()
        return body if len(body) == span[2] - span[1] else body[span[1] - request.start : span[2] - request.start]

    def _begin(self) -> None:
        while self._waiting and self._count < _CONNECTIONS and self._size < _ROOM:
            if (request := self._waiting.popleft()).body is None:
                self._submit(request)

    def _submit(self, request: _Request) -> Future[bytes]:
        self._count, self._size = self._count + 1, self._size + request.stop - request.start
        request.body = self._pool.submit(self._read, request.path, request.start, request.stop)
        return request.body


def ahead_of(root: str) -> Ahead:
    """Returns what fetches ahead from a store, in this process: neither threads nor connections are inherited."""
    return _ahead_of(os.getpid(), root)


@cache
def _ahead_of(process: int, root: str) -> Ahead:
    return Ahead(shared_reader().read)


class DiskCache:
    """Records of a store in files on a local disk, shared by all processes of the machine, within a budget.

    A shard's file has holes where the shard's other records are. What was kept first stays: where each epoch draws all
    tiles in another order, none is likelier than another to be needed next, and a record that is replaced is a record
    fetched in vain. Whoever reads a record compares its checksum, so one that is half written is fetched again.

    Args:
        folder: Where they lie; made where missing. Its file ``used`` counts their bytes.
        budget: Most bytes.

    Raises:
        TerraFMError: If nothing can be written there.
    """

    def __init__(self, folder: Path, budget: float) -> None:
        self.folder, self.budget, self.full = folder, budget, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "used").touch()
        except OSError as error:
            raise TerraFMError(f"`disk_cache` {folder} cannot be written ({error}): name another folder.") from error

    def has(self, shard: str, start: int, size: int) -> bool:
        """Tells whether a record may be kept."""
        try:
            file = _opened(str(self.folder / shard)).fileno()
            return os.lseek(file, start, os.SEEK_DATA) == start and os.lseek(file, start, os.SEEK_HOLE) >= start + size
        except OSError:  # no file, or none behind that place
            return False

    def read(self, shard: str, start: int, size: int) -> bytes | None:
        """Reads a record, whose checksum tells whether it is one; None where it is not kept."""
        if not self.has(shard, start, size):
            return None
        data = os.pread(_opened(str(self.folder / shard)).fileno(), size, start)
        return data if len(data) == size else None

    def keep(self, shard: str, start: int, data: bytes) -> None:
        """Keeps a record, unless that would exceed the budget or the disk."""
        if self.full:
            return
        try:
            self.full = not self._take(len(data))
            if self.full:
                return
            path = self.folder / shard
            path.parent.mkdir(parents=True, exist_ok=True)
            os.pwrite(_opened(str(path), create=True).fileno(), data, start)
        except OSError as error:
            self.full = True
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                _log.warning("`disk_cache` %s keeps no more (%s).", self.folder, error)

    def _take(self, size: int) -> bool:
        """Takes bytes of the budget, which all processes share."""
        file = _opened(str(self.folder / "used"), create=True).fileno()
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            used = int(os.pread(file, 32, 0) or b"0") + size
            if used <= self.budget:
                os.pwrite(file, b"%d" % used, 0)
            return used <= self.budget
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN)


@lru_cache(maxsize=256)
def _opened(path: str, create: bool = False) -> FileIO:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT * create
    return FileIO(path, "rb+", opener=lambda name, _: os.open(name, flags, 0o644))

"""A file on a server that GDAL reads as one on disk: each byte is fetched once, blocks in few requests.

GDAL asks for a TIFF's headers and blocks one by one. Here the blocks of a window are asked of the headers first, and
those that touch are one request. The bytes are kept in a temporary file, so that what neighbors share is not fetched
again.
"""

import io
import math
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePosixPath
from tempfile import TemporaryFile
from threading import Lock, RLock
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from uuid import uuid4

from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from .remote import RemoteError, RemoteReader
from .trust import open_image

_HEAD = 1 << 13  # bytes that the headers of most cloud-optimized files fit into
_PAGE = 1 << 12  # least bytes of a request that was not foreseen
_GAP = 1 << 10  # bytes between two blocks that are fetched with them
_PIECE = 1 << 23  # most bytes of a request
Span = tuple[int, int]


class Spool:
    """Bytes that are kept for a while, of any number of files in one temporary file, which has no name."""

    def __init__(self) -> None:
        self._lock, self._end = RLock(), 0  # a file may be given back while another is kept
        self._free = list[Span]()

    @cached_property
    def _file(self) -> BinaryIO:
        return cast("BinaryIO", TemporaryFile())

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()

    def keep(self, body: bytes) -> int:
        """Keeps bytes; returns where."""
        with self._lock:
            place = next((k for k, (start, stop) in enumerate(self._free) if stop - start >= len(body)), None)
            if place is None:
                at, self._end = self._end, self._end + len(body)
            else:
                at, stop = self._free.pop(place)
                if at + len(body) < stop:
                    self._free.append((at + len(body), stop))
            self._file.seek(at)
            self._file.write(body)
        return at

    def read(self, at: int, count: int) -> bytes:
        """Reads bytes that are kept."""
        with self._lock:
            self._file.seek(at)
            return self._file.read(count)

    def forget(self, spans: Iterable[Span]) -> None:
        """Gives places back."""
        with self._lock:
            self._free += spans


class RemoteFile:
    """A file on a server with what of it has been fetched.

    Args:
        reader: Fetches it.
        url: Its address.
        keep: Bytes beyond which all but its head is given back when it is opened again.
        spool: Keeps its bytes, and those of other files of this process.
    """

    def __init__(self, reader: RemoteReader, url: str, keep: float = math.inf, spool: Spool | None = None) -> None:
        self.reader, self.url, self.keep, self.spool = reader, url, keep, spool or Spool()
        self.head, self.said = reader.read_head(url, _HEAD)
        self.error: RemoteError | None = None  # what went wrong while a library was reading
        self._lock = Lock()
        self._held = list[tuple[int, int, int]]()  # first byte, the one behind the last, place in the spool

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.said[0]

    def _gaps(self, start: int, stop: int) -> list[Span]:
        """Lists what of a span is not held."""
        gaps = list[Span]()
        for low, high, _ in [(0, len(self.head), 0), *self._held, (self.size, self.size, 0)]:
            if start < min(low, stop):
                gaps.append((start, min(low, stop)))
            start = max(start, high)
        return gaps

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Lists what of some spans has not been fetched, as the requests that would fetch it."""
        requests = list[Span]()
        for a, b in sorted(spans):
            for start, stop in self._gaps(max(a, 0), min(b, self.size)):
                if requests and stop <= requests[-1][1]:
                    continue
                if requests and start - requests[-1][1] <= _GAP and stop - requests[-1][0] <= _PIECE:
                    requests[-1] = (requests[-1][0], stop)
                else:
                    start = max(start, requests[-1][1]) if requests else start
                    requests += [(at, min(at + _PIECE, stop)) for at in range(start, stop, _PIECE)]
        return requests

    def fetch(self, spans: Iterable[Span], show: Callable[[int], object] = lambda count: None) -> None:
        """Fetches what of some spans is missing.

        Args:
            spans: First byte, and the one behind the last.
            show: Called with the bytes that have come.

        Raises:
            RemoteError: If the server cannot be read, or the file is another than it was.
        """
        for start, stop in self.missing(spans):
            body = self.reader.read(self.url, start, stop, self.said)
            with self._lock:
                for a, b in self._gaps(start, stop):
                    insort(self._held, (a, b, self.spool.keep(body[a - start : b - start])))
            show(stop - start)

    def read(self, at: int, count: int) -> bytes:
        """Reads bytes, fetching those that are missing. Errors as :meth:`fetch`."""
        stop = min(at + count, self.size) if count >= 0 else self.size
        if stop <= len(self.head):
            return self.head[at:stop]
        if self._gaps(at, stop):
            self.fetch([(at, max(stop, at + _PAGE))])
        parts = [self.head[at:stop]]
        with self._lock:
            for low, high, place in self._held:
                if (start := max(low, at)) < (end := min(high, stop)):
                    parts.append(self.spool.read(place + start - low, end - start))
        return b"".join(parts)

    def __del__(self) -> None:
        if hasattr(self, "_held"):
            self.forget()

    def forget(self) -> None:
        """Gives back what it takes on disk; its head stays."""
        with self._lock:
            self.spool.forget((place, place + high - low) for low, high, place in self._held)
            self._held.clear()

    @contextmanager
    def opened(self) -> Iterator[DatasetReader]:
        """Opens it as a raster, as :func:`~.trust.open_image` does.

        Raises:
            RemoteError: If bytes that were needed did not come.
            rasterio.errors.RasterioError: If they are no raster.
        """
        self.error = None
        if sum(stop - start for start, stop, _ in self._held) > self.keep:
            self.forget()
        name = PurePosixPath(urlsplit(self.url).path).name or "image"
        try:
            with open_image(f"{uuid4().hex}/{name}", opener=lambda *_, **__: _Cursor(self)) as src:
                yield src
        except RasterioError as error:
            if self.error is not None:
                raise self.error from error
            raise
        if self.error is not None:  # a library may pass over what it could not read
            raise self.error


class _Cursor(io.RawIOBase):
    """A place in a remote file, as GDAL wants it; no error leaves it, as it would be lost there."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def read(self, count: int = -1) -> bytes:
        try:
            body = b"" if self._file.error else self._file.read(self._at, count)
        except RemoteError as error:
            self._file.error, body = error, b""
        self._at += len(body)
        return body

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def block_spans(src: DatasetReader, window: Window | None, bands: Iterable[int] = (1,)) -> list[Span]:
    """Finds the bytes of the blocks that a window of a TIFF needs.

    Args:
        src: An open TIFF.
        window: The window; the whole where None.
        bands: From 1.

    Returns:
        Spans in the file; none where the format does not tell (JPEG 2000), or blocks are not stored.
    """
    window = window or Window(0, 0, src.width, src.height)
    spans = []
    for band in {1} if src.interleaving == Interleaving.pixel else {*bands}:
        down, across = src.block_shapes[band - 1]
        rows = range(int(window.row_off) // down, math.ceil((window.row_off + window.height) / down))
        for row in rows:
            for column in range(int(window.col_off) // across, math.ceil((window.col_off + window.width) / across)):
                start, size = (
                    src.get_tag_item(f"BLOCK_{key}_{column}_{row}", "TIFF", bidx=band) for key in ("OFFSET", "SIZE")
                )
                if start and size:
                    spans.append((int(start), int(start) + int(size)))
    return spans


def fetch_together(
    needs: Iterable[tuple[RemoteFile, list[Span]]],
    connections: int = 16,
    show: Callable[[int], object] = lambda count: None,
) -> None:
    """Fetches spans of several files at the same time.

    Args:
        needs: Files, each once, and their spans.
        connections: Requests at the same time.
        show: Called with the bytes that have come.

    Raises:
        RemoteError: As :meth:`RemoteFile.fetch`; the rest is then not begun.
    """
    requests = [(file, span) for file, spans in needs for span in file.missing(spans)]
    pool = ThreadPoolExecutor(max(1, min(connections, len(requests))))
    try:
        for job in [pool.submit(file.fetch, [span], show) for file, span in requests]:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)

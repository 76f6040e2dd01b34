"""A file on a server that GDAL reads as one on disk: each byte is fetched once, blocks in few requests.

GDAL asks for a TIFF's headers and blocks one by one. Here the blocks of a window are asked of the headers first, and
those that touch are one request. The bytes lie in a temporary file at their places, so that what neighbors share is
not fetched again.
"""

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from tempfile import SpooledTemporaryFile
from threading import Lock
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
_IN_MEMORY = 1 << 17  # bytes of a file of which no more is held
Span = tuple[int, int]


class RemoteFile:
    """A file on a server with what of it has been fetched.

    Args:
        reader: Fetches it.
        url: Its address.
        head: Its first bytes, its size and its version, where they are known.
        keep: Bytes beyond which all but its head is given back when it is opened again.
    """

    def __init__(
        self, reader: RemoteReader, url: str, head: tuple[bytes, tuple[int, str]] | None = None, keep: float = math.inf
    ) -> None:
        self.reader, self.url, self.keep = reader, url, keep
        self.head, self.said = reader.read_head(url, _HEAD) if head is None else head
        self.error: RemoteError | None = None  # what went wrong while a library was reading
        self._lock, self._spans = Lock(), list[Span]()
        self._bytes = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._keep(0, self.head)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.said[0]

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Lists what of some spans has not been fetched, as the requests that would fetch it."""
        gaps = list[Span]()
        for start, stop in sorted((max(a, 0), min(b, self.size)) for a, b in spans):
            for low, high in [*self._spans, (self.size, self.size)]:
                if start < min(low, stop):
                    gaps.append((start, min(low, stop)))
                start = max(start, high)
        requests = list[Span]()
        for start, stop in gaps:
            if requests and start - requests[-1][1] <= _GAP and stop - requests[-1][0] <= _PIECE:
                requests[-1] = (requests[-1][0], max(stop, requests[-1][1]))
            else:
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
            self._keep(start, self.reader.read(self.url, start, stop, self.said))
            show(stop - start)

    def read(self, at: int, count: int) -> bytes:
        """Reads bytes, fetching those that are missing. Errors as :meth:`fetch`."""
        stop = min(at + count, self.size) if count >= 0 else self.size
        if at >= stop:
            return b""
        if self.missing([(at, stop)]):
            self.fetch([(at, max(stop, at + _PAGE))])
        with self._lock:
            self._bytes.seek(at)
            return self._bytes.read(stop - at)

    def __del__(self) -> None:
        if hasattr(self, "_bytes"):
            self._bytes.close()

    def forget(self) -> None:
        """Gives back the disk that it takes; its head stays."""
        with self._lock:
            self._bytes.truncate(0)
            self._spans.clear()
        self._keep(0, self.head)

    def _keep(self, at: int, body: bytes) -> None:
        with self._lock:
            if at + len(body) > _IN_MEMORY:
                self._bytes.rollover()  # else what lies before would be in memory as zeros
            self._bytes.seek(at)
            self._bytes.write(body)
            start, stop = at, at + len(body)
            first = bisect_left(self._spans, start, key=lambda span: span[1])
            last = first
            while last < len(self._spans) and self._spans[last][0] <= stop:
                start, stop = min(start, self._spans[last][0]), max(stop, self._spans[last][1])
                last += 1
            self._spans[first:last] = [(start, stop)]

    @contextmanager
    def opened(self) -> Iterator[DatasetReader]:
        """Opens it as a raster, as :func:`~.trust.open_image` does.

        Raises:
            RemoteError: If bytes that were needed did not come.
            rasterio.errors.RasterioError: If they are no raster.
        """
        self.error = None
        if sum(stop - start for start, stop in self._spans) > self.keep:
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

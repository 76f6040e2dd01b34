"""Bytes from servers and object stores, by fsspec: ranges and whole files.

fsspec's HTTP client neither tries again nor resumes. The layer here adds what a download of hours promises: an attempt
that fails is made again and continues behind the last byte that came, a server that is busy is left alone as long as
it asks (``Retry-After``), and a redirect is followed once, not each time.
"""

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from aiohttp import ClientError, ClientPayloadError, ClientResponseError, ClientTimeout, InvalidURL
from fsspec.implementations.http import HTTPStreamFile

from terrafm_tg.errors import TerraFMError

from .files import atomic_write, write_json
from .trust import check_address

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 20  # most bytes that are read at once
_PIECE = 1 << 24  # bytes of a whole file that are asked for at once
_FIRST = 0.5  # seconds before the second attempt
_LONGEST = 60.0  # seconds between two attempts, unless the server asks for more
_ASKED = 900.0  # seconds that a server may ask to wait
_SAID = 5.0  # seconds of waiting from which a line says so
_FIRST_CONTACT = 2  # attempts made again where no server ever answered
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)  # of a signed address that was redirected to
_COMPRESSED = ("gzip", "deflate", "br", "zstd")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RESET = re.compile(r"\bt=(\d+)")


class RemoteError(TerraFMError, OSError):
    """A file on a server cannot be read."""


class NotThereError(RemoteError):
    """The server has no such file."""


@dataclass
class RemoteReader:
    """Reads files by URL; threads may share it, processes may not.

    An attempt that fails (reset, timeout, 5xx, 429) is made again, each time after twice as long and with jitter.
    ``Retry-After`` holds all threads back. The address that a redirect leads to is remembered until it expires: hosts
    such as Hugging Face count redirects, and sign addresses for some time. Bodies come as they are, never inflated,
    and no more of them is read than was asked for. Other protocols than HTTP are read as fsspec reads them.

    Args:
        retries: Failures in a row without a new byte after which to give up.
        timeout: Seconds without a byte that count as a failure.
    """

    retries: int = 8
    timeout: float = 60.0

    def __post_init__(self) -> None:
        self._redirects: dict[str, str] = {}
        self._not_before = 0.0
        self._answered = False
        limits = ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        client = {"timeout": limits, "trust_env": True, "auto_decompress": False}  # proxies of the environment
        self._http = fsspec.filesystem("http", skip_instance_cache=True, encoded=True, client_kwargs=client)

    def describe(self, url: str) -> tuple[int, str]:
        """Returns a file's size and its version (``ETag`` or ``Last-Modified``). Errors as :meth:`read`."""

        def step() -> tuple[int, str]:
            if not _is_http(url):
                system, path = fsspec.core.url_to_fs(check_address(url))
                return system.size(path), system.ukey(path)
            with self._get(url, 0, 1) as (file, _, size):
                file.read(1)  # so that the connection is used again
                return size, file.r.headers.get("ETag") or file.r.headers.get("Last-Modified") or ""

        return self._persist(url, step, b"")

    def read(self, url: str, start: int, stop: int, size: int | None = None) -> bytes:
        """Reads the bytes ``[start, stop)`` of a file.

        Args:
            url: Of the file.
            start: First byte.
            stop: Behind the last byte.
            size: Of the whole file, where it is known.

        Raises:
            NotThereError: If there is no such file.
            RemoteError: If the server cannot be read, ignores ranges, or the file has another size.
        """
        body = bytearray()

        def step() -> None:
            at = start + len(body)
            if not _is_http(url):
                system, path = fsspec.core.url_to_fs(check_address(url))
                body.extend(system.cat_file(path, start=at, end=stop))
            else:
                with self._get(url, at, stop) as (file, first, total):
                    if first != at or size not in (None, total):
                        raise _changed(url, f"{total:,} bytes, expected {size or stop:,} or more")
                    while chunk := file.read(min(_CHUNK, stop - start - len(body))):
                        body.extend(chunk)
            if len(body) < stop - start:
                raise ClientPayloadError("the answer ended early")

        self._persist(url, step, body)
        return bytes(body)

    def save(self, url: str, path: Path) -> bool:
        """Downloads a file, unless the one that is there is the server's still, as ``.<name>.json`` remembers.

        Returns:
            True if the file is new.

        Raises:
            NotThereError: If the server has no such file.
            RemoteError: If it cannot be read, or changes meanwhile.
        """
        said, note = self.describe(url), path.with_name(f".{path.name}.json")
        if path.is_file() and note.is_file() and json.loads(note.read_text()) == [url, *said]:
            return False
        size, _ = said
        with atomic_write(path, sole_writer=True) as temporary:
            with temporary.open("wb") as out:
                for start in range(0, size, _PIECE):
                    out.write(self.read(url, start, min(start + _PIECE, size), size))
            if self.describe(url) != said:
                raise _changed(url, "another version")
        write_json(note, [url, *said])
        return True

    @contextmanager
    def _get(self, url: str, start: int, stop: int) -> Iterator[tuple[HTTPStreamFile, int, int]]:
        """Asks for a range; yields a file to read the body from, its first byte, and the size of the whole file."""
        target = self._redirects.get(url, url)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        try:
            file = self._http.open(target, block_size=0, size=1, headers=headers)  # a size spares a HEAD request
        except (FileNotFoundError, ClientResponseError) as error:
            if target != url and getattr(error, "status", 404) in _EXPIRED:
                self._redirects.pop(url, None)
                raise ConnectionError("the address that it redirects to has expired") from error
            raise
        self._answered = True
        with file:
            if file.r.headers.get("Content-Encoding") in _COMPRESSED:
                raise RemoteError(f"{url} comes compressed from its server, which was asked for it as it is.")
            if str(file.r.url) != target:
                self._redirects[url] = str(file.r.url)
            found = _RANGE.fullmatch(file.r.headers.get("Content-Range", ""))
            if file.r.status != 206 or found is None:
                raise RemoteError(
                    f"{url} comes from a server that ignores range requests, so that single rows cannot be fetched: "
                    "use one that has them (nginx, Apache, object stores; Python's http.server has none)."
                )
            yield file, int(found[1]), int(found[3])

    def _persist[T](self, url: str, step: Callable[[], T], body: bytes | bytearray) -> T:
        """Calls a function that reads until it succeeds, or nothing comes any more.

        Args:
            url: Of the file.
            step: Called again after a failure that passes.
            body: Bytes that have come; where it grew, a failure is the first again.
        """
        failures, before = 0, len(body)
        while True:
            if (wait := self._not_before - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                return step()
            except RemoteError:
                raise
            except (ClientError, OSError) as error:  # timeouts are OSErrors
                _check_passing(url, error)
                failures = 1 if len(body) > before else failures + 1
                before = len(body)
                if failures > (self.retries if self._answered else min(self.retries, _FIRST_CONTACT)):
                    raise RemoteError(
                        f"{url} cannot be read after {failures} attempts ({_reason(error)}): check the network and "
                        "`source`; what came before is kept, and the same command goes on from there."
                    ) from error
                self._rest(url, failures, error)

    def _rest(self, url: str, failures: int, error: Exception) -> None:
        wait = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
        if asked := _retry_after(error):
            wait = max(wait, min(asked, _ASKED))
            self._not_before = time.monotonic() + wait
        if wait >= _SAID:
            _logger.warning("%s: %s; waiting %.0f s.", url, _reason(error), wait)
        if not asked:
            time.sleep(wait)


def shared_reader() -> RemoteReader:
    """The reader of this process for datasets, in which a sample can be replaced: it gives up soon."""
    return _reader_of(os.getpid())


@cache
def _reader_of(process: int) -> RemoteReader:
    """Makes one per process: connections are not inherited."""
    return RemoteReader(retries=2)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _changed(url: str, how: str) -> RemoteError:
    return RemoteError(f"{url} changed on the server ({how}): start again, its table is then read anew.")


def _check_passing(url: str, error: Exception) -> None:
    """Raises for an error that another attempt would not mend."""
    if isinstance(error, FileNotFoundError):
        raise NotThereError(f"{url} does not exist (404): correct `source`.") from error
    if isinstance(error, InvalidURL) or (isinstance(error, ClientResponseError) and error.status not in _BUSY):
        raise RemoteError(f"{url} cannot be read ({_reason(error)}): correct `source`.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ClientResponseError):
        return f"{error.status} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).rstrip(".") or type(error).__name__


def _retry_after(error: Exception) -> float:
    """Reads the seconds that the server asks to wait, as Hugging Face says it or as others do; 0 where it does not."""
    headers: Any = getattr(error, "headers", None) or {}
    if found := _RESET.search(headers.get("RateLimit", "")):
        return float(found[1])
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0

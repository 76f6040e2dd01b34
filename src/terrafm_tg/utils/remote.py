"""Bytes from servers and object stores, by fsspec: ranges and whole files.

fsspec's HTTP client neither tries again nor resumes. The layer here adds what a download of hours promises: an attempt
that fails is made again and continues behind the last byte that came, every byte, request and retry is counted, a
server that is busy is left alone as long as it asks (``Retry-After``), and a redirect is followed once, not each time.
"""

import errno
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from aiohttp import ClientError, ClientPayloadError, ClientResponse, ClientResponseError, ClientTimeout, InvalidURL
from fsspec.implementations.http import HTTPStreamFile

from terrafm_tg.errors import TerraFMError

from .files import atomic_write, move_into_place
from .trust import check_address

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 20  # most bytes that are read at once
_FIRST = 0.5  # seconds before the second attempt
_LONGEST = 60.0  # seconds between two attempts, unless the server asks for more
_ASKED = 900.0  # seconds that a server may ask to wait
_SAID = 5.0  # seconds of waiting from which a line says so
_FIRST_CONTACT = 3  # failures in a row that are enough where no server ever answered
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)  # of a signed address that was redirected to
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_COMPRESSED = ("gzip", "deflate", "br", "zstd")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RESET = re.compile(r"\bt=(\d+)")


class RemoteError(TerraFMError, OSError):
    """A file on a server cannot be read."""


class NotThereError(RemoteError):
    """The server has no such file."""


@dataclass
class Traffic:
    """Bytes of bodies that came over the line, requests, and those made again after a failure."""

    received: int = 0
    requests: int = 0
    retries: int = 0


@dataclass
class RemoteReader:
    """Reads files by URL; threads may share it, processes may not.

    An attempt that fails (reset, timeout, 5xx, 429) is made again, each time after twice as long and with jitter.
    ``Retry-After`` holds all threads back. The address that a redirect leads to is remembered until it expires: hosts
    such as Hugging Face count redirects, and sign addresses for some time. Bodies come as they are, never inflated.
    Other protocols than HTTP are read as fsspec reads them.

    Args:
        retries: Failures in a row without a new byte after which to give up.
        timeout: Seconds without a byte that count as a failure.
    """

    retries: int = 8
    timeout: float = 60.0
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def __post_init__(self) -> None:
        self._redirects: dict[str, str] = {}
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered = False
        limits = ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        client = {"timeout": limits, "trust_env": True, "auto_decompress": False}  # proxies of the environment
        self._http = fsspec.filesystem("http", skip_instance_cache=True, encoded=True, client_kwargs=client)

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
                self._count(requests=1, received=len(data := self._cat(url, at, stop)))
                body.extend(data)
            else:
                with self._get(url, {"Range": f"bytes={at}-{stop - 1}"}) as (file, answer):
                    first, total = _content_range(answer, url)
                    if first != at or size not in (None, total):
                        raise RemoteError(
                            f"{url} changed on the server ({total:,} bytes, expected {size or stop:,} or more): "
                            "start again, its table is then read anew."
                        )
                    self._receive(file, stop - at, body.extend)
            if len(body) < stop - start:
                raise ClientPayloadError("the answer ended early")

        self._persist(url, step, lambda: len(body))
        return bytes(body)

    def read_tail(self, url: str, count: int) -> tuple[bytes, int]:
        """Reads the last ``count`` bytes of a file; returns them and its size. Errors as :meth:`read`."""

        def step() -> tuple[bytes, int]:
            if not _is_http(url):
                system, path = fsspec.core.url_to_fs(check_address(url))
                total = system.size(path)
                return self.read(url, max(0, total - count), total), total
            body = bytearray()
            with self._get(url, {"Range": f"bytes=-{count}"}) as (file, answer):
                _, total = _content_range(answer, url)
                self._receive(file, count, body.extend)
            if len(body) < min(count, total):
                raise ClientPayloadError("the answer ended early")
            return bytes(body), total

        return self._persist(url, step, lambda: 0)

    def save(self, url: str, path: Path) -> bool:
        """Downloads a file, unless the one that is there is the server's still.

        What came before an interruption lies in ``.<name>.part`` and is continued if the server still has the same
        version (``If-Range``). ``.<name>.json`` remembers the address, the version (``ETag`` or ``Last-Modified``) and
        the size.

        Returns:
            True if the file is new.

        Raises:
            NotThereError: If the server has no such file.
            RemoteError: If it cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")

        def step() -> bool:
            if not _is_http(url):
                system, there = fsspec.core.url_to_fs(check_address(url))
                with atomic_write(path) as temporary:
                    system.get_file(there, str(temporary))
                self._count(requests=1, received=path.stat().st_size)
                return True
            with self._get(url, _conditions(url, path, part)) as (file, answer):
                if answer.status == 304:
                    return False
                if answer.status != 206:
                    part.unlink(missing_ok=True)
                size = _note_version(part, url, answer)
                with part.open("ab") as out:
                    self._receive(file, None, out.write)
            if size not in (None, part.stat().st_size):
                part.unlink()
                raise ClientPayloadError("the file has another size than the server said")
            move_into_place(part, path)
            move_into_place(_stamp_of(part), _stamp_of(path))
            return True

        return self._persist(url, step, lambda: part.stat().st_size if part.is_file() else 0)

    def _receive(self, file: HTTPStreamFile, most: int | None, take: Callable[[bytes], Any]) -> None:
        """Hands on a body, or the bytes of it that were asked for, as they come."""
        came = 0
        while chunk := file.read(_CHUNK if most is None else min(_CHUNK, most - came)):
            self._count(received=len(chunk))
            take(chunk)
            came += len(chunk)

    def _cat(self, url: str, start: int, stop: int) -> bytes:
        system, path = fsspec.core.url_to_fs(check_address(url))
        return system.cat_file(path, start=start, end=stop)

    @contextmanager
    def _get(self, url: str, headers: Mapping[str, str]) -> Iterator[tuple[HTTPStreamFile, ClientResponse]]:
        """Makes one request; yields a file to read the body from, and the answer's head."""
        self._count(requests=1)
        target = self._redirects.get(url, url)
        options = {"headers": {"Accept-Encoding": "identity"} | dict(headers)}
        try:
            file = self._http.open(target, block_size=0, size=1, **options)  # a size spares a HEAD request
        except (FileNotFoundError, ClientResponseError) as error:
            if target != url and getattr(error, "status", 404) in _EXPIRED:
                if self._redirects.get(url) == target:  # no other thread has a new one yet
                    self._redirects.pop(url, None)
                raise ConnectionError("the address that it redirects to has expired") from error
            raise
        self._answered = True
        with file:
            if file.r.headers.get("Content-Encoding") in _COMPRESSED:
                raise RemoteError(f"{url} comes compressed from its server, which was asked for it as it is.")
            if str(file.r.url) != target:
                self._redirects[url] = str(file.r.url)
            yield file, file.r

    def _persist[T](self, url: str, step: Callable[[], T], reached: Callable[[], int]) -> T:
        """Calls a function that reads until it succeeds, or nothing comes any more.

        Args:
            url: Of the file.
            step: Called again after a failure that passes.
            reached: Tells how many bytes have come.
        """
        failures, before = 0, reached()
        while True:
            if (wait := self._not_before - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                return step()
            except RemoteError:
                raise
            except (ClientError, OSError) as error:  # timeouts are OSErrors
                _check_passing(url, error)
                failures = 1 if reached() > before else failures + 1
                before = reached()
                enough = self.retries if self._answered else min(self.retries, _FIRST_CONTACT - 1)
                if failures > enough:
                    raise RemoteError(
                        f"{url} cannot be read after {failures} attempts ({_reason(error)}): check the network and "
                        "`source`; what came before is kept, and the same command goes on from there."
                    ) from error
                self._rest(url, failures, error)

    def _rest(self, url: str, failures: int, error: Exception) -> None:
        self._count(retries=1)
        wait = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
        if asked := _retry_after(error):
            wait = max(wait, min(asked, _ASKED))
            self._not_before = time.monotonic() + wait
        if wait >= _SAID:
            _logger.warning("%s: %s; waiting %.0f s.", url, _reason(error), wait)
        if not asked:
            time.sleep(wait)

    def _count(self, received: int = 0, requests: int = 0, retries: int = 0) -> None:
        with self._lock:
            self.traffic.received += received
            self.traffic.requests += requests
            self.traffic.retries += retries


def shared_reader() -> RemoteReader:
    """The reader of this process for datasets, in which a sample can be replaced: it gives up soon."""
    return _reader_of(os.getpid())


@cache
def _reader_of(process: int) -> RemoteReader:
    """Makes one per process: connections and locks are not inherited."""
    return RemoteReader(retries=2)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _content_range(answer: ClientResponse, url: str) -> tuple[int, int]:
    """Reads the first byte and the size of the file off an answer to a range request."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status != 206 or found is None:
        raise RemoteError(
            f"{url} comes from a server that ignores range requests, so that single rows cannot be fetched: "
            "use one that has them (nginx, Apache, object stores; Python's http.server has none)."
        )
    return int(found[1]), int(found[3])


def _check_passing(url: str, error: Exception) -> None:
    """Raises for an error that another attempt would not mend."""
    if isinstance(error, FileNotFoundError):
        raise NotThereError(f"{url} does not exist (404): correct `source`.") from error
    if isinstance(error, OSError) and error.errno in _DISK:
        raise RemoteError(f"{url} cannot be written to the disk ({error}): make room, and start again.") from error
    if isinstance(error, InvalidURL) or (isinstance(error, ClientResponseError) and error.status not in _BUSY):
        raise RemoteError(f"{url} cannot be read ({_reason(error)}): correct `source`.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ClientResponseError):
        return f"{error.status} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).rstrip(".") or type(error).__name__


def _retry_after(error: Exception) -> float:
    """Reads the seconds that the server asks to wait, given as such or as a date; 0 where it does not."""
    headers: Any = getattr(error, "headers", None) or {}
    if "RateLimit" in headers and (found := _RESET.search(headers["RateLimit"])):  # Hugging Face says it so
        return float(found[1])
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0


def _conditions(url: str, path: Path, part: Path) -> dict[str, str]:
    """Makes headers that ask for the rest of what was begun, or for a version other than the one at hand."""
    begun, held = _stamp(part), _stamp(path)
    if begun and begun["url"] == url and begun["version"] and part.stat().st_size < (begun["size"] or 0):
        return {"Range": f"bytes={part.stat().st_size}-", "If-Range": begun["version"]}
    if held and held["url"] == url and held["version"] and held["size"] in (None, path.stat().st_size):
        return {"If-None-Match" if '"' in held["version"] else "If-Modified-Since": held["version"]}
    return {}


def _note_version(part: Path, url: str, answer: ClientResponse) -> int | None:
    """Writes down the version that a part is of, and returns the size of the whole where it is known."""
    whole = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
    size = int(whole) if whole.isdecimal() else None
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    with atomic_write(_stamp_of(part)) as temporary:
        temporary.write_text(json.dumps({"url": url, "version": version, "size": size}))
    return size


def _stamp_of(path: Path) -> Path:
    return path.with_name(f".{path.name.strip('.')}.json")


def _stamp(path: Path) -> dict[str, Any] | None:
    """Reads the notes on a file that is there."""
    stamp = _stamp_of(path)
    return json.loads(stamp.read_text()) if path.is_file() and stamp.is_file() else None

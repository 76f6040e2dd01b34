"""Bytes over HTTP, by fsspec: ranges and whole files that survive resets, slow servers and busy ones."""

import errno
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import fsspec
from aiohttp import (
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientTimeout,
    InvalidURL,
)
from fsspec.implementations.http import HTTPStreamFile

from terrafm_tg.errors import TerraFMError

#: Most bytes that are read at once.
CHUNK = 1 << 20
_FIRST = 0.5  # seconds before the second attempt
_LONGEST = 60.0  # seconds between two attempts, unless the server asks for more
_ASKED = 900.0  # seconds that a server may ask to wait
_FIRST_CONTACT = 3  # failures in a row that are enough where no server ever answered
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)  # of a signed address that was redirected to
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_RESET = re.compile(r"\bt=(\d+)")


class NotThereError(TerraFMError):
    """The server has no such file."""


@dataclass
class Traffic:
    """What went over the line: bytes of bodies, requests, and those made again after a failure."""

    received: int = 0
    requests: int = 0
    retries: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(getattr(self, n) + getattr(other, n) for n in ("received", "requests", "retries")))

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(getattr(self, n) - getattr(other, n) for n in ("received", "requests", "retries")))


@dataclass
class Http:
    """Reads from servers; threads may share it.

    An attempt that fails (reset, timeout, 5xx, 429) is made again, each time after twice as long and with jitter,
    and goes on behind the last byte that came. ``Retry-After`` holds all threads back. The address that a
    redirect leads to is remembered until it expires: hosts such as Hugging Face count redirects, and sign
    addresses for some time.

    Args:
        retries: Failures in a row without a new byte after which to give up.
        timeout: Seconds without a byte that count as a failure.
    """

    retries: int = 8
    timeout: float = 60.0
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def __post_init__(self) -> None:
        limits = ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        client = {"timeout": limits, "trust_env": True}  # proxies, as the environment names them
        self._fs = fsspec.filesystem("http", skip_instance_cache=True, encoded=True, client_kwargs=client)
        self._redirects: dict[str, str] = {}
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered = False

    def fetch(self, url: str, start: int, stop: int, size: int | None = None) -> bytes:
        """The bytes ``[start, stop)`` of a file.

        Args:
            url: Of the file.
            start: First byte.
            stop: Behind the last byte.
            size: Of the whole file, where it is known.

        Raises:
            NotThereError: If there is no such file.
            TerraFMError: If the server cannot be read, ignores ranges, or the file has another size.
        """
        body = bytearray()

        def step() -> None:
            with self.get(url, {"Range": f"bytes={start + len(body)}-{stop - 1}"}) as (file, answer):
                first, total = _content_range(answer, url)
                if first != start + len(body) or size not in (None, total):
                    raise TerraFMError(
                        f"{url} changed on the server ({total:,} bytes, expected {size or stop:,} or more): "
                        "start again, its table is then read anew."
                    )
                while chunk := file.read(min(CHUNK, stop - start - len(body))):
                    self.count(received=len(chunk))
                    body.extend(chunk)
            if len(body) < stop - start:
                raise ClientPayloadError("the answer ended early")

        self.persist(url, step, lambda: len(body))
        return bytes(body)

    def tail(self, url: str, count: int) -> tuple[bytes, int]:
        """The last ``count`` bytes of a file, and its size; errors as :meth:`fetch`."""

        def step() -> tuple[bytes, int]:
            with self.get(url, {"Range": f"bytes=-{count}"}) as (file, answer):
                _, total = _content_range(answer, url)
                body = bytearray()
                while chunk := file.read(count - len(body)):
                    self.count(received=len(chunk))
                    body.extend(chunk)
            if len(body) < min(count, total):
                raise ClientPayloadError("the answer ended early")
            return bytes(body), total

        return self.persist(url, step, lambda: 0)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[tuple[HTTPStreamFile, ClientResponse]]:
        """One request.

        Args:
            url: Of the file.
            headers: More of the request's.

        Yields:
            A file to read the body from, and the answer's head.
        """
        self.count(requests=1)
        target = self._redirects.get(url, url)
        options = {"headers": {"Accept-Encoding": "identity"} | dict(headers)}
        try:
            file = self._fs.open(target, block_size=0, size=1, **options)  # a size spares a HEAD request
        except (FileNotFoundError, ClientResponseError) as error:
            if self._redirects.pop(url, None) and getattr(error, "status", 404) in _EXPIRED:
                raise ConnectionError("the address that it redirects to has expired") from error
            raise
        self._answered = True
        with file:
            if str(file.r.url) != target:
                self._redirects[url] = str(file.r.url)
            yield file, file.r

    def persist[T](self, url: str, step: Callable[[], T], reached: Callable[[], int]) -> T:
        """Call a function that reads until it succeeds, or nothing comes any more.

        Args:
            url: That it reads.
            step: Called again after a failure that passes.
            reached: How many bytes have come.

        Raises:
            NotThereError: If there is no such file.
            TerraFMError: If the failure does not pass.
        """
        failures, before = 0, reached()
        while True:
            if (wait := self._not_before - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                return step()
            except (ClientError, OSError) as error:  # timeouts are OSErrors
                _check_passing(url, error)
                failures = 1 if reached() > before else failures + 1
                before = reached()
                enough = self.retries if self._answered else min(self.retries, _FIRST_CONTACT - 1)
                if failures > enough:
                    raise TerraFMError(
                        f"{url} cannot be read after {failures} attempts ({_words(error)}): check the network and "
                        "`source`; what came before is kept, and the same command goes on from there."
                    ) from error
                self._rest(failures, error)

    def _rest(self, failures: int, error: Exception) -> None:
        self.count(retries=1)
        wait = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
        if asked := _retry_after(error):
            self._not_before = time.monotonic() + max(wait, min(asked, _ASKED))
        else:
            time.sleep(wait)

    def count(self, **more: int) -> None:
        """Add to the traffic."""
        with self._lock:
            self.traffic += Traffic(**more)


def _content_range(answer: ClientResponse, url: str) -> tuple[int, int]:
    """First byte and size of the file, of an answer to a range request."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status != 206 or found is None:
        raise TerraFMError(
            f"{url} comes from a server that ignores range requests, so that single rows cannot be fetched: "
            "use one that has them (nginx, Apache, object stores; Python's http.server has none)."
        )
    return int(found[1]), int(found[3])


def _check_passing(url: str, error: Exception) -> None:
    """Raise for an error that another attempt would not mend."""
    if isinstance(error, FileNotFoundError):
        raise NotThereError(f"{url} does not exist (404): correct `source`.") from error
    if isinstance(error, OSError) and error.errno in _DISK:
        raise TerraFMError(
            f"{url} cannot be written to the disk ({error}): make room, and start again."
        ) from error
    if isinstance(error, InvalidURL) or (
        isinstance(error, ClientResponseError) and error.status not in _BUSY
    ):
        raise TerraFMError(f"{url} cannot be read ({_words(error)}): correct `source`.") from error


def _words(error: Exception) -> str:
    if isinstance(error, ClientResponseError):
        return f"{error.status} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).rstrip(".") or type(error).__name__


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait, given as such or as a date; 0 where it does not."""
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

"""Bytes from servers and object stores: ranges and whole files, within a budget whatever the server does.

fsspec's HTTP client neither tries again nor resumes. The layer here adds what a download of hours promises: an attempt
that fails is made again and continues behind the last byte that came, a server that is busy is left alone as long as
it asks (``Retry-After``), within limits, and a redirect is followed once, not each time. A server is not trusted: no
more is taken from it than was asked for, or than a file of the kind can have; it keeps a least speed, and cannot lead
to other protocols or into the network of the user.
"""

import asyncio
import errno
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import getproxies, proxy_bypass

import aiohttp
import fsspec
from aiohttp import ClientPayloadError, ClientResponse, ClientResponseError
from fsspec.asyn import sync
from yarl import URL

from terrafm_tg.errors import TerraFMError

from .files import atomic_write, write_json
from .trust import check_address

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 20  # most bytes that are read at once
_PIECE = 1 << 24  # bytes of a file in an object store that are asked for at once
_FIRST = 0.5  # seconds before the second attempt
_LONGEST = 60.0  # seconds between two attempts, unless the server asks for more
_ASKED = 300.0  # seconds that a server may ask to wait
_PATIENCE = 1800.0  # seconds without progress, waits and all, after which to give up
_SAID = 5.0  # seconds of waiting from which a line says so; shorter waits are in the log
_SLOWEST = 1000.0  # bytes per second; what comes slower is no progress
_FIRST_CONTACT = 2  # attempts made again where no server ever answered
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)  # of a signed address that was redirected to
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_RESET = re.compile(r"\bt=(\d+)")


class RemoteError(TerraFMError, OSError):
    """A file on a server cannot be read."""


class NotThereError(RemoteError):
    """The server has no such file."""


class ChangedError(RemoteError):
    """The file is another than it was."""


@dataclass
class RemoteReader:
    """Reads files by URL; threads may share it, processes may not.

    An attempt that fails (reset, timeout, 5xx, 429) is made again, each time after twice as long and with jitter.
    ``Retry-After`` holds all threads back. The address that a redirect leads to is remembered until it expires: hosts
    such as Hugging Face count redirects, and sign addresses for some time. Bodies come as they are, never inflated,
    and no more of them is read than was asked for. Passwords and cookies stay with the address that has them. Other
    protocols than HTTP are read as fsspec reads them.

    Args:
        retries: Failures in a row without progress after which to give up.
        timeout: Seconds without a byte, or at less than the least speed, that count as a failure.
        budget: Bytes that may be read in all.
    """

    retries: int = 8
    timeout: float = 60.0
    budget: float = math.inf

    def __post_init__(self) -> None:
        self.came = 0  # bytes
        self.surplus = 0  # answers that were longer than what was asked for, and cut off
        self._redirects: dict[str, URL] = {}
        self._not_before = 0.0
        self._answered = False
        client = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=self.timeout), "auto_decompress": False}
        self._http = fsspec.filesystem("http", skip_instance_cache=True, client_kwargs=client, get_client=_session)

    def describe(self, url: str) -> tuple[int, str]:
        """Returns a file's size and its version (``ETag`` or ``Last-Modified``). Errors as :meth:`read`."""
        if _is_http(url):
            return self._fill(url, BytesIO(), 0, 1) or (0, "")

        def step() -> tuple[int, str]:
            with _as_ours():
                system, path = fsspec.core.url_to_fs(check_address(url))
                return system.size(path), system.ukey(path)

        return self._persist(url, step, lambda: 0)

    def read(self, url: str, start: int, stop: int, said: tuple[int, str] | None = None) -> bytes:
        """Reads the bytes ``[start, stop)`` of a file.

        Args:
            url: Of the file.
            start: First byte.
            stop: Behind the last byte.
            said: Size and version of the whole file, where they are known; an empty version is not.

        Raises:
            NotThereError: If there is no such file.
            RemoteError: If the server cannot be read, ignores ranges, or the file is another than it was.
        """
        body = BytesIO()
        self._fill(url, body, start, stop, said)
        return body.getvalue()

    def save(self, url: str, path: Path, limit: int) -> bool:
        """Downloads a file, unless the one that is there is the server's still, as ``.<name>.json`` remembers.

        Args:
            url: Of the file.
            path: Where it goes.
            limit: Bytes that a file of its kind can have.

        Returns:
            True if the file is new.

        Raises:
            NotThereError: If the server has no such file.
            RemoteError: If it cannot be read, is too large, or changes meanwhile.
        """
        said, note = self.describe(url), path.with_name(f".{path.name}.json")
        if path.is_file() and note.is_file() and json.loads(note.read_text()) == [url, *said]:
            return False
        if said[0] > limit:
            raise RemoteError(
                f"{url} has {said[0] / 1e9:,.3f} GB by its server, expected {limit / 1e9:,.3f} at most: check `source`."
            )
        with atomic_write(path, sole_writer=True) as temporary, temporary.open("wb") as out:
            self._fill(url, out, 0, said[0], said)
        write_json(note, [url, *said])
        return True

    def _fill(
        self, url: str, out: BinaryIO, start: int, stop: int, said: tuple[int, str] | None = None
    ) -> tuple[int, str] | None:
        """Writes bytes of a file to an empty one; returns size and version of the file."""

        async def ask() -> None:
            nonlocal said
            at = start + out.tell()
            async with await self._ask(url, at, stop) as answer:
                said = _check_answer(url, answer, at, said)
                await self._take(url, answer, out, stop - at)

        def step() -> tuple[int, str] | None:
            if _is_http(url):
                sync(self._http.loop, ask)
            else:
                while (at := start + out.tell()) < stop:
                    with _as_ours():
                        system, path = fsspec.core.url_to_fs(check_address(url))
                        body = system.cat_file(path, start=at, end=min(at + _PIECE, stop))
                    if not body:
                        raise ClientPayloadError("the answer ended early")
                    out.write(body[: stop - at])
            return said

        return self._persist(url, step, out.tell)

    async def _ask(self, url: str, start: int, stop: int) -> ClientResponse:
        """Asks for a range, along redirects, and returns the answer without its body."""
        session = await self._http.set_session()
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        target = self._redirects.get(url) or URL(url, encoded=True)
        async with asyncio.timeout(self.timeout):
            for _ in range(_MOST_REDIRECTS + 1):
                proxy = None if proxy_bypass(target.host or "") else getproxies().get(target.scheme)
                answer = await session.get(target, headers=headers, allow_redirects=False, proxy=proxy)
                if answer.status not in _REDIRECTS:
                    break
                answer.close()
                target = await _follow(url, target, answer.headers.get("Location", ""))
            else:
                raise RemoteError(f"{url} redirects more than {_MOST_REDIRECTS} times: give the address it leads to.")
        if answer.status in _EXPIRED and self._redirects.pop(url, None) is not None:
            answer.close()
            raise ConnectionError("the address that it redirects to has expired")
        answer.raise_for_status()
        self._answered = True
        if target != URL(url, encoded=True):
            self._redirects[url] = target
        return answer

    async def _take(self, url: str, answer: ClientResponse, out: BinaryIO, wanted: int) -> None:
        """Writes the bytes wanted of an answer to a file, and not one more."""
        left, window, since = wanted, 0, time.monotonic()
        if self.came + wanted > self.budget:
            raise RemoteError(
                f"{url} needs {wanted:,} bytes more, which `max_gb` {self.budget / 1e9:g} does not allow after "
                f"{self.came:,}: raise it, or choose less."
            )
        self.came += wanted
        try:
            while left:
                if not (chunk := await answer.content.read(min(_CHUNK, left))):
                    raise ClientPayloadError("the answer ended early")
                out.write(chunk)
                left, window = left - len(chunk), window + len(chunk)
                if (lasted := time.monotonic() - since) >= self.timeout:
                    if left and window < _SLOWEST * lasted:
                        raise ConnectionError(f"less than {_SLOWEST:g} bytes a second came")
                    window, since = 0, time.monotonic()
        finally:
            self.came -= left
        if max(answer.content_length or 0, answer.content.total_bytes) > wanted:
            self.surplus += 1
            if self.surplus == 1:
                _logger.warning("%s: its server sends more than was asked for; the rest is cut off.", url)

    def _persist[T](self, url: str, step: Callable[[], T], came: Callable[[], int]) -> T:
        """Calls a function that reads until it succeeds, or nothing comes any more.

        Args:
            url: Of the file.
            step: Called again after a failure that passes.
            came: Bytes that have come; where they came at the least speed, a failure is the first again.
        """
        failures, before, since = 0, came(), time.monotonic()
        while True:
            _rest(url, self._not_before - time.monotonic(), "its server asked to wait")
            try:
                return step()
            except RemoteError:
                raise
            except (aiohttp.ClientError, OSError) as error:  # timeouts are OSErrors
                _check_passing(url, error)
                lasted = time.monotonic() - since
                if came() - before > _SLOWEST * lasted:
                    failures, before, since, lasted = 0, came(), time.monotonic(), 0.0
                failures += 1
                wait = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
                if asked := _retry_after(error):
                    wait = max(wait, min(asked, _ASKED))
                    self._not_before = time.monotonic() + wait
                allowed = self.retries if self._answered else min(self.retries, _FIRST_CONTACT)
                if failures > allowed or lasted + wait > _PATIENCE:
                    raise RemoteError(
                        f"{url} cannot be read after {failures} attempts in {lasted:.0f} s ({_reason(error)}): check "
                        "the network and the address, or try again later."
                    ) from error
                _rest(url, wait, _reason(error))


def shared_reader() -> RemoteReader:
    """The reader of this process for datasets, in which a sample can be replaced: it gives up soon."""
    return _reader_of(os.getpid())


@cache
def _reader_of(process: int) -> RemoteReader:
    """Makes one per process: connections are not inherited."""
    return RemoteReader(retries=2)


async def _session(**settings: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), **settings)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Turns the errors of a library for object stores, each of which has classes of its own, into ones that pass."""
    try:
        yield
    except (OSError, TerraFMError):
        raise
    except ImportError as error:
        raise RemoteError(f"The address cannot be read: {str(error).rstrip('.')}.") from error
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


async def _follow(url: str, target: URL, location: str) -> URL:
    """Returns where a redirect leads to, unless it leaves HTTP, TLS, or the public network."""
    try:
        to = target.join(URL(location, encoded=True))
    except ValueError:  # none at all
        to = URL()
    if to.scheme not in ("http", "https") or not to.host or (target.scheme, to.scheme) == ("https", "http"):
        reason = "only http and https are followed, and https not to http"
    elif await _is_private(to) and not await _is_private(URL(url, encoded=True)):
        reason = "it lies in a private network and the address does not"
    else:
        return to
    raise RemoteError(f"{url} redirects to {location[:200]!r}, which was not opened ({reason}): use another source.")


async def _is_private(url: URL) -> bool:
    """Tells whether a host is this computer or of a network that is not the public one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port)
    except OSError:  # a proxy may know it
        return False
    except UnicodeError:  # no name of a host
        return True
    addresses = [ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    return not all((getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)


def _check_answer(url: str, answer: ClientResponse, at: int, said: tuple[int, str] | None) -> tuple[int, str]:
    """Returns the size and version of a file as an answer says them, if the answer is what was asked for."""
    headers = answer.headers
    if (encoding := headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
        raise RemoteError(
            f"{url} comes compressed ({encoding[:20]}) from its server, which was asked for it as it is: switch that "
            "off there, or use another source."
        )
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if answer.status != 206 or found is None:
        raise RemoteError(
            f"{url} comes from a server that ignores range requests (status {answer.status}), so that single rows "
            "cannot be fetched: use one that has them (nginx, Apache, object stores; Python's http.server has none)."
        )
    first, last, size = map(int, found.groups())
    if first != at or not first <= last < size:
        raise RemoteError(
            f"{url} comes from a server that sent bytes {first:,} to {last:,} of {size:,} when asked for those from "
            f"{at:,} on: use another source."
        )
    version = (headers.get("ETag") or headers.get("Last-Modified") or "").removeprefix("W/")
    if said is not None and (size != said[0] or (version and said[1] and version != said[1])):
        raise ChangedError(
            f"{url} changed on the server ({size:,} bytes, version {version or 'unknown'}; before {said[0]:,} bytes, "
            f"version {said[1] or 'unknown'}): start again, it is then read anew."
        )
    return size, version


def _check_passing(url: str, error: Exception) -> None:
    """Raises for an error that another attempt would not mend."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the disk that it goes to
        raise error
    status = getattr(error, "status", None) if isinstance(error, ClientResponseError) else None
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotThereError(f"{url} does not exist (404): correct the address.") from error
    if isinstance(error, aiohttp.InvalidURL) or status not in (None, *_BUSY):
        raise RemoteError(f"{url} cannot be read ({_reason(error)}): correct the address.") from error


def _rest(url: str, wait: float, reason: str) -> None:
    if wait > 0:
        _logger.log(logging.WARNING if wait >= _SAID else logging.INFO, "%s: %s; waiting %.1f s.", url, reason, wait)
        time.sleep(wait)


def _reason(error: Exception) -> str:
    text = f"{error.status} {error.message}" if isinstance(error, ClientResponseError) else str(error)
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    return "".join(filter(str.isprintable, text))[:200].strip().rstrip(".") or type(error).__name__


def _retry_after(error: Exception) -> float:
    """Reads the seconds that the server asks to wait, as Hugging Face says it or as others do; 0 where it does not."""
    headers: Any = getattr(error, "headers", None) or {}
    if found := _RESET.search(headers.get("RateLimit", "")):
        return float(found[1])
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    date = parsedate_tz(value)
    return max(0.0, mktime_tz(date) - time.time()) if date else 0.0

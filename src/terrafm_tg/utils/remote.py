"""Bytes from servers and object stores: ranges and whole files, within a budget whatever the server does.

fsspec's HTTP client neither tries again nor resumes. The layer here adds what a download of hours promises: an attempt
that fails is made again and continues behind the last byte that came, a server that is busy is left alone as long as
it asks (``Retry-After``), within limits, and a redirect is followed once, not each time. A server is not trusted: no
more is taken from it than was asked for, or than a file of the kind can have; it keeps a least speed, and cannot lead
to other protocols or into the network of the user.
"""

import asyncio
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import getproxies, proxy_bypass

import aiohttp
import fsspec
from aiohttp import ClientPayloadError, ClientResponse
from fsspec.asyn import sync
from yarl import URL

from terrafm_tg.errors import TerraFMError

from . import object_store
from .answers import ChangedError as ChangedError
from .answers import DeniedError as DeniedError
from .answers import NotThereError as NotThereError
from .answers import OverBudgetError as OverBudgetError
from .answers import RemoteError as RemoteError
from .answers import check_answer, check_encoding, check_passing, reason_of, retry_after
from .files import atomic_write, write_json
from .object_store import is_object
from .trust import check_address

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 20  # most bytes that are read at once
_PIECE = 1 << 24  # bytes of a file in an object store that are asked for at once
_FIRST = 0.5  # seconds before the second attempt
_LONGEST = 60.0  # seconds between two attempts, unless the server asks for more
_ASKED = 300.0  # seconds that a server may ask to wait
_ANSWERED = 300.0  # seconds in which a service must have answered
_PATIENCE = 1800.0  # seconds without progress, waits and all, after which to give up
_SAID = 5.0  # seconds of waiting from which a line says so; shorter waits are in the log
_SLOWEST = 1000.0  # bytes per second; what comes slower is no progress
_FIRST_CONTACT = 2  # attempts made again where no server ever answered
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_JSON = {"Accept": "application/geo+json, application/json"}
_EXPIRED = (401, 403, 404, 410)  # of a signed address that was redirected to


#: Errors of one file; others are of the server, or of all that is fetched.
OF_THE_FILE = (NotThereError, DeniedError, ChangedError)


@dataclass
class RemoteReader:
    """Reads files by URL; threads may share it, processes may not.

    An attempt that fails (reset, timeout, 5xx, 429) is made again, each time after twice as long and with jitter.
    ``Retry-After`` holds all threads back. The address that a redirect leads to is remembered until it expires: hosts
    such as Hugging Face count redirects, and sign addresses for some time. Bodies come as they are, never inflated,
    and no more of them is read than was asked for. Passwords and cookies stay with the address that has them. Other
    protocols than HTTP are read as Arrow (``s3``, ``gs``) or fsspec read them.

    Args:
        retries: Failures in a row without progress after which to give up.
        timeout: Seconds without a byte, or at less than the least speed, that count as a failure.
        budget: Bytes that may be read in all.
        sign: Makes of an address the one that is asked, which holds a permission for some time.
    """

    retries: int = 8
    timeout: float = 60.0
    budget: float = math.inf
    sign: Callable[[str], str] = str

    def __post_init__(self) -> None:
        self.came = 0  # bytes
        self.surplus = 0  # answers that were longer than what was asked for, and cut off
        self._redirects: dict[str, URL] = {}
        self._not_before = 0.0
        self._answered = False
        client = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=self.timeout), "auto_decompress": False}
        self._http = fsspec.filesystem("http", skip_instance_cache=True, client_kwargs=client, get_client=_session)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the thread that reads."""
        return self._http.loop

    def describe(self, url: str) -> tuple[int, str]:
        """Returns a file's size and its version (``ETag`` or ``Last-Modified``). Errors as :meth:`read`."""
        if _is_http(url):
            return self._fill(url, BytesIO(), 0, 1) or (0, "")

        def step() -> tuple[int, str]:
            with _as_ours():
                if is_object(url):
                    return object_store.describe_object(url)
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

    def read_head(self, url: str, most: int) -> tuple[bytes, tuple[int, str]]:
        """Reads the first bytes of a file, all of a smaller one, and its size and version. Errors as :meth:`read`."""
        body, said = BytesIO(), None if _is_http(url) else self.describe(url)
        said = self._fill(url, body, 0, min(most, said[0]) if said else most, said) or said or (0, "")
        return body.getvalue(), said

    def fetch(self, url: str, limit: int, post: Any = None) -> bytes:
        """Reads the whole answer of a service, whose size is not known before.

        Args:
            url: Of the service.
            limit: Most bytes.
            post: Sent as JSON, where it is not None.

        Raises:
            NotThereError, RemoteError: As :meth:`read`, and if the answer is larger.
        """

        async def ask() -> bytes:
            body = bytearray()
            async with asyncio.timeout(_ANSWERED), await self._ask(url, url, _JSON, post) as answer:
                check_encoding(url, answer)
                while chunk := await answer.content.read(_CHUNK):
                    body += chunk
                    self.came += len(chunk)
                    if len(body) > limit:
                        raise RemoteError(f"{url} answers with more than {limit:,} bytes: ask for less at once.")
            return bytes(body)

        return self._persist(url, lambda: sync(self._http.loop, ask), lambda: 0)

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

    def upload(self, path: Path, url: str) -> None:
        """Writes a file to an object store, whole or not at all. Errors as :meth:`read`."""

        def step() -> None:
            with _as_ours():
                object_store.upload(path, url)

        self._persist(url, step, lambda: 0)

    def _fill(
        self, url: str, out: BinaryIO, start: int, stop: int, said: tuple[int, str] | None = None
    ) -> tuple[int, str] | None:
        """Writes bytes of a file to an empty one; returns size and version of the file."""
        signed = url

        async def ask() -> None:
            nonlocal said
            at = start + out.tell()
            async with await self._ask(url, signed, {"Range": f"bytes={at}-{stop - 1}"}) as answer:
                said = check_answer(url, answer, at, said)
                await self._take(url, answer, out, min(stop, said[0]) - at)

        def step() -> tuple[int, str] | None:
            nonlocal signed
            if _is_http(url):
                signed = self.sign(url)  # may ask another server, and for a new permission each time
                sync(self._http.loop, ask)
            else:
                while (at := start + out.tell()) < stop:
                    body = _read_piece(url, at, min(at + _PIECE, stop))
                    self.came += len(body)
                    if not body:
                        raise ClientPayloadError("the answer ended early")
                    out.write(body[: stop - at])
            return said

        return self._persist(url, step, out.tell)

    async def _ask(self, url: str, signed: str, headers: dict[str, str], post: Any = None) -> ClientResponse:
        """Asks for a range or a whole, along redirects, and returns the answer without its body."""
        session = await self._http.set_session()
        headers, method = {"Accept-Encoding": "identity", **headers}, "GET" if post is None else "POST"
        target = self._redirects.get(url) or URL(signed, encoded=True)
        async with asyncio.timeout(self.timeout):
            for _ in range(_MOST_REDIRECTS + 1):
                proxy = None if proxy_bypass(target.host or "") else getproxies().get(target.scheme)
                more = {"headers": headers, "json": post, "allow_redirects": False, "proxy": proxy}
                answer = await session.request(method, target, **more)
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
        self._answered = True  # before its body
        if post is None and target != URL(signed, encoded=True):
            self._redirects[url] = target
        return answer

    async def _take(self, url: str, answer: ClientResponse, out: BinaryIO, wanted: int) -> None:
        """Writes the bytes wanted of an answer to a file, and not one more."""
        left, window, since = wanted, 0, time.monotonic()
        if self.came + wanted > self.budget:
            raise OverBudgetError(
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
                result = step()
                self._answered = True
                return result
            except RemoteError:
                raise
            except (aiohttp.ClientError, OSError) as error:  # timeouts are OSErrors
                check_passing(url, error)
                lasted = time.monotonic() - since
                if came() - before > _SLOWEST * lasted:
                    failures, before, since, lasted = 0, came(), time.monotonic(), 0.0
                failures += 1
                wait = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)
                if asked := retry_after(error):
                    wait = max(wait, min(asked, _ASKED))
                    self._not_before = time.monotonic() + wait
                allowed = self.retries if self._answered else min(self.retries, _FIRST_CONTACT)
                if failures > allowed or lasted + wait > _PATIENCE:
                    raise RemoteError(
                        f"{url} cannot be read after {failures} attempts in {lasted:.0f} s ({reason_of(error)}): check "
                        "the network and the address, or try again later."
                    ) from error
                _rest(url, wait, reason_of(error))


def shared_reader() -> RemoteReader:
    """The reader of this process for datasets, in which a sample can be replaced: it gives up soon."""
    return _reader_of(os.getpid())


@cache
def _reader_of(process: int) -> RemoteReader:
    """Makes one per process: connections are not inherited."""
    return RemoteReader(retries=2)


def _read_piece(url: str, start: int, stop: int) -> bytes:
    with _as_ours():
        if is_object(url):
            return object_store.read_range(url, start, stop)
        system, path = fsspec.core.url_to_fs(check_address(url))
        return system.cat_file(path, start=start, end=stop)


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


def leads_inside(reader: RemoteReader, url: str, origin: str) -> bool:
    """Tells whether an address lies in a private network and the one that led to it does not."""

    async def look_up() -> bool:
        return await _is_private(URL(url, encoded=True)) and not await _is_private(URL(origin, encoded=True))

    return _is_http(url) and bool(sync(reader.loop, look_up))


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


def _rest(url: str, wait: float, reason: str) -> None:
    if wait > 0:
        _logger.log(logging.WARNING if wait >= _SAID else logging.INFO, "%s: %s; waiting %.1f s.", url, reason, wait)
        time.sleep(wait)

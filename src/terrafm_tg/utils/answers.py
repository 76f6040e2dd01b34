"""Answers of servers: whether they are what was asked for, a failure passes, and how long to wait."""

import errno
import re
import time
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Self

import aiohttp
from aiohttp import ClientResponse, ClientResponseError

from terrafm_tg.errors import TerraFMError

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_REFUSED = re.compile("ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH")  # by Amazon's protocol
_RESET = re.compile(r"\bt=(\d+)")


class RemoteError(TerraFMError, OSError):
    """A file on a server cannot be read."""

    def __new__(cls, *args: object) -> Self:
        """Makes one; ValueError's way, which comes first, does not fit, and unpickling with a traceback calls it."""
        return OSError.__new__(cls, *args)


class NotThereError(RemoteError):
    """The server has no such file."""


class DeniedError(RemoteError):
    """The server does not give the file."""


class OverBudgetError(RemoteError):
    """More was to be fetched than the user allows."""


class ChangedError(RemoteError):
    """The file is another than it was."""


def check_encoding(url: str, answer: ClientResponse) -> None:
    """Refuses an answer that is compressed: a few bytes could become many."""
    if (encoding := answer.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
        raise RemoteError(
            f"{url} comes compressed ({encoding[:20]}) from its server, which was asked for it as it is: switch that "
            "off there, or use another source."
        )


def check_answer(url: str, answer: ClientResponse, at: int, said: tuple[int, str] | None) -> tuple[int, str]:
    """Returns the size and version of a file as an answer says them, if the answer is what was asked for."""
    check_encoding(url, answer)
    headers = answer.headers
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


def check_passing(url: str, error: Exception) -> None:
    """Raises for an error that another attempt would not mend."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the disk that it goes to
        raise error
    status = getattr(error, "status", None) if isinstance(error, ClientResponseError) else None
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotThereError(f"{url} does not exist (404): correct the address.") from error
    if isinstance(error, aiohttp.InvalidURL) or status not in (None, *_BUSY) or _REFUSED.search(str(error)):
        raise DeniedError(f"{url} cannot be read ({reason_of(error)}): correct the address.") from error


def reason_of(error: Exception) -> str:
    """Returns why an attempt failed, in a few words that hold nothing but what can be printed."""
    text = f"{error.status} {error.message}" if isinstance(error, ClientResponseError) else str(error)
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    return "".join(filter(str.isprintable, text))[:200].strip().rstrip(".") or type(error).__name__


def retry_after(error: Exception) -> float:
    """Reads the seconds that the server asks to wait, as Hugging Face says it or as others do; 0 where it does not."""
    headers: Any = getattr(error, "headers", None) or {}
    if found := _RESET.search(headers.get("RateLimit", "")):
        return float(found[1])
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    date = parsedate_tz(value)
    return max(0.0, mktime_tz(date) - time.time()) if date else 0.0

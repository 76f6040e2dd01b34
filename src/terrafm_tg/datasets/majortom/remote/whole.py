"""Whole files from a server: resumed where they were cut off, checked by size, fetched anew only when they changed."""

import json
from pathlib import Path
from typing import Any

from aiohttp import ClientPayloadError, ClientResponse

from terrafm_tg.utils.files import settle, whole_file

from .http import CHUNK, Http


def save_file(http: Http, url: str, path: Path) -> bool:
    """Download a file, unless the one that is there is the server's still.

    What came before an interruption lies in ``.<name>.part`` and is continued if the server has the same version still
    (``If-Range``). ``.<name>.json`` remembers the address, the version (``ETag`` or ``Last-Modified``) and the size.

    Args:
        http: Reads it.
        url: Of the file.
        path: Where to put it.

    Returns:
        Whether the file is new.

    Raises:
        NotThereError: If the server has no such file.
        TerraFMError: If it cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def step() -> bool:
        with http.get(url, _conditions(url, path, part)) as (file, answer):
            if answer.status == 304:
                return False
            if answer.status != 206:
                part.unlink(missing_ok=True)
            size = _note(part, url, answer)
            with part.open("ab") as out:
                while chunk := file.read(CHUNK):
                    http.count(received=len(chunk))
                    out.write(chunk)
        if size not in (None, part.stat().st_size):
            part.unlink()
            raise ClientPayloadError("the file has another size than the server said")
        return _finish(part, path)

    return http.persist(url, step, lambda: part.stat().st_size if part.is_file() else 0)


def _conditions(url: str, path: Path, part: Path) -> dict[str, str]:
    """Headers that ask for the rest of what was begun, or for a version other than the one at hand."""
    begun, held = _stamp(part), _stamp(path)
    if begun and begun["url"] == url and begun["version"] and part.stat().st_size < (begun["size"] or 0):
        return {"Range": f"bytes={part.stat().st_size}-", "If-Range": begun["version"]}
    if held and held["url"] == url and held["version"] and held["size"] in (None, path.stat().st_size):
        return {"If-None-Match" if '"' in held["version"] else "If-Modified-Since": held["version"]}
    return {}


def _note(part: Path, url: str, answer: ClientResponse) -> int | None:
    """Write down what version a part is of, and return the size of the whole where it is known."""
    of = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get(
        "Content-Length", ""
    )
    size = int(of) if of.isdecimal() else None
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    with whole_file(_stamp_of(part)) as beside:
        beside.write_text(json.dumps({"url": url, "version": version, "size": size}))
    return size


def _finish(part: Path, path: Path) -> bool:
    settle(part, path)
    settle(_stamp_of(part), _stamp_of(path))
    return True


def _stamp_of(path: Path) -> Path:
    return path.with_name(f".{path.name.strip('.')}.json")


def _stamp(path: Path) -> dict[str, Any] | None:
    """What is written down about a file that is there."""
    stamp = _stamp_of(path)
    return json.loads(stamp.read_text()) if path.is_file() and stamp.is_file() else None

"""A server that means harm: the budget is kept, memory is bounded, every wait is said, and so is what is wrong."""

import asyncio
import logging
import re
import resource
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from yarl import URL

from datasets.range_server import RangeServer
from datasets.tiny_files import product
from processes import start
from refusals import refused
from terrafm_tg.datasets.majortom.download import Selection, download
from terrafm_tg.datasets.majortom.part_files import RemotePart
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils import remote
from terrafm_tg.utils.parquet import check_pages
from terrafm_tg.utils.remote import RemoteReader

MB, GB = 1 << 20, 1 << 30
BLOCK = bytes(1 << 16)


class HostileServer(socketserver.ThreadingTCPServer):
    """Sends the pieces that ``answer(number, first, last)`` yields until they end or the client goes away."""

    daemon_threads = True
    answer: Callable[[int, int, int], Iterator[bytes]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


class _Handler(socketserver.StreamRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        request = b"".join(iter(self.rfile.readline, b"\r\n")).decode()
        number, _ = len(self.server.requests), self.server.requests.append(request)
        first, last = map(int, re.search(r"bytes=(\d+)-(\d+)", request).groups())
        for piece in self.server.answer(number, first, last):
            self.request.sendall(piece)
            self.server.sent += len(piece)


def peak() -> int:
    """The most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def head(status: str = "206 Partial Content", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def ranged(first: int, last: int, size: int, **headers: object) -> bytes:
    return head(Content_Range=f"bytes {first}-{last}/{size}", **headers)


BUSY, FOUND, CUT = "429 Too Many Requests", "302 Found", b"HTTP/1.1 206 Partial Content\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: Head of the answer to request n for the bytes from a to b, and what is said of it.
KINDS = {
    "endless": (lambda n, a, b: ranged(a, b, 10 * GB), None),
    "inflating": (lambda n, a, b: ranged(a, b, GB, Content_Encoding="br"), r"comes compressed \(br\)"),
    "huge": (lambda n, a, b: ranged(a, b, 4000 * GB) + b"x", r"has 4,294\.967 GB by its server, expected 0\.0"),
    "footer": (lambda n, a, b: ranged(a, b, 9 * GB) + b"\xff\xff\xff\xffPAR1"[: b - a + 1], "is no Parquet file"),
    "trickling": (lambda n, a, b: ranged(a, b, GB), "after 4 attempts .*less than 1000 bytes a second came"),
    "slow headers": (lambda n, a, b: CUT + b"X: ", "after 3 attempts .*no answer in time"),
    "continuing": (lambda n, a, b: CONTINUE * 99, "after 3 attempts .*no answer in time"),
    "endless headers": (lambda n, a, b: CUT, r"cannot be read \(400 "),
    "busy": (lambda n, a, b: head(BUSY, Retry_After=9999), "after 2 attempts .*429 Too Many Requests"),
    "busy until 2096": (lambda n, a, b: head(BUSY, Retry_After=formatdate(4e9, usegmt=True)), "after 2 attempts .*429"),
    "busy as others say": (lambda n, a, b: head(BUSY, RateLimit='"api";r=0;t=99999'), "after 2 attempts .*429"),
    "elsewhere": (lambda n, a, b: ranged(a + 5, b + 5, GB), "sent bytes 5 to 1,004 of 1,073,741,824 when asked"),
    "whole": (lambda n, a, b: head("200 OK", Content_Length=10 * GB), r"ignores range requests \(status 200\)"),
    "short": (lambda n, a, b: ranged(a, b, GB, Content_Length=1000) + b"x", "after 4 attempts "),
    "to a file": (lambda n, a, b: head(FOUND, Location="file:///etc/passwd"), "redirects to 'file:///etc/passwd'"),
    "to nowhere": (lambda n, a, b: head(FOUND, Location="http://[x"), r"redirects to 'http://\[x', which was not"),
    "to and fro": (lambda n, a, b: head(FOUND, Location=f"/{n}"), "redirects more than 5 times"),
    "to a network": (lambda n, a, b: head(FOUND, Location="http://10.0.0.1/x"), "it lies in a private network"),
    "other version": (lambda n, a, b: ranged(a, b, GB, ETag=n, Content_Length=9) + b"x", "version 1; before .* 0"),
    "other size": (lambda n, a, b: ranged(a, b, GB + n, Content_Length=9) + b"x", r"changed .*\(1,073,741,825 bytes"),
    "missing": (lambda n, a, b: head("404 Not Found"), "does not exist"),
}  # fmt: skip


def pieces(kind: str, number: int, first: int, last: int) -> Iterator[bytes]:
    yield KINDS[kind][0](number, first, last)
    drops = {"trickling": b"x", "slow headers": b"x", "continuing": CONTINUE}
    while kind in drops:
        yield drops[kind]
        time.sleep(0.02)
    if kind == "endless headers":
        yield from (b"X-%d: 1\r\n" % i for i in range(GB))
    if kind not in ("huge", "short", "other version", "other size", "footer"):
        yield from repeat(BLOCK)


def act(kind: str, url: str, folder: Path) -> object:
    reader = RemoteReader(retries=3, timeout=0.4)
    if kind == "footer":
        return RemotePart(reader, url)
    return reader.save(url, folder / "new", MB) if kind == "huge" else reader.read(url, 0, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_no_more_than_was_asked_for(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, patience = KINDS[kind][1], 0.5 if "busy" in kind else 9.0
    for name, value in {"_FIRST": 0.02, "_ASKED": 0.3, "_PATIENCE": patience, "_SAID": 0.2}.items():
        monkeypatch.setattr(remote, name, value)
    if kind == "to a network":
        monkeypatch.setattr(remote, "_is_private", lambda url: asyncio.sleep(0, result=url.host != "127.0.0.1"))
    slept, before, begin = list[float](), peak(), time.monotonic()
    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda s: (slept.append(s), time.sleep(s)))
    monkeypatch.setattr(remote, "time", clock)
    with HostileServer() as server, caplog.at_level(logging.INFO, "terrafm_tg"):
        server.answer = partial(pieces, kind)
        url = f"{server.url}/file"
        if said is None:
            assert act(kind, url, tmp_path) == bytes(1000)
            assert "sends more than was asked for; the rest is cut off" in caplog.text
        else:
            with refused(match=said) as error:
                act(kind, url, tmp_path)
            assert str(error.value).startswith(url)
            assert len(re.findall(r"\.(?:\s|$)", str(error.value))) == 1
        server.shutdown()
    assert time.monotonic() - begin < 8
    assert server.sent < 16 * MB * max(1, len(server.requests))  # what lay in buffers of the connection
    assert peak() - before < 200 * MB
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
    lines = [record.levelno for record in caplog.records if "; waiting 0." in record.getMessage()]
    assert lines == [logging.WARNING if seconds >= 0.2 else logging.INFO for seconds in slept]


def test_a_download_keeps_its_budget(tmp_path: Path) -> None:
    with HostileServer() as server:
        server.answer = lambda number, first, last: iter((ranged(first, last, GB), *repeat(BLOCK, 1000)))
        with refused(match=r"metadata\.parquet needs 1,073,741,824 bytes more, which `max_gb` 0\.001 does not allow"):
            download(tmp_path, Selection(modalities="s2l2a"), server.url, max_gb=0.001, progress=False)
        server.shutdown()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1000


def test_credentials_stay_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with HostileServer() as first, HostileServer() as second:
        first.answer = lambda number, *range: iter([head("302 Found", Location=f"{second.url}/file")])
        second.answer = lambda number, first, last: iter((ranged(first, last, GB, Set_Cookie="a=b"), b"1234"))
        reader = RemoteReader()
        assert [reader.read(first.url.replace("//", "//me:word@"), 0, 4) for _ in range(2)] == [b"1234"] * 2
        assert [len(first.requests), len(second.requests)] == [1, 2]
        assert "Authorization: Basic" in first.requests[0]
        assert not re.search("(?i)authorization|cookie", "".join(second.requests))
        for server in (first, second):
            server.shutdown()
    with refused(match="redirects to 'http://b/', which was not opened"):
        asyncio.run(remote._follow("https://a/", URL("https://a/"), "http://b/"))


def test_a_few_bytes_never_become_many(tmp_path: Path) -> None:
    """Pages that decode to more than a cell has, that contradict the footer, and a footer of a million nothings."""
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"B01": [bytes(40 * MB), b"x"]}), path, 1, use_dictionary=False, compression="zstd")
    assert path.stat().st_size < 16_000
    column, data = pq.read_metadata(path).row_group(0).column(0), path.read_bytes()
    check_pages(lambda a, b: data[a:b], column)
    names = ("data_page_offset", "dictionary_page_offset", "total_compressed_size", "path_in_schema", "num_values")
    less = SimpleNamespace(**{name: getattr(column, name) for name in names}, total_uncompressed_size=MB)
    with pytest.raises(ValueError, match=r"the pages of B01 need 41,943,0\d\d bytes for 1 values, expected 1,048,576"):
        check_pages(lambda a, b: data[a:b], less)
    less.num_values = 2
    with pytest.raises(ValueError, match=r"for 1 values, expected 1,048,576 at most for 2"):
        check_pages(lambda a, b: data[a:b], less)
    for damaged in (data[:13], b"\x1c" * 9999, bytes(7)):
        with pytest.raises(ValueError, match="the pages of B01 are not as its footer says"):
            check_pages(lambda a, b, damaged=damaged: damaged[a:b], less)
    nothings = b"\x15\x04\x19\x1c\x48\x01a\0\x16\x02\x19\x1c\x19\xfc" + b"\xa0\xf7\x36" + bytes(1000)
    (tmp_path / "bomb").write_bytes(bytes(12) + nothings + len(nothings).to_bytes(4, "little") + b"PAR1")
    before = peak()
    with RangeServer(tmp_path) as server:
        with refused(match=r"declares 41,943,\d+ bytes in row group 0, expected 33,554,432 at most"):
            RemotePart(RemoteReader(), f"{server.url}/part.parquet").read_row_group(0, ["B01"])
        with refused(match=r"The footer of .*/bomb is damaged .*size limit"):
            RemotePart(RemoteReader(), f"{server.url}/bomb")
    assert peak() - before < 100 * MB


def footer(size: int) -> bytes:
    """One of so many bytes, whose row groups hold nothing but as many columns as fit."""
    number = lambda n: bytes([n & 127 | 128, n >> 7 & 127 | 128, n >> 14])  # noqa: E731
    group = b"\x19\xfc" + number(9999) + b"\x26\0\0" * 9999 + b"\x16\0\x16\x02\0"
    count = size // len(group)
    return b"\x15\x04\x19\x1c\x48\x01a\0\x16\x02\x19\xfc" + number(count) + group * count + b"\0"


@pytest.mark.soak
def test_sixteen_connections_share_one_gigabyte(tmp_path: Path) -> None:
    """Rows as large as any, and footers that are large in memory, on all connections at the same time."""
    cells = [f"520U_{93 + i}R" for i in range(16)]
    rows = [product("s2l2a", cell)["metadata"] | {"parquet_row": 0} for cell in cells]
    (tmp_path / "source/Core-S2L2A/images").mkdir(parents=True)
    parts = [tmp_path / f"source/Core-S2L2A/images/part_{i:05}.parquet" for i in range(16)]
    table = pd.DataFrame(rows).assign(parquet_url=[f"https://h/images/{path.name}" for path in parts])
    table.to_parquet(tmp_path / "source/Core-S2L2A/metadata.parquet")
    bands = {name: [bytes(31 * MB // 12)] for name in get_modality("s2l2a").bands}
    large = pa.table({"grid_cell": ["elsewhere"], "product_id": ["x"]} | bands)
    pq.write_table(large, parts[0], compression="none", use_dictionary=False, write_statistics=False)
    for path in parts[1:]:
        path.hardlink_to(parts[0])
    told, seen, address = Selection(modalities="s2l2a"), [], tmp_path / "address"
    server = start(serve, tmp_path / "source", address)
    while not address.is_file() or not address.read_text():
        time.sleep(0.05)
    for kind, said in (("rows", "holds cell elsewhere"), ("footers", "it has 689,931 column chunks")):
        if kind == "footers":
            bomb = footer((2 << 20) - 99)
            parts[0].write_bytes(b"PAR1" + bomb + len(bomb).to_bytes(4, "little") + b"PAR1")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present memory again
        before = peak_now()
        with refused(match=said):
            download(tmp_path / kind, told, address.read_text(), connections=16, max_damaged=0.9, progress=False)
        seen.append((kind, (peak_now() - before) // MB))
    server.kill()
    assert max(size for _, size in seen) < 900, seen  # some 700 and 550


def serve(folder: Path, address: Path) -> None:
    """A server in a process of its own, whose memory is another matter."""
    with RangeServer(folder, chunk=MB) as server:
        address.write_text(server.url)
        time.sleep(600)


def peak_now() -> int:
    """The most memory that this process had since the peak was set back, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

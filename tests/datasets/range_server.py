"""A real HTTP server with ranges that counts what it sends, and fails in the ways that servers fail."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote
from uuid import uuid4


@dataclass
class Sent:
    """One answer: bytes ``[start, start + sent)`` of a file went out."""

    path: str
    status: int
    start: int = 0
    sent: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Args:
        status: Answer with that, and ``headers``.
        cut: Reset the connection after so many bytes of the body.
        stall: Seconds of silence before the answer.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None
    stall: float = 0.0


class RangeServer(ThreadingHTTPServer):
    """Serves a folder on a free port; a context manager.

    Args:
        folder: What is served.
        fault: Called with the path and the number of earlier requests for it; a Fault, or None if all is well.
        ranges: Honour ``Range``.
        signed: Redirect to an address that holds a token, which is valid for so many requests.
        chunk: Bytes that are written at once.
        pause: Seconds between chunks.
    """

    daemon_threads = True
    request_queue_size = 128
    handler: type[BaseHTTPRequestHandler]

    def __init__(
        self,
        folder: Path,
        fault: Callable[[str, int], Fault | None] = lambda path, number: None,
        ranges: bool = True,
        signed: int = 0,
        chunk: int = 1 << 16,
        pause: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.folder, self.fault, self.ranges, self.signed = folder, fault, ranges, signed
        self.chunk, self.pause = chunk, pause
        self.log: list[Sent] = []
        self.seen: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.written: list[str] = []
        self.connections = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request, client_address) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""

    def sent(self, part: str = "") -> int:
        """Bytes of bodies of files whose path holds a word."""
        return sum(answer.sent for answer in self.log if part in answer.path)

    def forget(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self.log.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_GET(self) -> None:
        server = self.server
        path, _, token = self.path.partition("?token=")
        answer = Sent(path, 200, headers=dict(self.headers))
        with server.lock:
            server.log.append(answer)
            number = server.seen[path] = server.seen.get(path, -1) + 1
        fault = server.fault(path, number) or Fault()
        time.sleep(fault.stall)
        if fault.status is not None:
            return self._head(answer, fault.status, dict(fault.headers), 0)
        if server.signed and not token:
            token = f"{number}"
            server.tokens[token] = server.signed
            return self._head(answer, 302, {"Location": f"{path}?token={token}"}, 0)
        if token:
            server.tokens[token] -= 1
            if server.tokens[token] < 0:
                return self._head(answer, 403, {}, 0)
        file = server.folder / path.lstrip("/")
        if not file.is_file():
            return self._head(answer, 404, {}, 0)
        self._body(answer, file, fault.cut)

    def _head(self, answer: Sent, status: int, headers: dict[str, str], length: int) -> None:
        answer.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, answer: Sent, file: Path, cut: int | None) -> None:
        size, version = file.stat().st_size, f'"{file.stat().st_mtime_ns:x}-{file.stat().st_size:x}"'
        start, stop, status, headers = 0, size, 200, {"ETag": version}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            start, stop = int(wanted[1]), min(size, int(wanted[2]) + 1)
            if start >= size:
                return self._head(answer, 416, {"Content-Range": f"bytes */{size}"}, 0)
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        answer.start = start
        self._head(answer, status, headers, stop - start)
        end = stop if cut is None else min(stop, start + cut)
        with file.open("rb") as content:
            content.seek(start)
            if start < end and not self.server.pause:
                self.wfile.flush()
                answer.sent += self.connection.sendfile(content, start, end - start)
                start = end
            while start < end:
                chunk = content.read(min(self.server.chunk, end - start))
                self.wfile.write(chunk)
                start += len(chunk)
                answer.sent += len(chunk)
                time.sleep(self.server.pause)
        if end < stop:  # a reset, not an orderly end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


RangeServer.handler = _Handler


class ObjectServer(RangeServer):
    """Speaks as much of Amazon's protocol as reading, writing and listing objects takes; a bucket is a folder."""


class _ObjectHandler(_Handler):
    def _parse(self) -> tuple[Path, dict[str, str]]:
        path, _, query = self.path.partition("?")
        return self.server.folder / unquote(path).lstrip("/"), dict(parse_qsl(query, keep_blank_values=True))

    def _reply(self, body: str = "", status: int = 200, **headers: str) -> None:
        self._head(Sent(self.path, status), status, {"Content-Length": str(len(body)), **headers}, 0)
        self.wfile.write(body.encode())

    def _fails(self) -> bool:
        """Tells whether the server is to fail, as it then has."""
        if fault := self.server.fault(self.path, 0):
            time.sleep(fault.stall)
            if fault.status is not None:
                self.close_connection = True
                self._reply("", fault.status, Connection="close")
        return fault is not None and fault.status is not None

    def do_HEAD(self) -> None:
        file, _ = self._parse()
        if self._fails():
            return
        if not file.exists():
            return self._reply(status=404)
        length = str(file.stat().st_size if file.is_file() else 0)
        self._head(
            Sent(self.path, 200),
            200,
            {"Content-Length": length, "Last-Modified": formatdate(file.stat().st_mtime, usegmt=True)},
            0,
        )

    def do_GET(self) -> None:
        _, query = self._parse()
        if "list-type" not in query:
            return super().do_GET()
        if self._fails():
            return None
        bucket = self.server.folder / self.path.lstrip("/").partition("?")[0].partition("/")[0]
        names = sorted(path.relative_to(bucket).as_posix() for path in bucket.rglob("*") if path.is_file())
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{(bucket / name).stat().st_size}</Size>"
            "<LastModified>2026-12-01T00:00:00.000Z</LastModified></Contents>"
            for name in names if name.startswith(query.get("prefix", ""))
        )  # fmt: skip
        return self._reply(
            f"<ListBucketResult><KeyCount>{found.count('<Key>')}</KeyCount><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        )

    def _take(self) -> bytes:
        """The body, in whatever form the client sends it."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            plain, rest = b"", body
            while size := int((head := rest.partition(b"\r\n"))[0].split(b";")[0], 16):
                plain, rest = plain + head[2][:size], head[2][size + 2 :]
            body = plain
        return body

    def do_PUT(self) -> None:
        file, query = self._parse()
        body = self._take()
        if self._fails():
            return
        if self.path.endswith("/") or "/" not in self.path.strip("/"):  # what stands for a folder, or a bucket
            file.mkdir(parents=True, exist_ok=True)
        elif "uploadId" in query:
            self.server.parts.setdefault(query["uploadId"], {})[int(query["partNumber"])] = body
        else:
            self._write(file, body)
        self._reply(ETag='"1"')

    def _write(self, file: Path, body: bytes) -> None:
        self.server.written.append(file.relative_to(self.server.folder).as_posix())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(f"{file.name}.part").write_bytes(body)
        file.with_name(f"{file.name}.part").replace(file)

    def do_POST(self) -> None:
        file, query = self._parse()
        body = self._take()
        if self._fails():
            return
        if "uploads" in query:
            return self._reply(
                f"<InitiateMultipartUploadResult><UploadId>{uuid4().hex}</UploadId></InitiateMultipartUploadResult>"
            )
        if "delete" in query:
            for key in re.findall(rb"<Key>(.*?)</Key>", body):
                (file / key.decode()).unlink(missing_ok=True)
            return self._reply("<DeleteResult></DeleteResult>")
        parts = self.server.parts.pop(query["uploadId"], {})
        self._write(file, b"".join(parts[number] for number in sorted(parts)))
        return self._reply("<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        file, query = self._parse()
        if self._fails():
            return
        if "uploadId" not in query:
            file.unlink(missing_ok=True)
        self._reply(status=204)


ObjectServer.handler = _ObjectHandler

"""A real HTTP server with ranges that counts what it sends, and fails in the ways that servers fail."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self


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

    def __init__(
        self,
        folder: Path,
        fault: Callable[[str, int], Fault | None] = lambda path, number: None,
        ranges: bool = True,
        signed: int = 0,
        chunk: int = 1 << 16,
        pause: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fault, self.ranges, self.signed = folder, fault, ranges, signed
        self.chunk, self.pause = chunk, pause
        self.log: list[Sent] = []
        self.seen: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
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

"""A local HTTP server of a folder that answers range requests and counts them, in a process of its own."""

import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path


@dataclass
class Served:
    """A running server.

    Args:
        url: Of the folder.
        requests: Answered so far.
        bytes: Sent so far, without headers.
    """

    url: str
    requests: Synchronized
    bytes: Synchronized


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve a folder until the context is left."""
    context = multiprocessing.get_context("spawn")
    counters = context.Value("q"), context.Value("q")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(folder, there, *counters), daemon=True)
    process.start()
    try:
        yield Served(f"http://127.0.0.1:{here.recv()}", *counters)
    finally:
        process.terminate()
        process.join()


def _run(folder: Path, pipe: Connection, requests: Synchronized, sent: Synchronized) -> None:
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = Path(self.translate_path(self.path))
            with requests.get_lock():
                requests.value += 1
            if not path.is_file():
                self.send_error(404)
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            first, last = asked.groups() if asked else ("0", "")
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if body:
                with path.open("rb") as file, sent.get_lock():
                    file.seek(start)
                    sent.value += self.wfile.write(file.read(stop - start)) or 0

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(folder)))
    pipe.send(server.server_port)
    server.serve_forever()

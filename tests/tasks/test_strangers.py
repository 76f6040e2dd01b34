"""Strangers who talk to the ports of a run: they are ignored."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from stopped_runs import Run

ODD = [b"\n", b"[1]\n", b"3\n", b"\xff\xfe\n", b'{"token": 3}\n', b"[" * 100_000, b"x" * 200_000, b"null\n", bytes(99)]
ODD += [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]


def ports(pid: int) -> set[int]:
    """The ports at which a process listens."""
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it has just been closed
            held.add(os.readlink(link))
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in held}


def test_odd_messages_to_the_ports_of_a_run_are_ignored(tmp_path: Path, small_world: Path) -> None:
    run = Run(tmp_path, small_world)
    run.wait_for_step(2)
    found = set.union(*(ports(process.pid) for process in run.ranks))
    assert found
    for port in found:
        for message in ODD:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(message)
    assert run.end() == [0, 0], run.log()
    assert "Traceback" not in run.log()
    assert [[*run.losses(rank)] for rank in (0, 1)] == [[*range(1, 13)]] * 2
    assert run.left() == []

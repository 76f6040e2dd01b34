"""A small process beside each rank of a run, by which all learn within moments that one of them has ended.

:class:`RankWatch` starts this file as a script, without the package. It is a process and not a thread of the rank,
since a rank that waits for another in a collective may hold Python's lock, so that no thread of it runs (DDP does so
in its second step); and it outlives its rank, to say that it has died.

The guards of all ranks keep a connection to that of rank 0, which passes on what it learns. A machine that hangs falls
silent. Who ends as intended says so first.
"""

import asyncio
import hmac
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

#: Seconds that a rank has, when another reports an error, to meet that error itself and report it in full.
GRACE = 2.0
_LAST_WORDS = 0.5  # seconds in which what was sent reaches the others before a process ends
_LOOK = 0.2  # seconds between two looks whether the rank lives, where the system does not tell


class Place(NamedTuple):
    """The place where a rank runs: its number, those of its machine and within that, and the machine's name."""

    rank: int
    node: int
    local: int
    host: str


class Guard:
    """The guard of one rank.

    Its input are lines of JSON: the settings below, then ``{"state": {"step": ..., "path": ...}}`` as they change, and
    at the end ``{"bye": true}`` or ``{"error": text}``. When the rank has to stop it prints the sentence, on one rank
    of each machine, writes a line to its output, and kills the rank if that does not end by itself.

    Args:
        pid: The rank's process.
        place: Where it runs.
        first: Where rank 0 runs.
        ranks: Number of ranks.
        address: Host and port of rank 0's guard.
        listener: File descriptor of that port, None elsewhere.
        token: A secret that the ranks share; a connection without it is dropped.
        interval: Seconds between two signs of life.
        silence: Seconds without any after which a machine counts as gone.
    """

    def __init__(
        self,
        pid: int,
        place: list[Any],
        first: list[Any],
        ranks: int,
        address: list[Any],
        listener: int | None,
        token: str,
        interval: float,
        silence: float,
    ) -> None:
        self.pid, self.place, self.first, self.ranks = pid, Place(*place), Place(*first), ranks
        self.host, self.port = address
        self.listener, self.token = listener, token
        self.interval, self.silence = interval, silence
        self.state: dict[str, Any] = {"step": 0, "path": None}
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._over = asyncio.Event()
        self._told = self._leaving = False

    async def run(self, orders: asyncio.StreamReader) -> None:
        """Watches until the rank, or the run, ends."""
        tasks = [self._obey(orders), self._see_off(), self._beat(), self._meet()]
        running = [asyncio.create_task(task) for task in tasks]
        await self._over.wait()
        for writer in self._peers.values():
            with suppress(OSError):  # it has gone, or hangs
                await asyncio.wait_for(writer.drain(), self.interval)
            writer.close()
        await asyncio.sleep(_LAST_WORDS)
        for task in running:
            task.cancel()

    async def _obey(self, orders: asyncio.StreamReader) -> None:
        """Takes what the rank says; its end without a word is seen elsewhere."""
        while line := await orders.readline():
            order = json.loads(line)
            self.state |= order.get("state", {})
            self._leaving = "error" in order or "bye" in order
            if "error" in order:
                how = f"stopped at {datetime.now():%H:%M:%S} with an error ({order['error']})"
                await self._tell(self.place, how, GRACE)
            if "bye" in order and not self._told:
                self._told = True
                self._send_all(bye=True)
                self._over.set()

    async def _see_off(self) -> None:
        """Waits until the rank has ended."""
        ended = asyncio.Event()
        try:
            asyncio.get_running_loop().add_reader(os.pidfd_open(self.pid), ended.set)
        except ProcessLookupError:
            ended.set()
        except (AttributeError, OSError):  # another system than Linux
            while os.getppid() == self.pid:
                await asyncio.sleep(_LOOK)
            ended.set()
        await ended.wait()
        await self._tell(self.place, f"died at {datetime.now():%H:%M:%S}")

    async def _meet(self) -> None:
        if self.listener is None:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                return  # rank 0 misses this one, and says so
            self._peers[0] = writer
            self._send(writer, token=self.token, place=self.place)
            await self._watch(reader, self.first)
            return
        await asyncio.start_server(self._attend, sock=socket.socket(fileno=self.listener))
        await asyncio.sleep(self.silence)
        missing = [str(rank) for rank in range(1, self.ranks) if rank not in self._peers]
        if missing:
            print(
                f"terrafm: warning: rank {', '.join(missing)} did not reach {self.host}, port {self.port}, and is not "
                "watched: if it dies, the others wait for it.",
                file=sys.stderr,
            )

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One other rank, on rank 0."""
        try:
            hello = await self._receive(reader) or {}
        except TimeoutError:
            hello = {}
        if hmac.compare_digest(str(hello.get("token")), self.token):
            place = Place(*hello["place"])
            self._peers[place.rank] = writer
            await self._watch(reader, place)
        writer.close()

    async def _watch(self, reader: asyncio.StreamReader, place: Place) -> None:
        """Returns when that rank, or one of which it tells, has ended."""
        while not self._told:
            try:
                message = await self._receive(reader)
            except TimeoutError:
                since = datetime.now() - timedelta(seconds=self.silence)
                return await self._tell(place, f"has been silent since {since:%H:%M:%S}")
            if message is None:
                return await self._tell(place, f"was lost at {datetime.now():%H:%M:%S}")
            if "ended" in message:
                return await self._tell(Place(*message["ended"]), message["how"], message["grace"])
            if "bye" in message:
                if place.rank == 0:  # nobody is left to watch
                    self._told = True
                    self._over.set()
                return None

    async def _tell(self, place: Place, how: str, grace: float = 0.0) -> None:
        """Passes on which rank has ended, and stops the one of this guard."""
        if self._told:
            return
        self._told = True
        self._send_all(ended=place, how=how, grace=grace)
        await asyncio.sleep(grace)
        if place != self.place and not self._leaving and _lives(self.pid):
            speaker = 1 if (place.node, place.local) == (self.place.node, 0) else 0
            if self.place.local == speaker:
                print(f"terrafm: error: {self._sentence(place, how)}", file=sys.stderr, flush=True)
            print("stop", flush=True)
            await asyncio.sleep(GRACE)
            if _lives(self.pid):
                os.kill(self.pid, signal.SIGKILL)
        self._over.set()

    def _sentence(self, place: Place, how: str) -> str:
        step, path = self.state["step"], self.state["path"]
        what = f"Rank {place.rank} of {self.ranks} on {place.host} {how}, and the others stop at step {step}"
        if path is None:
            return f"{what}: no checkpoint had been written yet, so start again."
        return f"{what}: resume with the same command and --ckpt_path {path}, on any number of processes."

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            self._send_all(beat=True)

    def _send_all(self, **message: Any) -> None:
        for writer in self._peers.values():
            self._send(writer, **message)

    @staticmethod
    def _send(writer: asyncio.StreamWriter, **message: Any) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")

    async def _receive(self, reader: asyncio.StreamReader) -> dict[str, Any] | None:
        """A message; None where the connection has ended."""
        try:
            line = await asyncio.wait_for(reader.readline(), self.silence)
            return json.loads(line) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            return None


def _lives(pid: int) -> bool:
    return os.getppid() == pid


async def _main() -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = await orders.readline()
    if settings:
        await Guard(**json.loads(settings)).run(orders)


if __name__ == "__main__":
    asyncio.run(_main())

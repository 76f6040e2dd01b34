"""Connections between the processes of a run, by which each learns within moments that another has ended."""

import asyncio
import hmac
import json
import os
import socket
import threading
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

#: Seconds that a rank has, when another reports an error, to meet that error itself and report it in full.
GRACE = 2.0
_LAST_WORDS = 0.5  # seconds in which what was sent reaches the others before this process ends


class Place(NamedTuple):
    """Where a rank runs: its number, those of its machine and within that, and the machine's name."""

    rank: int
    node: int
    local: int
    host: str


class Links(threading.Thread):
    """A thread that keeps a connection to rank 0, or as rank 0 one to each other rank.

    The kernel closes the connections of a process that ends, however it ends, and a machine that hangs falls silent;
    whoever ends as intended says so first. Rank 0 sees it, and tells the others; the others watch rank 0. The thread
    needs nothing of the main one, which may be waiting in a collective.

    Args:
        place: This rank.
        first: Rank 0.
        ranks: Number of ranks.
        address: Where rank 0 listens.
        token: A secret that the ranks share: a connection without it is dropped.
        listener: Rank 0's listening socket, None elsewhere.
        interval: Seconds between two signs of life.
        silence: Seconds without any after which a rank counts as gone.
        stop: Called in this thread with the rank that has ended, and how and when.
        warn: Called in this thread with what keeps ranks from being watched.
    """

    def __init__(
        self,
        place: Place,
        first: Place,
        ranks: int,
        address: tuple[str, int],
        token: str,
        listener: socket.socket | None,
        interval: float,
        silence: float,
        stop: Callable[[Place, str], None],
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self.place, self.first, self.ranks = place, first, ranks
        self.address, self.token, self.listener = address, token, listener
        self.interval, self.silence = interval, silence
        self.stop, self.warn = stop, warn
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._left = asyncio.Event()
        self._farewell: dict[str, Any] = {"bye": True}
        os.register_at_fork(after_in_child=_Closing(self))

    def run(self) -> None:
        """Watches until :meth:`leave`."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(self.listener) if self.listener else self._join())

    def leave(self, error: str | None = None) -> None:
        """Tells the others that this rank ends, as intended or by an error, and ends the thread."""
        if error is not None:
            self._farewell = {"error": error}
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._left.set)
            self.join(self.interval)

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._attend, sock=listener)
        async with server, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._beat()), group.create_task(self._count())]
            await self._say_goodbye()
            for task in tasks:
                task.cancel()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Watches one other rank, on rank 0."""
        hello = await self._receive(reader, self.silence) or {}
        if not hmac.compare_digest(str(hello.get("token")), self.token):
            writer.close()
            return
        place = Place(*hello["place"])
        self._peers[place.rank] = writer
        await self._watch(reader, place)
        writer.close()

    async def _join(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self.address)
        except OSError:
            return  # rank 0 misses this one, and says so
        self._peers[0] = writer
        self._send(writer, token=self.token, place=self.place)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._beat()), group.create_task(self._watch(reader, self.first))]
            await self._say_goodbye()
            for task in tasks:
                task.cancel()

    async def _watch(self, reader: asyncio.StreamReader, place: Place) -> None:
        """Returns when that rank, or one of which it tells, has ended."""
        while True:
            try:
                message = await self._receive(reader, self.silence)
            except TimeoutError:
                since = datetime.now() - timedelta(seconds=self.silence)
                await self._tell(place, f"has been silent since {since:%H:%M:%S}")
                return
            if message is None:
                await self._tell(place, f"died at {datetime.now():%H:%M:%S}")
            elif "ended" in message:
                await self._tell(Place(*message["ended"]), message["how"])
            elif "error" in message:
                how = f"stopped at {datetime.now():%H:%M:%S} with an error ({message['error']})"
                await self._tell(place, how, GRACE)
            if message is None or "beat" not in message:
                return

    async def _tell(self, place: Place, how: str, grace: float = 0.0) -> None:
        """Stops every rank but the one that has ended."""
        if self._left.is_set():
            return
        if self.place.rank == 0:
            for rank, writer in self._peers.items():
                if rank != place.rank:
                    self._send(writer, ended=place, how=how)
        await asyncio.sleep(max(grace, _LAST_WORDS if self.place.rank == 0 else 0.0))
        if not self._left.is_set():
            self.stop(place, how)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            for writer in self._peers.values():
                self._send(writer, beat=True)

    async def _count(self) -> None:
        """Names the ranks that did not come."""
        await asyncio.sleep(self.silence)
        missing = [str(rank) for rank in range(1, self.ranks) if rank not in self._peers]
        if missing:
            self.warn(f"rank {', '.join(missing)} did not reach {self.first.host}, port {self.address[1]}")

    async def _say_goodbye(self) -> None:
        await self._left.wait()
        for writer in self._peers.values():
            self._send(writer, **self._farewell)
            writer.close()
        await asyncio.gather(*(w.wait_closed() for w in self._peers.values()), return_exceptions=True)

    @staticmethod
    def _send(writer: asyncio.StreamWriter, **message: Any) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")

    @staticmethod
    async def _receive(reader: asyncio.StreamReader, seconds: float) -> dict[str, Any] | None:
        """A message; None where the connection has ended."""
        try:
            line = await asyncio.wait_for(reader.readline(), seconds)
            return json.loads(line) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            return None

    def close_copies(self) -> None:
        """Closes a forked process's copies of the connections, which would outlive this process."""
        sockets = [writer.get_extra_info("socket") for writer in self._peers.values()]
        for copy in [*sockets, *([self.listener] if self.listener else [])]:
            if copy.fileno() >= 0:
                os.close(copy.fileno())


class _Closing:
    """Called in each forked process, such as a DataLoader's worker."""

    def __init__(self, links: Links) -> None:
        self.links = weakref.ref(links)

    def __call__(self) -> None:
        links = self.links()
        if links is not None:
            links.close_copies()

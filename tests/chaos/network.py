"""The network between one host and the hubs: a TCP proxy that can cut, delay, hold, and leave a hub with a connection whose host is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    down: asyncio.StreamWriter  # to the host
    up: asyncio.StreamWriter  # to the hub
    stranded: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Network:
    """Stands between a host and the hubs.

    Modes: `ok`, `cut` (connections break, new ones are refused), `slow` (each chunk waits), `hold` (nothing passes; it arrives when the hold is over).
    """

    def __init__(self, hubs: Callable[[], list[int]], choose: random.Random) -> None:
        self._hubs = hubs
        self._choose = choose
        self.mode = "ok"
        self.delay = 0.0
        self.port = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._later: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End everything."""
        self._server.close()
        tasks = [*self._later, *(task for link in self._links for task in link.tasks)]
        for task in tasks:
            task.cancel()
        for link in list(self._links):
            self._abort(link)
        await asyncio.gather(*tasks, return_exceptions=True)

    def set_mode(self, mode: str, delay: float = 0.0) -> None:
        """Change how the network is."""
        self.mode, self.delay = mode, delay
        if mode == "hold":
            self._passing.clear()
        else:
            self._passing.set()
        if mode == "cut":
            for link in list(self._links):
                self._abort(link)

    def strand(self, seconds: float) -> None:
        """The host loses its connections; the hub keeps them, and what was under way arrives there only after `seconds`."""
        for link in list(self._links):
            if not link.stranded:
                link.stranded = True
                link.down.transport.abort()
                task = asyncio.ensure_future(self._end_later(link, seconds))
                self._later.add(task)
                task.add_done_callback(self._later.discard)

    async def _end_later(self, link: _Link, seconds: float) -> None:
        await asyncio.sleep(seconds)
        link.stranded = False
        await asyncio.sleep(0.1)
        self._abort(link)

    def _abort(self, link: _Link) -> None:
        self._links.discard(link)
        for writer in (link.down, link.up):
            writer.transport.abort()
        for task in link.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = self._hubs()
        if self.mode == "cut" or not ports:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._choose.choice(ports))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, up_writer)
        self._links.add(link)
        link.tasks = [
            asyncio.ensure_future(self._pump(link, reader, up_writer, from_host=True)),
            asyncio.ensure_future(self._pump(link, up_reader, writer, from_host=False)),
        ]

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_host: bool) -> None:
        try:
            while data := await reader.read(65536):
                if self.mode == "slow":
                    await asyncio.sleep(self.delay)
                await self._passing.wait()
                while link.stranded and from_host:
                    await asyncio.sleep(0.02)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        while link.stranded and from_host:
            await asyncio.sleep(0.02)
        if not (link.stranded or link not in self._links):
            await self._passing.wait()
            writer.close()
            if from_host:
                self._abort(link)

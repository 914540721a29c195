"""A process full of agents: the agent's own Engine, Journal, Identity, Backoff and messages, on asyncio in place of threads.

A thousand Channels as they are (five threads each) do not fit two cores beside the hub: their threads' waiting for the interpreter would be what is
measured. So the part of ckp.agent.hub.channel that waits on sockets is written again here, with the same limits and the same order of messages.
Steps change nothing, each only takes a while; facts are made up, one machine-id a host.
Prints what happens as JSON lines [event, host, monotonic time, number]; ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ckp.agent import messages
from ckp.agent.hub.backoff import Backoff
from ckp.agent.hub.channel import CONNECT_SECONDS, LONGEST_DELAY, OPEN_SECONDS, PING_SECONDS, tls_context
from ckp.agent.hub.identity import Identity
from ckp.agent.journal import Journal
from ckp.agent.node import engine as agent_engine
from ckp.agent.node.engine import Engine
from ckp.agent.node.settings import Settled
from ckp.hub.transport.tls import shrink_tls_buffers

STEP_SECONDS = (3.0, 9.0)
Event = tuple[str, str, float, int]


class Steps:
    """Steps that do nothing; Agent.work takes the time that they would."""

    def step(self, name: str, member: messages.Membership, cancelled: Callable[[], bool]) -> str:
        return "simulated"

    def reset(self, cancelled: Callable[[], bool]) -> str:
        return "simulated"

    def settle(self, membership: messages.Membership) -> Settled:
        return Settled()

    def unhealthy(self) -> str:
        return ""

    def upgrade_agent(self, target: messages.AgentTarget | None) -> str:
        raise AssertionError("the load is of one agent's version")


class TellingEngine(Engine):
    """The engine, which also wakes the task that sends reports."""

    def __init__(self, journal: Journal) -> None:
        self.told = asyncio.Event()
        # No `sync`: it writes out all file systems of this machine, for a second at times, and a thousand agents of this process would wait for each other's.
        super().__init__(journal, Steps(), sync=lambda: None)

    def _publish(self) -> None:
        super()._publish()
        self.told.set()


def made_up(number: int, host: str) -> messages.HostFacts:
    """Facts of a machine that there is not, of the size of a real one's."""
    return messages.HostFacts(
        hostname=host,
        machine_id=f"{number:032x}",
        os_id="debian",
        os_version="12",
        kernel="6.1.0-28-amd64",
        architecture="amd64",
        cpus=16,
        memory_bytes=64 << 30,
        disk_bytes=960 << 30,
        disk_free_bytes=800 << 30,
        addresses=(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",),
        agent_version="0.1.0",
        disks=(messages.DiskFacts("nvme0n1", 960 << 30), messages.DiskFacts("sda", 4 << 40, True)),
        links=(messages.LinkFacts("eno1", "02:00:00:00:00:01", 1500, 10000, True),),
        clock=round(time.time(), 3),
    )


class Agent:
    """One agent over its state folder.

    Args:
        turn: all agents of this process work in turn, one between two looks at their sockets: each would be alone on its machine, and what it is sent
            would not wait for the journals of a thousand others.
    """

    def __init__(self, folder: Path, number: int, url: str, events: deque[Event], turn: asyncio.Lock) -> None:
        self.turn = turn
        self.identity = Identity(str(folder))
        self.engine = TellingEngine(Journal(str(folder / "journal.json"), str(folder / "saved")))
        self.number, self.url, self.events, self.host = number, url, events, self.identity.host
        self.wanted = asyncio.Event()
        self.report_seconds = messages.REPORT_SECONDS
        self.backoff = Backoff(1.0, LONGEST_DELAY)

    def note(self, event: str, number: int = 0) -> None:
        """Tell the coordinator."""
        self.events.append((event, self.host, time.monotonic(), number))

    async def run(self, at: float) -> None:
        """From the monotonic time `at`: connect, talk, and connect again after a delay, as Channel.run does."""
        await asyncio.sleep(at - time.monotonic())
        working = asyncio.ensure_future(self.work())
        try:
            while True:
                self.note("try")
                try:
                    await self.once()
                except (ConnectionClosed, InvalidHandshake, OSError, EOFError, TimeoutError):
                    self.note("lost")
                await asyncio.sleep(self.backoff.delay())
        finally:
            working.cancel()

    async def once(self) -> None:
        """One connection, as Channel._once has it."""
        parts = urlsplit(self.url)
        async with asyncio.timeout(CONNECT_SECONDS):
            tcp = await self._tcp(parts.port or 443)
        async with connect(
            self.url,
            sock=tcp,
            ssl=tls_context(self.identity, self.identity.ca),
            proxy=None,
            compression=None,
            open_timeout=OPEN_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            close_timeout=5,
            max_size=messages.MAX_FRAME_BYTES,
            write_limit=16_384,
        ) as websocket:
            await websocket.send(messages.to_json(messages.Hello(boot_id=f"boot-{self.number}", facts=made_up(self.number, self.host))))
            reports = asyncio.ensure_future(self.send_reports(websocket))
            try:
                async for frame in websocket:
                    message = messages.from_hub(frame)
                    if isinstance(message, messages.Desired):
                        self.note("desired", message.generation)
                        self.report_seconds = min(300.0, max(0.1, message.report_seconds))
                        self.backoff.reset()
                        self.engine.submit(message)
                        self.wanted.set()
            finally:
                reports.cancel()

    @staticmethod
    async def _tcp(port: int) -> socket.socket:
        tcp = socket.socket()
        try:
            tcp.setblocking(False)
            await asyncio.get_running_loop().sock_connect(tcp, ("127.0.0.1", port))
        except BaseException:
            tcp.close()
            raise
        return tcp

    async def send_reports(self, websocket: ClientConnection) -> None:
        """After every change and every report_seconds, as Channel._send_reports does."""
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                self.engine.told.clear()
                report, _ = self.engine.report()
                await websocket.send(messages.to_json(report))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.report_seconds):
                        await self.engine.told.wait()

    async def work(self) -> None:
        """Engine.run, with the time of a step after it."""
        while True:
            async with self.turn:
                self.wanted.clear()
                wait = self.engine.work_once()
                await asyncio.sleep(0)
            if wait == 0.0:
                await asyncio.sleep(random.uniform(*STEP_SECONDS))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.wanted.wait()


async def main(url: str, top: str, first: int, last: int, begin: float, seconds: float) -> None:
    """Agents first..last, from the monotonic time `begin` on, spread over `seconds`; until the input ends."""
    shrink_tls_buffers()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    agent_engine.log = lambda *_: None  # type: ignore[attr-defined]
    events: deque[Event] = deque()
    turn = asyncio.Lock()
    agents = [Agent(Path(top) / str(number), number, url, events, turn) for number in range(first, last)]
    running = [asyncio.ensure_future(agent.run(begin + seconds * index / len(agents))) for index, agent in enumerate(agents)]
    over, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    while not over.is_set():
        lines = []
        while events:
            lines.append(json.dumps(events.popleft()))
        if lines:
            print("\n".join(lines), flush=True)
        await asyncio.sleep(0.1)
    for task in running:
        task.cancel()


def _arguments() -> Any:
    url, top, first, last, begin, seconds = sys.argv[1:]
    return url, top, int(first), int(last), float(begin), float(seconds)


if __name__ == "__main__":
    asyncio.run(main(*_arguments()))

"""A process full of hosts that all connect at one moment, after a hub's restart: asyncio, since ten thousand agents' threads do not fit this machine.

Each speaks the agent's messages with the agent's own Backoff and its time limits. Prints JSON lines as tests.load.agents does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ckp.agent import messages
from ckp.agent.channel import LONGEST_DELAY, OPEN_SECONDS, PING_SECONDS, tls_context
from ckp.agent.identity import Backoff, Identity
from ckp.hub.channel import shrink_tls_buffers
from tests.load.agents import Event, made_up


async def host(folder: Path, number: int, url: str, at: float, events: deque[Event]) -> None:
    """One host: connect, say hello and one report, stay; and again after its delay."""
    identity, backoff = Identity(str(folder)), Backoff(1.0, LONGEST_DELAY)
    name = identity.host
    hello = messages.to_json(messages.Hello(boot_id=f"boot-{number}", facts=made_up(number, name)))
    context = tls_context(identity, identity.ca)
    await asyncio.sleep(at - time.monotonic())
    while True:
        events.append(("try", name, time.monotonic(), 0))
        try:
            async with connect(
                url,
                ssl=context,
                proxy=None,
                compression=None,
                open_timeout=OPEN_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                close_timeout=5,
                max_size=messages.MAX_FRAME_BYTES,
                write_limit=16_384,
            ) as socket:
                await socket.send(hello)
                while True:
                    try:
                        async with asyncio.timeout(messages.REPORT_SECONDS):
                            desired = messages.from_hub(await socket.recv())
                        events.append(("desired", name, time.monotonic(), desired.generation))
                        backoff.reset()
                    except TimeoutError:
                        pass
                    await socket.send(messages.to_json(messages.Report(generation=0, phase="Free")))
        except (ConnectionClosed, InvalidHandshake, OSError, EOFError, TimeoutError):
            events.append(("lost", name, time.monotonic(), 0))
        await asyncio.sleep(backoff.delay())


async def main(url: str, top: str, first: int, last: int, at: float) -> None:
    """Hosts first..last, all at the monotonic time `at`; until the input ends."""
    shrink_tls_buffers()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    events: deque[Event] = deque()
    hosts = [asyncio.ensure_future(host(Path(top) / str(number), number, url, at, events)) for number in range(first, last)]
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

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
    for task in hosts:
        task.cancel()


def _arguments() -> Any:
    url, top, first, last, at = sys.argv[1:]
    return url, top, int(first), int(last), float(at)


if __name__ == "__main__":
    asyncio.run(main(*_arguments()))

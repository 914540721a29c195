"""The way in: so many connections are opened at once, all others wait in the kernel's queue, in their order.

When all hosts come at one moment, as after a hub's restart, opening all of their connections side by side would finish none of them in time: each
times out with most of its work done, comes again, and the hub does nothing else any more. Taken in turn, every one that is begun is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from websockets.asyncio.server import ServerConnection

OPENINGS_AT_ONCE = 64
TURN_SECONDS = 5.0
"""One that is not open by then goes on, but others need not wait for it any longer: half-open connections keep nobody out."""
QUEUE = 4096
C = TypeVar("C", bound=ServerConnection)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, with as long a queue as the system allows. OSError if the port is taken."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=QUEUE)


@contextlib.asynccontextmanager
async def taking_turns(
    door: socket.socket,
    context: ssl.SSLContext,
    connection: Callable[[], C],
    opened: Callable[[C], asyncio.Event],
    handshake: float,
) -> AsyncIterator[None]:
    """Accept for the block, in place of the event loop's own accepting.

    Args:
        connection: makes the protocol of a new connection.
        opened: what is set when a connection is open, or lost.
        handshake: seconds after which TLS must be done.
    """
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(OPENINGS_AT_ONCE)
    opening: set[asyncio.Task[None]] = set()

    async def open_one(taken: socket.socket) -> None:
        _, made = await loop.connect_accepted_socket(connection, taken, ssl=context, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=5.0)
        await opened(made).wait()

    async def turn(taken: socket.socket) -> None:
        task = asyncio.ensure_future(open_one(taken))
        opening.add(task)
        task.add_done_callback(opening.discard)
        task.add_done_callback(_look_at)
        await asyncio.wait([task], timeout=TURN_SECONDS)
        turns.release()

    async def accept() -> None:
        while True:
            await turns.acquire()
            try:
                taken, _ = await loop.sock_accept(door)
            except OSError:  # no file descriptor is left, or the peer is gone already
                turns.release()
                await asyncio.sleep(0.1)
                continue
            if _has_left(taken):
                taken.close()
                turns.release()
                continue
            waiting = asyncio.ensure_future(turn(taken))
            opening.add(waiting)
            waiting.add_done_callback(opening.discard)

    loop.remove_reader(door.fileno())
    accepting = asyncio.ensure_future(accept())
    try:
        yield
    finally:
        for task in (accepting, *opening):
            task.cancel()
        await asyncio.gather(accepting, *opening, return_exceptions=True)


def _has_left(taken: socket.socket) -> bool:
    """Whether the peer has closed already: it waited in the queue for longer than it wanted to, and is, or will be, back with another connection.

    Its ClientHello is still there to be read and would cost a whole TLS handshake; of ten thousand hosts at one moment nearly all came so.
    """
    seen = select.poll()
    seen.register(taken, select.POLLRDHUP)
    return bool(seen.poll(0))


def _look_at(task: asyncio.Task[None]) -> None:
    """A scanner that does not finish TLS is no news."""
    if not task.cancelled():
        task.exception()

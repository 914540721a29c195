"""Admission control: a limited number of TLS handshakes at once; all other connections wait in the kernel's queue, in their order.

When all hosts connect at one moment, as after a hub's restart, all handshakes side by side would finish none of them in time: each times out with
most of its work done, the host connects again, and the hub does nothing else. With a limit, every handshake that is begun is finished.
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

HANDSHAKES_AT_ONCE = 64
SLOT_SECONDS = 5.0
"""A handshake that is not done by then goes on, but no longer holds its slot: half-open connections do not block others."""
QUEUE = 4096
C = TypeVar("C", bound=ServerConnection)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, with as long a queue as the system allows. OSError if the port is taken."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=QUEUE)


@contextlib.asynccontextmanager
async def limit_handshakes(
    listener: socket.socket,
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
    slots = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
    opening: set[asyncio.Task[None]] = set()

    async def open_one(taken: socket.socket) -> None:
        _, made = await loop.connect_accepted_socket(connection, taken, ssl=context, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=5.0)
        await opened(made).wait()

    async def hold_slot(taken: socket.socket) -> None:
        task = asyncio.ensure_future(open_one(taken))
        opening.add(task)
        task.add_done_callback(opening.discard)
        task.add_done_callback(_drop_error)
        await asyncio.wait([task], timeout=SLOT_SECONDS)
        slots.release()

    async def accept() -> None:
        while True:
            await slots.acquire()
            try:
                taken, _ = await loop.sock_accept(listener)
            except OSError:  # no file descriptor is left, or the peer has closed already
                slots.release()
                await asyncio.sleep(0.1)
                continue
            if _has_left(taken):
                taken.close()
                slots.release()
                continue
            waiting = asyncio.ensure_future(hold_slot(taken))
            opening.add(waiting)
            waiting.add_done_callback(opening.discard)

    loop.remove_reader(listener.fileno())
    accepting = asyncio.ensure_future(accept())
    try:
        yield
    finally:
        for task in (accepting, *opening):
            task.cancel()
        await asyncio.gather(accepting, *opening, return_exceptions=True)


def _has_left(taken: socket.socket) -> bool:
    """Whether the peer has closed already: it timed out while it waited in the queue, and has connected again or will.

    Its ClientHello is still there to be read and would cost a whole TLS handshake; of ten thousand hosts at one moment nearly all came so.
    """
    seen = select.poll()
    seen.register(taken, select.POLLRDHUP)
    return bool(seen.poll(0))


def _drop_error(task: asyncio.Task[None]) -> None:
    """A scanner that does not finish TLS is not logged."""
    if not task.cancelled():
        task.exception()

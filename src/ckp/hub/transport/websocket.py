"""WebSockets over mutual TLS: how they are accepted, limited and closed. What is sent over them is not known here."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from ckp.hub.transport.handshakes import QUEUE, limit_handshakes, listening

HANDSHAKE_SECONDS = 15.0
OPEN_SECONDS = 20.0
"""A connection that has not finished TLS, and then the upgrade, within these times is closed."""
CLOSE_SECONDS = 2.0
"""How long a peer gets to answer our close frame. One that reads nothing never does, and one that has sent more than we took is not heard any more."""
_LIMITS: dict[str, Any] = {"ping_interval": 20.0, "ping_timeout": 20.0, "close_timeout": 5.0, "max_queue": 2, "write_limit": 16_384}
"""Seconds, frames and bytes of one connection."""


class TrackedConnection(ServerConnection):
    """A connection that tells when it is open, or lost before it was."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.opened = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        """Also of a connection that never opened: nothing waits for it any longer."""
        super().connection_lost(exc)
        self.opened.set()


C = TypeVar("C", bound=TrackedConnection)


@contextlib.asynccontextmanager
async def serve_websockets(
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    connection: type[C],
    handler: Callable[[ServerConnection], Awaitable[None]],
    process_request: Callable[[ServerConnection, Request], Awaitable[Response | None]],
    max_size: int,
) -> AsyncIterator[Server]:
    """Accept connections for the block; at its end all of them are closed with code 1001.

    Args:
        connection: the class of a connection; `handler` sets its `opened`.
        handler: one connection, from its upgrade to its end.
        process_request: before the upgrade; a response refuses it.
        max_size: largest frame, in bytes.

    Raises:
        OSError: the port is taken.
    """
    listener = listening(host, port)
    async with serve(
        handler,
        sock=listener,
        ssl=context,
        process_request=process_request,
        compression=None,
        open_timeout=OPEN_SECONDS,
        server_header=None,
        backlog=QUEUE,
    ) as server:

        def accepted() -> C:
            return connection(ServerProtocol(max_size=max_size, logger=server.logger), server, **_LIMITS)

        async with limit_handshakes(listener, context, accepted, lambda made: made.opened, HANDSHAKE_SECONDS):
            yield server


async def close(connection: ServerConnection, code: int, reason: str) -> None:
    """End a connection, with a reason for a peer that reads; websockets alone would wait for ever for one that does not."""
    with contextlib.suppress(ConnectionClosed, OSError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close(code, reason)
    connection.transport.abort()

"""Locks by name that are held across several requests to the management cluster, so that two of Compass' replicas do not decide about the same hosts."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ckp.compass.store.failures import translated

WAIT_SECONDS = 20
"""How long a request waits for those before it."""
HOLD_SECONDS = 120
"""After which PostgreSQL takes the locks from a replica that has stalled."""
MOST = 6
"""Locks that one replica waits for or holds at a time; each has a connection of its own, so that those for requests do not run out."""


@dataclass(frozen=True)
class Held:
    """Locks that are held now.

    Args:
        connection: PostgreSQL's, which holds them; None where this process is the only one.
    """

    connection: AsyncConnection | None = None

    async def require(self) -> None:
        """Just before something is changed: the locks are still held. Unavailable if the connection broke, so that another replica may have them."""
        if self.connection is not None:
            with translated():
                await self.connection.execute(text("select 1"))


class Locks:
    """Gives out locks.

    Args:
        engine: gives connections that are not those of requests; None: there is no other process.
    """

    def __init__(self, engine: AsyncEngine | None) -> None:
        self._engine = engine
        self._here: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._places = asyncio.Semaphore(MOST)

    @asynccontextmanager
    async def hold(self, names: Sequence[str]) -> AsyncIterator[Held]:
        """Hold the locks of these names, taken in this order, for as long as the block lasts.

        Raises:
            Unavailable: others have them for WAIT_SECONDS, or the database does not answer.
        """
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(self._here[name])
            if self._engine is None:
                yield Held()
                return
            await stack.enter_async_context(self._places)
            with translated():
                connection = await self._engine.connect()
                stack.push_async_callback(_end, connection)
                await connection.execute(text(f"set local lock_timeout = '{WAIT_SECONDS}s'"))
                await connection.execute(text(f"set local statement_timeout = '{WAIT_SECONDS + 1}s'"))
                await connection.execute(text(f"set local idle_in_transaction_session_timeout = '{HOLD_SECONDS}s'"))
                for name in names:
                    await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _key(name)})
            yield Held(connection)


async def _end(connection: AsyncConnection) -> None:
    """Give the locks back. One that broke has given them back: what was done under them is not a failure because of that."""
    with suppress(SQLAlchemyError):
        await connection.close()


def _key(name: str) -> int:
    """64 bits, as PostgreSQL's bigint."""
    return int.from_bytes(hashlib.sha256(f"ckp-compass {name}".encode()).digest()[:8], "big", signed=True)

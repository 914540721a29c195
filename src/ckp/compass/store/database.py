"""The database: opening it (with its migrations), and units of work."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from ckp.compass.errors import Unavailable
from ckp.compass.store.failures import is_passing, reason, translated
from ckp.compass.store.locks import Held, Locks
from ckp.compass.store.places import READING, Place, PostgresqlServer, SqliteFile
from ckp.compass.store.schema import bring_up
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError

log = structlog.get_logger("compass.database")

OPEN_SECONDS = 60.0
"""How long a start waits for a database that does not answer yet."""
TURN_SECONDS = 20.0
"""How long a request waits for the others of its process that write."""
RETRY_SECONDS = 6.0
"""For how long a transaction that has not begun is tried again."""


class Database:
    """Compass' SQL database.

    Transactions that write take turns, over all replicas: what one has read is still so when it writes, with either database, and none has to be
    done again. Those that only read wait for nobody.

    Args:
        place: a SQLite file, which one process has for itself; or PostgreSQL, which any number share.
        clock: for the times of audit entries.
    """

    def __init__(self, place: Path | Place, clock: Clock) -> None:
        self._place: Place = SqliteFile(place) if isinstance(place, Path) else place
        self._clock = clock
        self._engines: list[AsyncEngine] = []
        self._writing: async_sessionmaker[AsyncSession] | None = None
        self._reading: async_sessionmaker[AsyncSession] | None = None
        self._locks = Locks(None)
        # Before the database's own lock: of this process, one connection at a time waits for that, and those that only read have the others.
        self._turn = asyncio.Lock()

    async def open(self, *, wait: float = OPEN_SECONDS) -> None:
        """Bring the schema up to date and connect.

        Args:
            wait: seconds that PostgreSQL may take to answer.

        Raises:
            CkpError: it cannot be opened, or a migration failed (it is as it was: migrations run in one transaction).
        """
        deadline = time.monotonic() + wait
        while True:
            try:
                await asyncio.to_thread(bring_up, self._place)
                break
            except (OSError, SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:
                if self._place.dialect == "postgresql" and is_passing(error) and time.monotonic() < deadline:
                    log.warning("the database does not answer yet", database=str(self._place), error=reason(error))
                    await asyncio.sleep(min(2.0, wait))
                    continue
                # Without the cause: SQLAlchemy's own text has statements and their parameters.
                raise CkpError(
                    f"the database {self._place} could not be opened or brought up to date: {reason(error)}",
                    resolution="check that its volume is mounted and writable; the file itself is unchanged"
                    if self._place.dialect == "sqlite"
                    else "check that the server runs, that this host reaches it, and user, password and TLS in the URL's file; the database is unchanged",
                ) from None
        engine = self._place.engine()
        self._engines = [engine]
        self._writing = async_sessionmaker(engine, expire_on_commit=False)
        only_reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if self._place.dialect == "postgresql" else {}
        self._reading = async_sessionmaker(engine.execution_options(**{READING: True}, **only_reading), expire_on_commit=False)
        if isinstance(self._place, PostgresqlServer):
            locking = self._place.lock_engine()
            self._engines.append(locking)
            self._locks = Locks(locking)

    async def close(self) -> None:
        """Close all connections; of SQLite the write-ahead log is folded in by the last."""
        while self._engines:
            await self._engines.pop().dispose()
        self._writing = self._reading = None

    async def ping(self) -> None:
        """Unavailable if the database does not answer now."""
        if not self._engines:
            raise CkpError("the database is not open")
        with translated():
            # PostgreSQL by a new connection: those of requests may all be in use.
            async with self._engines[-1].connect() as connection:
                await connection.execute(text("select 1"))

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """A transaction that may write: committed when the block ends well, rolled back when it raises. It holds up all others: nothing else is waited for.

        Raises:
            Taken, InvalidInput, Unavailable: as `failures.translated` says.
        """
        async with self._transaction(self._writing, writes=True) as session:
            yield Unit(session, self._clock)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Unit]:
        """A transaction that only reads, all as of one moment. Raises as `unit`."""
        async with self._transaction(self._reading, writes=False) as session:
            yield Unit(session, self._clock)

    def exclusive(self, *names: str) -> AbstractAsyncContextManager[Held]:
        """Locks by name over all replicas, for what is decided and then done in the management cluster (ckp.compass.store.locks)."""
        return self._locks.hold(names)

    @asynccontextmanager
    async def _transaction(self, sessions: async_sessionmaker[AsyncSession] | None, *, writes: bool) -> AsyncIterator[AsyncSession]:
        if sessions is None:
            raise CkpError("the database is not open")
        with translated():
            async with AsyncExitStack() as stack:
                if writes:
                    await stack.enter_async_context(self._own_turn())
                session = await self._begun(stack, sessions, writes)
                yield session
                await session.commit()

    @asynccontextmanager
    async def _own_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable("too much is written at a time", resolution="try again in a moment") from None
        try:
            yield
        finally:
            self._turn.release()

    async def _begun(self, stack: AsyncExitStack, sessions: async_sessionmaker[AsyncSession], writes: bool) -> AsyncSession:
        """A session in a transaction that has its turn. Until then nothing was done, and it may be tried again."""
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.05
        while True:
            session = sessions()
            try:
                connection = await session.connection()
                if writes:
                    await self._place.take_turn(connection)
                stack.push_async_callback(session.close)
                return session
            except BaseException as error:
                await session.close()
                if not is_passing(error) or time.monotonic() >= deadline:
                    raise
                log.warning("the database does not answer; trying again", error=reason(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.0, pause * 2)

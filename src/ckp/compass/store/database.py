"""The database: opening it (with its migrations), and units of work."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError

MIGRATIONS = Path(__file__).with_name("migrations")


class Database:
    """Compass' SQL database. One process writes it; the file lies on a volume that outlives the pod.

    Args:
        path: the SQLite file; its directory is made if it is not there.
        clock: for the times of audit entries.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._engine: AsyncEngine | None = None
        self._sessions: async_sessionmaker[AsyncSession] | None = None

    async def open(self) -> None:
        """Bring the schema up to date and connect.

        Raises:
            CkpError: the file cannot be opened, or a migration failed (the file is as it was: migrations run in one transaction).
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(migrate, self._path)
        except CommandError as error:
            raise CkpError(
                f"the database {self._path} is of a newer Compass: {error}",
                resolution="run that version, or restore the database from a backup that this version made; the file is unchanged",
            ) from error
        except (OSError, SQLAlchemyError, sqlite3.Error) as error:
            raise CkpError(
                f"the database {self._path} could not be opened or brought up to date: {error}",
                resolution="check that its volume is mounted and writable; the file itself is unchanged",
            ) from error
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{self._path}", pool_size=4, max_overflow=4)
        event.listen(self._engine.sync_engine, "connect", _set_pragmas)
        event.listen(self._engine.sync_engine, "begin", _begin)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        """Close all connections; the write-ahead log is folded in by the last."""
        if self._engine:
            await self._engine.dispose()
            self._engine = None

    async def ping(self) -> None:
        """Raise if the database does not answer."""
        async with self.unit() as unit:
            await unit.session.execute(text("select 1"))

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """A transaction: committed when the block ends well, rolled back when it raises."""
        if self._sessions is None:
            raise CkpError("the database is not open")
        async with self._sessions() as session, session.begin():
            yield Unit(session, self._clock)


def migrate(path: Path) -> None:
    """Bring a SQLite file to the newest schema; does nothing when it is there."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{path}")
    command.upgrade(config, "head")


def _begin(connection: Any) -> None:
    # Immediate: a transaction that reads first and writes later would fail with "database is locked" if another wrote in between.
    connection.exec_driver_sql("begin immediate")


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin, not by the driver
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    # FULL: with NORMAL, a power cut may take back transactions that were answered as done.
    cursor.execute("pragma synchronous=full")
    cursor.execute("pragma foreign_keys=on")
    cursor.execute("pragma busy_timeout=5000")
    cursor.close()

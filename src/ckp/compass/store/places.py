"""Where the database is: a SQLite file, or PostgreSQL. What the two do differently stands here, and nowhere else but in `schema`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from ckp.kits.errors import InvalidInput
from ckp.rules import postgresql

READING = "reading"
"""Execution option of transactions that only read."""
LOCK_SECONDS = 5
"""How long a transaction waits for its turn to write, and for any lock."""
STATEMENT_SECONDS = 15
IDLE_SECONDS = 15
"""After which PostgreSQL ends a transaction whose process has stalled, so that the others get their turn."""
CONNECT_SECONDS = 4
POOL_SECONDS = 5
RECYCLE_SECONDS = 1800
OLDEST_VERSION = 150000
"""PostgreSQL 15, as the server numbers itself."""


class Place(Protocol):
    """A database, and how connections to it are made. No text form of it has a password."""

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`, as SQLAlchemy names them."""
        ...

    def engine(self) -> AsyncEngine:
        """For requests: connections are kept, and a broken one is noticed before it is used."""
        ...

    def migration_engine(self) -> Engine:
        """For one change of the schema."""
        ...

    async def take_turn(self, connection: AsyncConnection) -> None:
        """At the beginning of a transaction that writes: none other does until it ends."""
        ...


@dataclass(frozen=True)
class SqliteFile:
    """A file for one process; its folder is made if it is not there."""

    path: Path

    dialect = "sqlite"

    def __str__(self) -> str:
        return str(self.path)

    def engine(self) -> AsyncEngine:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = create_async_engine(f"sqlite+aiosqlite:///{self.path}", pool_size=4, max_overflow=4, hide_parameters=True)
        event.listen(made.sync_engine, "connect", _set_pragmas)
        event.listen(made.sync_engine, "begin", _begin)
        return made

    def migration_engine(self) -> Engine:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = create_engine(f"sqlite:///{self.path}", poolclass=NullPool, connect_args={"timeout": 60})
        event.listen(made, "connect", _leave_transactions_to_us)
        event.listen(made, "begin", _begin)
        return made

    async def take_turn(self, connection: AsyncConnection) -> None:
        """`begin immediate` did it."""


def _begin(connection: Any) -> None:
    # Immediate: a transaction that reads first and writes later would fail with "database is locked" if another wrote in between.
    reading = connection.get_execution_options().get(READING)
    connection.exec_driver_sql("begin" if reading else "begin immediate")


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    # Python's sqlite3 starts no transaction for DDL by itself; with ours, a migration that breaks in the middle leaves nothing behind.
    connection.isolation_level = None


def _set_pragmas(connection: Any, record: Any) -> None:
    _leave_transactions_to_us(connection, record)
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    # FULL: with NORMAL, a power cut may take back transactions that were answered as done.
    cursor.execute("pragma synchronous=full")
    cursor.execute("pragma foreign_keys=on")
    cursor.execute(f"pragma busy_timeout={LOCK_SECONDS * 1000}")
    cursor.close()


@dataclass(frozen=True)
class PostgresqlServer:
    """A database of a PostgreSQL server, 15 or newer, for any number of processes.

    Its file is read again for each connection, so that a new password needs no restart.

    Args:
        url_file: as `ckp.rules.postgresql.parse` reads it.
        ca_file: CA (PEM) of the server's certificate; one that does not exist counts as none.
        connections: the most at a time for requests.
    """

    url_file: Path
    ca_file: Path | None = None
    connections: int = 8

    dialect = "postgresql"

    def __str__(self) -> str:
        return f"PostgreSQL {self._url().place}"

    def _url(self) -> postgresql.PostgresqlUrl:
        try:
            return postgresql.parse(self.url_file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InvalidInput(
                f"the database's URL could not be read from {self.url_file}: {why}", resolution="mount the Secret there, or set COMPASS_DATABASE_URL_FILE"
            ) from None

    def parameters(self) -> Mapping[str, Any]:
        """What libpq gets. InvalidInput if the file is wrong."""
        url = self._url()
        ca = self.ca_file if self.ca_file is not None and self.ca_file.exists() else None
        trust = {"sslrootcert": str(ca)} if ca else {}
        return {
            "host": url.host,
            "port": url.port,
            "dbname": url.database,
            "user": url.user,
            "password": url.password,
            "sslmode": url.ssl_mode_with(ca is not None),
            **trust,
            "application_name": "ckp-compass",
            "connect_timeout": CONNECT_SECONDS,
            # After a failover, an address may lead to a server that only reads for a while.
            "target_session_attrs": "read-write",
            # A server whose machine is gone does not close connections: they are given up after some ten seconds.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            # Behind a pooler, a later transaction may be on another connection.
            "prepare_threshold": None,
            "client_encoding": "utf8",
        }

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        made = await psycopg.AsyncConnection.connect(**self.parameters())
        try:
            if made.info.server_version < OLDEST_VERSION:
                raise _too_old(made.info.server_version)
            await made.execute(_session())
            await made.commit()
        except BaseException:
            await made.close()
            raise
        return made

    def _connect_for_migration(self) -> psycopg.Connection[Any]:
        made = psycopg.connect(**self.parameters())
        if made.info.server_version < OLDEST_VERSION:
            made.close()
            raise _too_old(made.info.server_version)
        made.execute("set time zone 'UTC'")
        made.commit()
        return made

    def engine(self) -> AsyncEngine:
        return create_async_engine(
            "postgresql+psycopg://",
            async_creator=self._connect,
            pool_size=self.connections,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            pool_recycle=RECYCLE_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
        )

    def lock_engine(self) -> AsyncEngine:
        """For locks that are held for long: connections beside those of requests, closed with the lock."""
        return create_async_engine("postgresql+psycopg://", async_creator=self._connect, poolclass=NullPool, hide_parameters=True)

    def migration_engine(self) -> Engine:
        return create_engine("postgresql+psycopg://", creator=self._connect_for_migration, poolclass=NullPool, hide_parameters=True)

    async def take_turn(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"select pg_advisory_xact_lock({WRITERS})")


WRITERS = 0x434B5001
"""Numbers of advisory locks; they count within one database only. Locks by name have 64 bits of a hash (ckp.compass.store.locks)."""
MIGRATIONS = 0x434B5002


def _session() -> str:
    return (
        f"set time zone 'UTC'; set statement_timeout = '{STATEMENT_SECONDS}s'; set lock_timeout = '{LOCK_SECONDS}s';"
        f" set idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'"
    )


def _too_old(version: int) -> InvalidInput:
    return InvalidInput(f"the database's server is PostgreSQL {version // 10000}, and 15 is the oldest that Compass runs on", resolution="upgrade the server")

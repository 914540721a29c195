"""Compass' data in PostgreSQL as one stream, and back: for backups of a site, and its restore. The form is that of ckp.rules.database_copy.

A copy is of one moment (REPEATABLE READ), and holds nobody up. It is put back in one transaction, in which the tables are made again as the version of the
schema has them that the copy is of, filled, and brought up to date: until that is committed, everybody sees what was there before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import psycopg
import structlog
from alembic import command
from psycopg import sql
from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from ckp.compass.store.failures import reason
from ckp.compass.store.models import Base, SchemaServes, WrongKey
from ckp.compass.store.places import WRITERS, Place, PostgresqlServer
from ckp.compass.store.schema import head, is_known, migrating, version_of
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.rules.database_copy import END, LONGEST_LINE, Copied, footer, header

log = structlog.get_logger("compass.copying")

VERSIONS = "alembic_version"
PASSING = {VERSIONS, SchemaServes.__tablename__, WrongKey.__tablename__}
"""Tables that no database is taken for one in use by."""
MARK = "restored by ckp site restore: "
"""Begins the comment on the table of versions that tells which restore has put the data there."""
TURN_SECONDS = 60
"""How long putting back waits for those who write."""
_TEXT = "set datestyle = 'ISO'; set bytea_output = 'hex'; set extra_float_digits = 3; set client_encoding = 'UTF8'"


@dataclass(frozen=True)
class Loaded:
    """What putting a copy back has done.

    Args:
        rows: of each table; empty if it was done before by the same restore.
    """

    rows: Mapping[str, int]


def dump(place: Place, out: BinaryIO) -> Mapping[str, int]:
    """Write a copy; the number of rows of each table.

    Raises:
        InvalidInput: the database is SQLite, which is copied as a file.
        CkpError: it has no schema yet, or does not answer.
    """
    server = _server(place)
    engine = server.migration_engine()
    try:
        with engine.connect() as opened:
            connection = opened.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                return _dump(server, connection, out)
    except (SQLAlchemyError, psycopg.Error) as error:
        raise CkpError(f"{server} could not be copied: {reason(error)}", resolution="see that the server runs, and try again") from None
    finally:
        engine.dispose()


def _dump(server: PostgresqlServer, connection: Connection, out: BinaryIO) -> Mapping[str, int]:
    schema = version_of(connection)
    if schema is None:
        raise CkpError(f"{server} has no schema of Compass", resolution="see that Compass runs with this database")
    connection.exec_driver_sql(_TEXT)
    seen = inspect(connection)
    tables = {name: [str(column["name"]) for column in seen.get_columns(name)] for name in sorted(seen.get_table_names()) if name in _known_tables()}
    out.write(header(schema, tables))
    counts = {}
    cursor = _driver(connection).cursor()
    for name, columns in tables.items():
        counts[name] = 0
        with cursor.copy(sql.SQL("copy {} ({}) to stdout").format(sql.Identifier(name), _columns(columns))) as copying:
            for piece in copying:
                counts[name] += bytes(piece).count(b"\n")
                out.write(piece)
        out.write(END)
    out.write(footer(counts))
    out.flush()
    return counts


def load(place: Place, source: BinaryIO, *, restore: str, replace: bool) -> Loaded:
    """Put a copy back; what the same restore has put back already is left as it is now.

    Args:
        restore: tells this restore from others.
        replace: also over data that is there.

    Raises:
        InvalidInput: the database is SQLite, or the copy is of a later format.
        Conflict: the database has data of its own, or the copy has a schema that this Compass does not know; nothing was changed.
        VerificationFailed: the copy is not whole; nothing was changed.
        CkpError: the database does not answer; nothing was changed.
    """
    server, mark = _server(place), MARK + _plain(restore)
    try:
        with migrating(server) as (connection, config):
            connection.execute(text(f"set local lock_timeout = '{TURN_SECONDS}s'"))
            connection.execute(text(f"select pg_advisory_xact_lock({WRITERS})"))
            if _mark(connection) == mark:
                log.info("the copy was put back before by this restore", database=str(server))
                return Loaded({})
            copied = Copied(iter(partial(source.readline, LONGEST_LINE), b""))
            if not is_known(copied.schema):
                raise Conflict(
                    f"the copy of the database has the schema {copied.schema}, and this Compass knows schemas up to {head()}",
                    resolution="restore with the version of CKP that made the backup, or a newer one",
                )
            if not replace and (used := _in_use(connection)):
                raise Conflict(
                    f"{server} has data of its own ({', '.join(used)}), and nothing in it was changed",
                    resolution="keep it as it is: --database keep; or lose it, and put the backup's data in its place: --database replace",
                )
            connection.exec_driver_sql(_TEXT)
            for name in sorted(_known_tables() | set(copied.tables) | {VERSIONS}):
                connection.exec_driver_sql(f'drop table if exists "{name}"')
            command.upgrade(config, copied.schema)
            rows = _fill(connection, copied)
            command.upgrade(config, "head")
            connection.exec_driver_sql(f"comment on table {VERSIONS} is '{mark}'")
            return Loaded(rows)
    except (SQLAlchemyError, psycopg.Error) as error:
        raise CkpError(
            f"the copy could not be put into {server}: {reason(error)}", resolution="see that the server runs, and run it again; the database is unchanged"
        ) from None


def _fill(connection: Connection, copied: Copied) -> Mapping[str, int]:
    cursor = _driver(connection).cursor()
    seen = inspect(connection)
    for name, columns in copied.tables.items():
        cursor.execute(sql.SQL("delete from {}").format(sql.Identifier(name)))  # rows that migrations make
        with cursor.copy(sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(name), _columns(columns))) as copying:
            for row in copied.rows(name):
                copying.write(row)
        for column in seen.get_columns(name):
            if column.get("autoincrement") is True:
                numbers = sql.SQL("select setval(pg_get_serial_sequence(%s, %s), coalesce(max({0}), 0) + 1, false) from {1}")
                cursor.execute(numbers.format(sql.Identifier(column["name"]), sql.Identifier(name)), (name, column["name"]))
    return copied.finish()


def _in_use(connection: Connection) -> list[str]:
    """Tables with rows that somebody has made, with how many."""
    there = sorted(set(inspect(connection).get_table_names()) & (_known_tables() - PASSING))
    counts = {name: connection.execute(select(func.count()).select_from(Base.metadata.tables[name])).scalar_one() for name in there}
    return [f"{name}: {count}" for name, count in counts.items() if count]


def _mark(connection: Connection) -> str:
    if VERSIONS not in inspect(connection).get_table_names():
        return ""
    return str(connection.exec_driver_sql(f"select obj_description('{VERSIONS}'::regclass, 'pg_class')").scalar() or "")


def _known_tables() -> set[str]:
    return set(Base.metadata.tables)


def _columns(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    found = connection.connection.driver_connection
    assert isinstance(found, psycopg.Connection)
    return found


def _plain(restore: str) -> str:
    if not restore.isalnum():
        raise InvalidInput(f"{restore!r} does not name a restore", resolution="write letters and digits")
    return restore


def _server(place: Place) -> PostgresqlServer:
    if not isinstance(place, PostgresqlServer):
        raise InvalidInput(f"{place} is SQLite, which is copied as a file", resolution="see ckp site backup")
    return place

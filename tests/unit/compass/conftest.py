"""Compass over both databases: SQLite, and a real PostgreSQL that the tests of one process share, each with a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckp.compass.store.models import Base, SchemaServes
from ckp.compass.store.places import Place, PostgresqlServer, SqliteFile
from ckp.compass.store.schema import bring_up
from tests.support.postgresql_server import PostgresqlTestServer, postgresql_server

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresqlTestServer]:
    """A running PostgreSQL."""
    with postgresql_server() as made:
        yield made


@pytest.fixture(scope="session")
def prepared(server: PostgresqlTestServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a database with the newest schema."""
    name = server.make_database()
    file = tmp_path_factory.mktemp("prepared") / "url"
    file.write_text(server.url(name))
    bring_up(PostgresqlServer(file))
    return name


@pytest.fixture
def shared(server: PostgresqlTestServer, prepared: str, tmp_path: Path) -> PostgresqlServer:
    """An empty database of PostgreSQL, as Compass' replicas are given it. To empty one takes a hundredth of the time of making one."""
    tables = ", ".join(name for name in Base.metadata.tables if name != SchemaServes.__tablename__)
    server.execute(f"truncate table {tables} restart identity", prepared)
    file = tmp_path / "database-url"
    file.write_text(server.url(prepared))
    return PostgresqlServer(file, connections=4)


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each test that takes it runs with both databases."""
    if request.param == "sqlite":
        return SqliteFile(tmp_path / "compass.db")
    found = request.getfixturevalue("shared")
    assert isinstance(found, PostgresqlServer)
    return found


@pytest.fixture
def empty(server: PostgresqlTestServer, tmp_path: Path) -> Callable[[], PostgresqlServer]:
    """Makes databases without a schema."""

    def make() -> PostgresqlServer:
        name = server.make_database()
        file = tmp_path / f"url-{name}"
        file.write_text(server.url(name))
        return PostgresqlServer(file, connections=4)

    return make

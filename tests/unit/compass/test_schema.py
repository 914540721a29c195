"""The schema's versions over both databases: made, adopted, taken back, of a newer Compass, and by several replicas at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from ckp.compass.identity import ProjectRef
from ckp.compass.store import schema
from ckp.compass.store.database import Database
from ckp.compass.store.models import Base
from ckp.compass.store.places import Place, PostgresqlServer, SqliteFile
from ckp.kits.clock import SystemClock
from ckp.kits.errors import Conflict
from ckp.rules import schemas
from tests.support.checkout import REPO
from tests.worlds.compass import make_world

OLD = """
create table host_keys (domain varchar(63) not null, project varchar(63) not null, salt blob not null, digest blob not null, created_at datetime not null,
  use_count integer not null, last_used_at datetime, expires_at datetime, max_uses integer, primary key (domain, project));
create table host_requests (id varchar(32) not null, domain varchar(63) not null, project varchar(63) not null, machine_id varchar(32) not null,
  key_digest varchar(64) not null, csr text not null, facts json not null, token_digest varchar(64) not null, source varchar(64) not null,
  state varchar(16) not null, reason text not null, host varchar(63) not null, certificate text not null, created_at datetime not null,
  decided_at datetime, decided_by varchar(128) not null, duplicate_of varchar(63) default '' not null, duplicate_why varchar(16) default '' not null,
  primary key (id));
create index ix_host_requests_project on host_requests (domain, project, created_at);
create index ix_host_requests_machine on host_requests (machine_id);
create unique index ux_host_requests_host on host_requests (domain, project, host) where host <> '';
create table host_groups (id integer not null, domain varchar(63) not null, project varchar(63) not null, name varchar(63) not null,
  description text not null, created_at datetime not null, primary key (id), unique (domain, project, name));
create table audit_log (id integer not null, at datetime not null, actor varchar(128) not null, domain varchar(63) not null,
  project varchar(63) not null, action varchar(64) not null, target varchar(253) not null, detail json not null,
  credential varchar(32) default '' not null, primary key (id));
create index ix_audit_log_at on audit_log (at);
create table approval_rules (domain varchar(63) not null, project varchar(63) not null, name varchar(63) not null, criteria json not null,
  groups json not null, approved integer not null, created_at datetime not null, created_by varchar(128) not null, primary key (domain, project, name));
insert into host_keys values ('default', 'default', x'01', x'02', '2026-03-01 00:00:00.000000', 7, null, null, 9);
insert into host_groups values (3, 'default', 'default', 'workers', 'ours', '2026-03-01 00:00:00.000000');
insert into audit_log values (1, '2026-03-01 00:00:00.000000', 'admin', 'default', 'default', 'cluster.create', 'demo', '{"workers": 2}', 'admin-token');
insert into host_requests values ('r1', 'default', 'default', 'aa', 'bb', 'csr', '{"hostname": "w"}', 'cc', '192.0.2.1', 'approved', '', 'w', 'cert',
  '2026-03-01 00:00:00.000000', '2026-03-02 00:00:00.000000', 'admin', '', '');
"""
"""A database as CKP 0.2.0 and what came after it made it, with a row of each kind that is read below."""


def make_old(path: Path, version: str | None) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD)
        if version:
            connection.execute("create table alembic_version (version_num varchar(32) not null primary key)")
            connection.execute("insert into alembic_version values (?)", (version,))
    connection.close()


def version_of(place: Place) -> str | None:
    return str(rows(place, "select version_num from alembic_version")[0][0])


def rows(place: Place, query: str) -> Sequence[Any]:
    engine = place.migration_engine()
    try:
        with engine.connect() as connection:
            return connection.execute(text(query)).fetchall()
    finally:
        engine.dispose()


def change(place: Place, statement: str) -> None:
    engine = place.migration_engine()
    try:
        with engine.begin() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A database with nothing in it."""
    if request.param == "sqlite":
        return SqliteFile(tmp_path / "fresh.db")
    made: Callable[[], PostgresqlServer] = request.getfixturevalue("empty")
    return made()


@pytest.mark.parametrize("version", ["0003", None], ids=["by migrations", "by the models alone"])
async def test_a_database_of_before_is_adopted_with_all_that_is_in_it(tmp_path: Path, version: str | None) -> None:
    place = SqliteFile(tmp_path / "compass.db")
    make_old(place.path, version)
    async with make_world(tmp_path, place=place) as world:
        key = await world.call("GET", "/host-psk", expect=200)
        groups = (await world.call("GET", "/host-groups", expect=200))["items"]
        [entry] = (await world.call("GET", "/audit", expect=200))["items"]
        async with world.database.reading() as unit:
            request = await unit.host_request(ProjectRef.of("default", "default"), "r1")
    assert (key["useCount"], key["maxUses"], key["key"]) == (7, 9, None)
    assert [(group["name"], group["description"]) for group in groups] == [("workers", "ours")]
    assert (entry["target"], entry["detail"], entry["credential"]) == ("demo", {"workers": 2}, "admin-token")
    assert request is not None and request.decided_at == datetime(2026, 3, 2, tzinfo=UTC) and request.facts == {"hostname": "w"}
    assert version_of(place) == schema.head()


def test_migrations_make_what_the_models_say(fresh: Place) -> None:
    schema.bring_up(fresh)
    engine = fresh.migration_engine()
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    assert found == []


def test_the_schema_goes_one_version_back_and_forth_and_keeps_what_both_know(fresh: Place) -> None:
    schema.bring_up(fresh)
    insert = "insert into host_groups (domain, project, name, description, created_at) values ('d', 'p', 'g', '', '2026-03-01 00:00:00')"
    change(fresh, insert)
    assert [schema.take_back(fresh) for _ in range(3)] == [("0006", "0005"), ("0005", "0004"), ("0004", "0003")]
    assert version_of(fresh) == "0003" and len(rows(fresh, "select * from host_groups")) == 1
    schema.bring_up(fresh)
    assert version_of(fresh) == schema.head() and len(rows(fresh, "select * from host_groups")) == 1


def test_the_first_schema_is_not_taken_back(fresh: Place) -> None:
    with pytest.raises(Conflict, match="has schema none"):
        schema.take_back(fresh)
    schema.bring_up(fresh)
    while version_of(fresh) != "0001":
        schema.take_back(fresh)
    with pytest.raises(Conflict, match="has schema 0001"):
        schema.take_back(fresh)
    assert version_of(fresh) == "0001"


async def test_a_newer_schema_is_refused_with_both_versions_and_left_as_it_is(fresh: Place) -> None:
    schema.bring_up(fresh)
    change(fresh, "update alembic_version set version_num = '9999'")
    change(fresh, "update schema_serves set oldest = '9998'")
    with pytest.raises(Conflict) as error:
        await Database(fresh, SystemClock()).open()
    assert "of a newer Compass: it has schema 9999, which serves versions from schema 9998 on" in str(error.value)
    assert f"knows schemas up to {schema.head()}" in str(error.value) and "--schema-back" in error.value.resolution
    assert version_of(fresh) == "9999"


async def test_a_schema_of_a_newer_compass_that_serves_this_one_is_used(fresh: Place) -> None:
    schema.bring_up(fresh)
    change(fresh, "update alembic_version set version_num = '9999'")
    database = Database(fresh, SystemClock())
    await database.open()
    try:
        async with database.reading() as unit:
            assert await unit.host_groups(ProjectRef.of("default", "default")) == []
    finally:
        await database.close()
    assert version_of(fresh) == "9999"


def test_a_migration_that_breaks_leaves_all_as_it_was(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.bring_up(fresh)
    while version_of(fresh) != "0003":
        schema.take_back(fresh)
    change(fresh, "create table schema_serves (something integer)")  # the second table of the next version: its first one is made by then
    with pytest.raises(Exception, match="schema_serves"):
        schema.bring_up(fresh)
    assert version_of(fresh) == "0003"
    with pytest.raises(Exception, match="wrong_keys"):
        rows(fresh, "select * from wrong_keys")


async def test_several_replicas_that_start_at_once_migrate_once(empty: Callable[[], PostgresqlServer], tmp_path: Path) -> None:
    """In processes of their own: Alembic has one context for a process."""
    place = empty()
    code = (
        "import sys; from pathlib import Path; from ckp.compass.store import places, schema; "
        "schema.bring_up(places.PostgresqlServer(Path(sys.argv[1]))); print(schema.head())"
    )
    pipe, environment = asyncio.subprocess.PIPE, {**os.environ, "PYTHONPATH": str(REPO / "src")}
    argv = (sys.executable, "-c", code, str(place.url_file))
    started = [await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment) for _ in range(3)]
    said = [(await asyncio.wait_for(each.communicate(), 120))[0].decode() for each in started]
    assert [each.returncode for each in started] == [0, 0, 0], said
    assert sum("the schema is up to date" in each for each in said) == 1, said
    assert version_of(place) == schema.head()


def test_the_schemas_that_are_planned_with_are_those_that_there_are() -> None:
    scripts = list(ScriptDirectory(str(schema.FOLDER)).walk_revisions())
    assert [script.revision for script in reversed(scripts)] == [known.name for known in schemas.SCHEMAS]


def test_the_schema_is_taken_several_versions_back_at_once(fresh: Place) -> None:
    schema.bring_up(fresh)
    assert schema.take_back(fresh, "0002") == ("0006", "0002")
    assert schema.take_back(fresh, "0002") == ("0002", "0002"), "done already"
    with pytest.raises(Conflict, match="can't be taken back to 0004, which is newer"):
        schema.take_back(fresh, "0004")
    schema.bring_up(fresh)
    with pytest.raises(Conflict, match="0000"):
        schema.take_back(fresh, "0000")


def test_the_projects_that_there_were_are_objects(fresh: Place) -> None:
    schema.bring_up(fresh)
    schema.take_back(fresh)
    for domain, project in (("acme", "web"), ("acme", "shop"), ("other", "web")):
        change(
            fresh, f"insert into host_groups (domain, project, name, description, created_at) values ('{domain}', '{project}', 'g', '', '2026-03-01 00:00:00')"
        )
    schema.bring_up(fresh)
    assert [tuple(row) for row in rows(fresh, "select domain, name, created_by from projects order by domain, name")] == [
        ("acme", "shop", ""),
        ("acme", "web", ""),
        ("other", "web", ""),
    ]
    assert [row[0] for row in rows(fresh, "select name from domains order by name")] == ["acme", "other"]


@pytest.mark.parametrize("statement", ["delete from audit_log", "update audit_log set actor = 'nobody'"])
def test_the_audit_log_only_grows(fresh: Place, statement: str) -> None:
    schema.bring_up(fresh)
    change(fresh, "insert into audit_log (at, actor, domain, project, action, target, detail) values ('2026-03-01 00:00:00', 'ann', '', '', 'a', 't', '{}')")
    with pytest.raises(Exception, match="neither changed nor deleted"):
        change(fresh, statement)
    assert [tuple(row) for row in rows(fresh, "select actor, source, door, result from audit_log")] == [("ann", "", "", "")]
    schema.take_back(fresh)
    change(fresh, statement)

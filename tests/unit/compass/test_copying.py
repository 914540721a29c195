"""A copy of Compass' PostgreSQL, and putting it back: all of it or nothing, into an empty database unless told otherwise, and once for each restore."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from ckp.compass.store import copying
from ckp.compass.store.copying import dump, load
from ckp.compass.store.models import AuditEntry, Base, HostGroup, HostKey, WrongKey
from ckp.compass.store.places import WRITERS, PostgresqlServer, SqliteFile
from ckp.compass.store.schema import bring_up, head, migrating
from ckp.kits.errors import CkpError, Conflict, InvalidInput, VerificationFailed
from ckp.rules.database_copy import Copied, footer, header

AT = datetime(2026, 1, 31, 4, 5, 6, 789012, tzinfo=UTC)
ODD = "a\ttab, a \\ backslash,\na line, {\"json\": 'quoted'}, \\. and ü€😀"


def write(place: PostgresqlServer, *rows: Base) -> None:
    """As Compass has them in its tables."""
    bring_up(place)
    engine = place.migration_engine()
    with Session(engine) as session:
        session.add_all(rows)
        session.commit()
    engine.dispose()


def fill(place: PostgresqlServer, *, groups: int = 3) -> None:
    detail = {"text": ODD, "none": None, "number": 1.5}
    write(
        place,
        HostKey(domain="d", project="p", salt=bytes(range(32)), digest=b"\\x00\n" + bytes(29), created_at=AT),
        *(HostGroup(domain="d", project="p", name=f"g{number}", description=ODD, created_at=AT) for number in range(groups)),
        AuditEntry(at=AT, actor="admin", domain="d", project="p", action="create", target="t", detail=detail),
    )


def copy_of(place: PostgresqlServer) -> bytes:
    out = io.BytesIO()
    dump(place, out)
    return out.getvalue()


def put_back(place: PostgresqlServer, copy: bytes, restore: str = "r1", *, replace: bool = False) -> int:
    return sum(load(place, io.BytesIO(copy), restore=restore, replace=replace).rows.values())


@pytest.fixture
def source(empty: Callable[[], PostgresqlServer]) -> PostgresqlServer:
    place = empty()
    fill(place)
    return place


def test_what_was_copied_is_there_again_to_the_last_byte(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source), empty()
    assert put_back(place, copy) == 6 and copy_of(place) == copy
    fill_one_more(place)
    with place.migration_engine().connect() as connection:
        found = connection.execute(text("select id, name, description from host_groups order by id")).all()
    assert [tuple(row)[:2] for row in found] == [(1, "g0"), (2, "g1"), (3, "g2"), (4, "later")] and found[0][2] == ODD


def fill_one_more(place: PostgresqlServer) -> None:
    """The numbers of rows go on behind those that were put back."""
    write(place, HostGroup(domain="d", project="p", name="later", created_at=AT))


def test_a_copy_is_of_one_moment_and_nobody_waits_for_it(source: PostgresqlServer) -> None:
    class Writing(io.BytesIO):
        """Somebody writes while the first piece is taken."""

        def write(self, data):  # type: ignore[no-untyped-def]
            if not self.tell():
                with source.migration_engine().begin() as connection:
                    connection.execute(text("set local lock_timeout = '2s'"))
                    connection.execute(text("delete from host_keys"))
                    connection.execute(text("insert into host_groups (domain, project, name, description, created_at) values ('d', 'p', 'new', '', now())"))
            return super().write(data)

    before, out = copy_of(source), Writing()
    dump(source, out)
    assert out.getvalue() == before and copy_of(source) != before


def test_data_that_is_there_is_kept_unless_told_otherwise(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source), empty()
    fill(place, groups=1)
    before = copy_of(place)
    with pytest.raises(Conflict, match=r"has data of its own \(audit_log: 1, host_groups: 1, host_keys: 1\), and nothing in it was changed") as caught:
        put_back(place, copy)
    assert "--database keep" in caught.value.resolution and copy_of(place) == before
    assert put_back(place, copy, replace=True) == 6 and copy_of(place) == copy


def test_wrong_keys_and_an_empty_schema_are_no_data(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source), empty()
    write(place, WrongKey(source="192.0.2.1", at=AT))
    assert put_back(place, copy) == 6 and copy_of(place) == copy


def test_the_same_restore_puts_it_back_once(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source), empty()
    assert put_back(place, copy, "r1") == 6
    fill_one_more(place)
    before = copy_of(place)
    assert put_back(place, copy, "r1") == put_back(place, copy, "r1", replace=True) == 0 and copy_of(place) == before
    with pytest.raises(Conflict):
        put_back(place, copy, "r2")
    assert put_back(place, copy, "r2", replace=True) == 6 and copy_of(place) == copy


@pytest.mark.parametrize(
    "how", ["cut in a row", "cut between rows", "without its end", "a row more", "a row less", "more behind it", "another column", "hello"]
)
def test_a_copy_that_is_not_whole_changes_nothing(source: PostgresqlServer, empty: Callable[[], PostgresqlServer], how: str) -> None:
    copy, place = copy_of(source), empty()
    bring_up(place)
    lines = copy.splitlines(keepends=True)
    row = next(number for number, line in enumerate(lines) if b"\tg1\t" in line)
    spoilt = {
        "cut in a row": b"".join(lines[:row]) + lines[row][:20],
        "cut between rows": b"".join(lines[:row]),
        "without its end": b"".join(lines[:-1]),
        "a row more": b"".join([*lines[:row], lines[row].replace(b"g1", b"g9").replace(b"2\t", b"9\t", 1), *lines[row:]]),
        "a row less": b"".join([*lines[:row], *lines[row + 1 :]]),
        "more behind it": copy + b"\n",
        "another column": copy.replace(b'"description"', b'"explanation"', 1),
        "hello": b"hello\n",
    }[how]
    before = copy_of(place)
    with pytest.raises(CkpError):
        put_back(place, spoilt)
    assert copy_of(place) == before
    assert put_back(place, copy) == 6


def test_a_copy_of_an_older_schema_is_brought_up_to_date(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    with migrating(source) as (_, config):
        command.downgrade(config, "0003")
    copy, place = copy_of(source), empty()
    assert b'"schema": "0003"' in copy.splitlines()[0]
    assert put_back(place, copy) == 5, "all but the row of a table that the schema does not have"
    with place.migration_engine().connect() as connection:
        assert {"wrong_keys", "schema_serves"} <= set(inspect(connection).get_table_names())
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == head()
        assert connection.execute(text("select oldest from schema_serves")).scalar_one() == "0003"


def test_a_copy_of_a_newer_schema_is_refused(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source).replace(f'"{head()}"'.encode(), b'"9999"', 1), empty()
    with pytest.raises(Conflict, match="has the schema 9999"):
        put_back(place, copy)


def test_tables_that_are_not_compass_own_stay(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    copy, place = copy_of(source), empty()
    with place.migration_engine().begin() as connection:
        connection.execute(text("create table notes (text text)"))
        connection.execute(text("insert into notes values ('precious')"))
    put_back(place, copy, replace=True)
    with place.migration_engine().connect() as connection:
        assert connection.execute(text("select text from notes")).scalar_one() == "precious"
    assert b"notes" not in copy_of(place)


def test_it_waits_for_its_turn_and_not_without_end(source: PostgresqlServer, empty: Callable[[], PostgresqlServer], monkeypatch: pytest.MonkeyPatch) -> None:
    copy, place = copy_of(source), empty()
    bring_up(place)
    monkeypatch.setattr(copying, "TURN_SECONDS", 1)
    with place.migration_engine().begin() as connection:
        connection.execute(text(f"select pg_advisory_xact_lock({WRITERS})"))
        with pytest.raises(CkpError, match="could not be put into"):
            put_back(place, copy)
    assert put_back(place, copy) == 6


def test_a_database_without_a_schema_and_sqlite_are_not_copied(empty: Callable[[], PostgresqlServer], tmp_path: Path) -> None:
    with pytest.raises(CkpError, match="has no schema of Compass"):
        copy_of(empty())
    with pytest.raises(InvalidInput, match="is SQLite"):
        dump(SqliteFile(tmp_path / "compass.db"), io.BytesIO())


def test_the_command_has_a_digest_behind_the_copy_and_reads_it_back(source: PostgresqlServer, empty: Callable[[], PostgresqlServer]) -> None:
    def run(place: PostgresqlServer, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYTHONPATH": "src", "COMPASS_DATABASE_URL_FILE": str(place.url_file)}
        return subprocess.run([sys.executable, "-m", "ckp.compass", *arguments], input=given, env=environment, capture_output=True, timeout=120, check=False)

    done = run(source, "--dump")
    copy = done.stdout[:-32]
    assert done.returncode == 0 and hashlib.sha256(copy).digest() == done.stdout[-32:] and copy == copy_of(source)
    place = empty()
    loaded = run(place, "--load", "r1", given=copy)
    assert loaded.returncode == 0 and b"6 rows were put back" in loaded.stdout and copy_of(place) == copy
    refused = run(place, "--load", "r2", given=copy)
    assert refused.returncode and b"has data of its own" in refused.stderr
    assert run(place, "--load", "r2", "--replace", given=copy).returncode == 0


tables = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
    st.lists(st.binary(max_size=20).map(lambda row: row.replace(b"\n", b"").replace(b"\\", b"\\\\") + b"\n"), max_size=4),
    max_size=4,
)


@given(tables)
@settings(deadline=None)
def test_a_copy_is_read_as_it_was_written(rows: dict[str, list[bytes]]) -> None:
    whole = header("0001", {name: ["a"] for name in rows})
    whole += b"".join(b"".join(lines) + b"\\.\n" for lines in rows.values()) + footer({name: len(lines) for name, lines in rows.items()})
    copied = Copied(iter(io.BytesIO(whole).readline, b""))
    assert {name: list(copied.rows(name)) for name in copied.tables} == rows
    assert copied.finish() == {name: len(lines) for name, lines in rows.items()}
    for end in range(0, len(whole), 1 + len(whole) // 20):
        with pytest.raises(VerificationFailed):
            cut = Copied(iter(io.BytesIO(whole[:end]).readline, b""))
            for name in cut.tables:
                list(cut.rows(name))
            cut.finish()

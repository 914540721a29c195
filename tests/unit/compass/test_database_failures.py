"""PostgreSQL that does not answer, breaks off, refuses or is slow: what callers are told, what is waited for, and that no password is shown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ckp.compass.app import place_of
from ckp.compass.errors import Unavailable
from ckp.compass.settings import Settings
from ckp.compass.store.database import Database
from ckp.compass.store.places import LOCK_SECONDS, WRITERS, Place, PostgresqlServer
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError, InvalidInput
from tests.support.postgresql_server import PASSWORD, PostgresqlTestServer, postgresql_server
from tests.worlds.compass import BASE, World, make_world
from tests.worlds.tls import make_authority, make_leaf, write_pair

WRONG = "hunter2-is-wrong"


@pytest.fixture
async def world(tmp_path: Path, shared: PostgresqlServer) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=shared) as made:
        yield made


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresqlTestServer]:
    """A server that tests stop and start."""
    with postgresql_server() as made:
        yield made


def given(server: PostgresqlTestServer, folder: Path, database: str, **url: str) -> PostgresqlServer:
    file = folder / "url"
    file.write_text(server.url(database, **url))
    return PostgresqlServer(file, connections=4)


async def test_a_server_that_goes_away_and_comes_back_is_waited_for_by_no_restart(own: PostgresqlTestServer, tmp_path: Path) -> None:
    async with make_world(tmp_path, place=given(own, tmp_path, own.make_database())) as world:
        await world.call("POST", "/host-groups", json={"name": "before"}, expect=201)
        own.stop(signal.SIGQUIT)
        began = time.monotonic()
        error = (await world.call("GET", "/host-approval-rules", expect=503))["error"]
        assert error["code"] == "Unavailable" and "try again" in error["resolution"] and PASSWORD not in str(error)
        assert time.monotonic() - began < 20
        with pytest.raises(Unavailable, match="does not answer"):
            await world.database.ping()
        asked = asyncio.ensure_future(world.call("POST", "/host-groups", json={"name": "meanwhile"}, expect=201))
        await asyncio.sleep(0.5)
        own.start()  # in this thread: the kernel would end it with another one
        await asked  # it had not begun yet, and was tried again
        await world.database.ping()
        assert [group["name"] for group in (await world.call("GET", "/host-groups", expect=200))["items"]] == ["before", "meanwhile"]


async def test_a_start_waits_for_a_server_that_is_not_there_yet(own: PostgresqlTestServer, tmp_path: Path) -> None:
    place = given(own, tmp_path, own.make_database())
    own.stop()
    database = Database(place, SystemClock())
    opening = asyncio.ensure_future(database.open())
    await asyncio.sleep(0.5)
    assert not opening.done()
    own.start()  # in this thread: the kernel would end it with another one
    await asyncio.wait_for(opening, 60)
    await database.ping()
    await database.close()


async def test_connections_that_broke_are_noticed_before_they_are_used(world: World, server: PostgresqlTestServer, prepared: str) -> None:
    await asyncio.gather(*(world.call("GET", "/host-approval-rules", expect=200) for _ in range(8)))
    for _ in range(3):
        server.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{prepared}' and pid <> pg_backend_pid()")
        await asyncio.gather(*(world.call("GET", "/host-approval-rules", expect=200) for _ in range(8)))
        await world.psk()


async def test_a_transaction_that_breaks_in_the_middle_is_told_and_leaves_nothing(world: World, server: PostgresqlTestServer, prepared: str) -> None:
    with pytest.raises(Unavailable):
        async with world.database.unit() as unit:
            await unit.session.execute(text("insert into wrong_keys (source, at) values ('x', now())"))
            pids = (await unit.session.execute(text("select pg_backend_pid()"))).scalar()
            server.execute(f"select pg_terminate_backend({pids})")
            await asyncio.sleep(0.2)
            await unit.session.execute(text("select 1"))
    assert server.execute("select count(*) from wrong_keys", prepared) == [(0,)]


async def test_a_writer_that_stalls_elsewhere_is_waited_for_so_long_and_no_longer(world: World, shared: PostgresqlServer) -> None:
    engine = shared.engine()
    async with engine.connect() as connection:
        await connection.execute(text(f"select pg_advisory_xact_lock({WRITERS})"))
        began = time.monotonic()
        error = (await world.call("POST", "/host-psk/reset", expect=503))["error"]
        assert error["code"] == "Unavailable" and LOCK_SECONDS - 0.5 < time.monotonic() - began < LOCK_SECONDS + 30
    await engine.dispose()
    await world.psk()


async def test_each_connection_has_time_limits_and_the_time_of_utc(shared: PostgresqlServer) -> None:
    engine = shared.engine()
    async with engine.connect() as connection:
        limits = [
            (await connection.execute(text(f"show {name}"))).scalar()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone", "application_name")
        ]
    await engine.dispose()
    assert limits == ["15s", "5s", "15s", "UTC", "ckp-compass"]


async def test_no_more_connections_are_made_than_are_allowed(world: World, server: PostgresqlTestServer, prepared: str) -> None:
    answers = asyncio.gather(*(world.call("GET", "/audit", expect=200) for _ in range(60)))
    most = 0
    while not answers.done():
        [(now,)] = await asyncio.to_thread(server.execute, f"select count(*) from pg_stat_activity where datname = '{prepared}'")
        most = max(most, int(str(now)))
    await answers
    assert 1 <= most <= 4


async def test_what_only_reads_cannot_write(world: World) -> None:
    with pytest.raises(CkpError):
        async with world.database.reading() as unit:
            await unit.session.execute(text("insert into wrong_keys (source, at) values ('x', now())"))


@pytest.mark.parametrize(
    ("path", "body"),
    [("/host-groups", {"name": "a", "description": "zero \0 byte"}), ("/host-groups", {"name": "b", "description": "\ud800"})],
    ids=["a zero byte", "half a character"],
)
async def test_a_text_that_can_not_be_stored_is_the_request_s_fault(place: Place, tmp_path: Path, path: str, body: dict[str, str]) -> None:
    async with make_world(tmp_path, place=place) as world:
        answer = await world.rest.post(
            f"/api/v1/domains/default/projects/default{path}", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (201, 422), answer.text
        assert place.dialect == "sqlite" or answer.status_code == 422
        assert (await world.rest.get(f"{BASE}/host-requests/%00")).status_code in (404, 422)


# Secrets, and who the server is.


async def test_a_wrong_password_is_said_without_showing_it(
    server: PostgresqlTestServer, prepared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = given(server, tmp_path, prepared, password=WRONG)
    with pytest.raises(CkpError, match="password authentication failed") as error:
        await Database(place, SystemClock()).open(wait=0.1)
    chain: list[str] = []
    cause: BaseException | None = error.value
    while cause is not None:
        chain.append(f"{cause!r} {cause}")
        cause = cause.__cause__
    said = "".join([*chain, error.value.render(), repr(place), str(place), *capsys.readouterr()])
    assert WRONG not in said and f"127.0.0.1:{server.port}/{prepared}" in said


async def test_a_new_password_in_the_file_is_used_without_a_restart(own: PostgresqlTestServer, tmp_path: Path) -> None:
    name = own.make_database()
    async with make_world(tmp_path, place=given(own, tmp_path, name)) as world:
        own.execute(f"alter role ckp password '{WRONG}'")
        given(own, tmp_path, name, password=WRONG)
        own.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        await world.psk()
    own.execute(f"alter role ckp password '{PASSWORD}'")


async def test_a_file_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="could not be read from"):
        PostgresqlServer(tmp_path / "none").parameters()
    (tmp_path / "url").write_text(f"postgresql://ckp:{WRONG}@/x")
    with pytest.raises(InvalidInput) as error:
        PostgresqlServer(tmp_path / "url").parameters()
    assert WRONG not in error.value.render()


async def test_a_server_is_verified_by_its_ca_and_its_name(own: PostgresqlTestServer, tmp_path: Path) -> None:
    root, stranger = make_authority("root"), make_authority("stranger")
    cert, key = write_pair(own.folder, "server", *make_leaf(root, server=True))
    for file in (cert, key):
        own_stat = own.data.stat()
        os.chown(file, own_stat.st_uid, own_stat.st_gid)
    key.chmod(0o600)
    own.stop()
    own.start(listen_addresses="127.0.0.1,127.0.0.2", ssl="on", ssl_cert_file=str(cert), ssl_key_file=str(key))
    name = own.make_database()
    ca, other = tmp_path / "ca.crt", tmp_path / "other.crt"
    ca.write_text(root.pem)
    other.write_text(stranger.pem)

    async def said(ca_file: Path | None, host: str = "localhost", options: str = "") -> str:
        (tmp_path / "url").write_text(own.url(name, options=options).replace("127.0.0.1", host).replace("?\n", "\n"))
        database = Database(PostgresqlServer(tmp_path / "url", ca_file), SystemClock())
        try:
            await database.open(wait=0.1)
        except CkpError as error:
            return str(error)
        try:
            async with database.reading() as unit:
                return str((await unit.session.execute(text("select ssl from pg_stat_ssl where pid = pg_backend_pid()"))).scalar())
        finally:
            await database.close()

    try:
        assert await said(ca) == "True"
        assert await said(None) == "True"  # encrypted at least
        assert "certificate verify failed" in await said(other)
        assert "does not match host name" in await said(ca, host="127.0.0.2")
        assert "no CA to verify" in await said(None, options="sslmode=verify-full")
        assert await said(None, options="sslmode=disable") == "False"
    finally:
        own.stop()
        own.start()
    assert "does not support SSL" in await said(None)


def test_which_files_it_is_given_is_in_its_environment_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: Callable[[], Place]) -> None:
    place = empty()
    assert isinstance(place, PostgresqlServer)
    assert str(place_of(Settings(database=tmp_path / "x.db"))) == f"{tmp_path}/x.db"
    monkeypatch.setenv("COMPASS_DATABASE_URL_FILE", str(place.url_file))
    monkeypatch.setenv("COMPASS_DATABASE_CONNECTIONS", "3")
    found = place_of(Settings.from_environment())
    assert isinstance(found, PostgresqlServer) and (found.url_file, found.connections) == (place.url_file, 3)
    assert PASSWORD not in f"{Settings.from_environment()!r}"
    monkeypatch.setenv("COMPASS_DATABASE_CONNECTIONS", "0")
    with pytest.raises(InvalidInput, match="COMPASS_DATABASE_CONNECTIONS"):
        Settings.from_environment()

"""Composition: from settings to a running Compass."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from ckp import __version__
from ckp.clients.kube import Kube
from ckp.compass.releases import ReleaseFile
from ckp.compass.rest.internal import make_internal_app
from ckp.compass.rest.public import make_public_app
from ckp.compass.services import UseCases
from ckp.compass.settings import Settings, read_admin_token
from ckp.compass.store.database import Database
from ckp.compass.store.places import Place, PostgresqlServer, SqliteFile
from ckp.compass.web.app import FrontDoor, WebApp
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError
from ckp.runtime.serving import Draining, Probes, Server, follow_certificate, make_server, run_all

log = structlog.get_logger("compass")

TOKEN_SECONDS = 4.0
"""How often it is looked whether the administrator's token is another one: with it, all sessions end that the one before has opened."""
CONNECTIONS = 4608
"""Of the outer port at a time: open event streams (web.live) and the requests beside them."""
GRACEFUL_SECONDS = 20
"""For requests that are under way when Compass ends, where another replica takes the next ones: creating a cluster may take so long."""


def place_of(settings: Settings) -> Place:
    """Where the database is.

    Raises:
        InvalidInput: the file with PostgreSQL's URL can't be read, or has something else.
    """
    if settings.database_url_file is None:
        return SqliteFile(settings.database)
    place = PostgresqlServer(settings.database_url_file, settings.database_ca_file, settings.database_connections)
    place.parameters()
    return place


async def follow_admin_token(cases: UseCases, path: Path, *, every: float = TOKEN_SECONDS) -> None:
    """Take the administrator's token from its file again whenever it changes. One that can't be read leaves the one before."""
    while True:
        await asyncio.sleep(every)
        try:
            cases.admin.replace(await asyncio.to_thread(read_admin_token, path))
        except CkpError as error:
            log.warning("the administrator's token can't be read again", error=error.brief)


async def serve(settings: Settings, kube: Kube, stop: asyncio.Event) -> None:
    """Run Compass until `stop` is set or a signal comes.

    Raises:
        CkpError: a file or the database cannot be read, or a port is taken; nothing was served.
    """
    token = read_admin_token(settings.admin_token_file)
    releases = ReleaseFile(settings.releases_file)
    clock = SystemClock()
    database = Database(place_of(settings), clock)
    await database.open()
    draining = asyncio.Event()
    try:
        cases = UseCases.wire(settings, database, kube, releases, token, clock)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("ckp_compass_info", "The running version", ["version"], registry=registry).labels(__version__).set(1)

        async def ready() -> str:
            if draining.is_set():
                return "it ends"
            try:
                await asyncio.wait_for(database.ping(), 3)
            except CkpError as error:
                return str(error)
            except Exception as error:  # whatever it is, Compass is not ready
                return f"the database does not answer: {error}"
            return ""

        apps: list[Draining] = []
        web = WebApp(cases)
        Gauge("ckp_compass_streams", "Open event streams of the console", registry=registry).set_function(lambda: web.console.streams.open)

        async def drain() -> None:
            draining.set()
            for app in apps:
                app.draining = True
            web.close()
            log.info("compass drains", seconds=settings.drain_seconds)
            await asyncio.sleep(settings.drain_seconds)

        servers: list[Server] = [
            make_server(Probes(ready, registry), host=settings.bind, port=settings.probe_port),
        ]
        followers = [follow_admin_token(cases, settings.admin_token_file)]
        for app, port, cert, key, most in (
            (FrontDoor(make_public_app(cases), web), settings.port, settings.tls_cert, settings.tls_key, CONNECTIONS),
            (make_internal_app(cases), settings.internal_port, settings.internal_tls_cert, settings.internal_tls_key, 512),
        ):
            if cert is None or key is None:
                raise CkpError(f"no certificate for port {port}", resolution="set COMPASS_TLS_CERT and COMPASS_TLS_KEY")
            try:
                apps.append(Draining(app))
                graceful = {"graceful_seconds": GRACEFUL_SECONDS} if settings.drain_seconds else {}
                server = make_server(apps[-1], host=settings.bind, port=port, cert=cert, key=key, concurrency=most, **graceful)
            except OSError as error:  # ssl.SSLError is one
                raise CkpError(f"the certificate {cert} with its key {key} cannot be loaded: {error}") from error
            servers.append(server)
            if server.config.ssl:
                followers.append(follow_certificate(server.config.ssl, cert, key))
        log.info("compass starts", version=__version__, port=settings.port, internal_port=settings.internal_port, releases=releases.names())
        await run_all(servers, stop, *followers, drain=drain)
    finally:
        await database.close()
        await kube.close()
        log.info("compass ends")

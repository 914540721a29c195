"""Composition: from settings to a running Compass."""

from __future__ import annotations

import asyncio

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
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError
from ckp.runtime.serving import Probes, Server, follow_certificate, make_server, run_all

log = structlog.get_logger("compass")


async def serve(settings: Settings, kube: Kube, stop: asyncio.Event) -> None:
    """Run Compass until `stop` is set or a signal comes.

    Raises:
        CkpError: a file or the database cannot be read, or a port is taken; nothing was served.
    """
    token = read_admin_token(settings.admin_token_file)
    releases = ReleaseFile(settings.releases_file)
    clock = SystemClock()
    database = Database(settings.database, clock)
    await database.open()
    try:
        cases = UseCases.wire(settings, database, kube, releases, token, clock)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("ckp_compass_info", "The running version", ["version"], registry=registry).labels(__version__).set(1)

        async def ready() -> str:
            try:
                await asyncio.wait_for(database.ping(), 3)
            except Exception as error:  # whatever it is, Compass is not ready
                return f"the database does not answer: {error}"
            return ""

        servers: list[Server] = [
            make_server(Probes(ready, registry), host=settings.bind, port=settings.probe_port),
        ]
        followers = []
        for app, port, cert, key in (
            (make_public_app(cases), settings.port, settings.tls_cert, settings.tls_key),
            (make_internal_app(cases), settings.internal_port, settings.internal_tls_cert, settings.internal_tls_key),
        ):
            if cert is None or key is None:
                raise CkpError(f"no certificate for port {port}", resolution="set COMPASS_TLS_CERT and COMPASS_TLS_KEY")
            try:
                server = make_server(app, host=settings.bind, port=port, cert=cert, key=key)
            except OSError as error:  # ssl.SSLError is one
                raise CkpError(f"the certificate {cert} with its key {key} cannot be loaded: {error}") from error
            servers.append(server)
            if server.config.ssl:
                followers.append(follow_certificate(server.config.ssl, cert, key))
        log.info("compass starts", version=__version__, port=settings.port, internal_port=settings.internal_port, releases=releases.names())
        await run_all(servers, stop, *followers)
    finally:
        await database.close()
        await kube.close()
        log.info("compass ends")

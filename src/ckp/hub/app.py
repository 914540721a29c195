"""The wiring: settings in, a running hub out."""

from __future__ import annotations

import asyncio
import gc
import ssl
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from ckp import __version__
from ckp.clients.kube import Kube
from ckp.hub.desired import KubeDesired
from ckp.hub.downloads import Downloads, EnrolmentPort
from ckp.hub.enrolment import CompassClient, Enrolment
from ckp.hub.identity import HostCa, HostId, channel_context, trusted_by_hosts
from ckp.hub.offline import OfflineDetector
from ckp.hub.replicas import RENEW_SECONDS, Replicas
from ckp.hub.sessions.server import AgentServer
from ckp.hub.settings import Settings
from ckp.hub.transport.tls import shrink_tls_buffers
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError
from ckp.runtime.serving import RELOAD_SECONDS, Probes, follow_certificate, make_server, run_all

log = structlog.get_logger("hub")

MANAGER = "ckp-hub"


async def serve(settings: Settings, kube: Kube, stop: asyncio.Event) -> None:
    """Run the hub until `stop` is set or a signal comes.

    Raises:
        CkpError: a file or a port is not as it must be.
    """
    shrink_tls_buffers()
    collect_garbage_rarely()
    clock, registry = SystemClock(), CollectorRegistry()
    ProcessCollector(registry=registry)
    Gauge("ckp_hub_info", "The running version", ["version"], registry=registry).labels(__version__).set(1)
    ca = HostCa(settings.host_ca_cert, settings.host_ca_key, clock)
    context = channel_context(settings.tls_cert, settings.tls_key, ca)
    compass = CompassClient(settings.compass_url, settings.compass_token_file, settings.compass_ca)
    desired = KubeDesired(kube)

    def issue(csr: str, host: HostId) -> tuple[str, str]:
        return ca.sign(csr, host), trusted_by_hosts(settings.server_ca, ca)

    replicas = Replicas(kube, settings.identity, clock, renew=RENEW_SECONDS)
    server = AgentServer(kube, desired, clock, registry, replicas, issue=issue)

    async def ready() -> str:
        if not replicas.healthy:
            return "the Lease of this replica could not be renewed"
        return "" if desired.healthy else "the desired states could not be read from the API server yet"

    try:
        servers = [
            make_server(
                EnrolmentPort(
                    Downloads(settings.packages, settings.server_ca, registry, settings.site), Enrolment(compass, kube, ca, settings.server_ca, registry)
                ),
                host=settings.bind,
                port=settings.enrolment_port,
                cert=settings.tls_cert,
                key=settings.tls_key,
            ),
            make_server(Probes(ready, registry), host=settings.bind, port=settings.probe_port),
        ]
        followers = [follow_certificate(one, settings.tls_cert, settings.tls_key) for one in (context, servers[0].config.ssl) if one]
        async with server.listen(settings.bind, settings.channel_port, context):
            log.info("hub starts", version=__version__, enrolment=settings.enrolment_port, channel=settings.channel_port)
            parts = (desired.run(), replicas.keep(), OfflineDetector(server).run(), follow_host_ca(context, ca, settings.host_ca_cert))
            await run_all(servers, stop, *parts, *followers)
    except OSError as error:
        raise CkpError(f"a port could not be opened, or a certificate did not load: {error}") from error
    finally:
        await compass.close()
        await kube.close()
        log.info("hub has ended")


def collect_garbage_rarely() -> None:
    """Make full garbage collections rare: with thousands of connections, millions of long-lived objects, each takes about a second.

    Meanwhile no host is served, and there is little garbage to find (connections that have ended), which can wait.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


async def follow_host_ca(context: ssl.SSLContext, ca: HostCa, file: Path) -> None:
    """Trust a renewed host CA as well; the old one stays trusted until a restart, so that no host is locked out in between."""
    seen = ca.certificate_pem()
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        try:
            if (now := await asyncio.to_thread(ca.certificate_pem)) != seen:
                context.load_verify_locations(cadata=now)
                seen = now
                log.info("a new host CA is trusted", file=str(file))
        except CkpError as error:
            log.warning("the host CA does not load", error=error.brief)

"""The channel: one WebSocket per host over mutual TLS. Desired state goes out whole, observed state comes in; each side keeps only the newest.

Nothing is queued: a slot holds the newest status to write, an event says that the desired state changed. A slow host, a slow API server or a
flood of reports costs a slot, not memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import ssl
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from ckp.api import kinds
from ckp.api.host_protocol import MAX_FRAME_BYTES, OFFLINE_SECONDS
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.desired import DesiredSource
from ckp.hub.identity import Credential, HostId, credential_of
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.session import Connection
from ckp.hub.transport import handshakes as gate
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError
from ckp.rules import certificates

log = structlog.get_logger("hub.channel")

SEEN_SECONDS = 300.0
"""How often a host of which there is nothing new is written all the same. That it lives, its replica's Lease says."""
LOOKUPS_AT_ONCE, WRITES_AT_ONCE = 9, 8
"""Requests to the API server at once. With watch, list and Lease they fit the twenty connections that the client keeps; all others wait here, in their order,
since in the client's own queue each would cost the more the longer it is, and be given up after some seconds."""
HANDSHAKE_SECONDS = 15.0
OPEN_SECONDS = 20.0
"""A connection that has not finished TLS, and then the upgrade, within these times is closed."""
REPORTS_AT_ONCE = 16
"""Reports that are taken between two looks at what is wanted of hosts: of the API server's watch one piece is read in each round of the event loop,
and when two thousand hosts report at once a round in which all of them were heard would last a second."""
LOOKS_ELSEWHERE = 1
"""So many sweeps running a host's status may name another replica than the one that has its connection."""
PATH = "/v1/agent"
Issue = Callable[[str, HostId], tuple[str, str]]
"""Signs a host's request (PEM): the certificate, and the CAs that the host is to trust."""


def shrink_tls_buffers(size: int = 16_384) -> None:
    """Let asyncio's TLS keep a read buffer of one record for each connection, instead of 256 KiB: with 2,000 hosts that is half a gigabyte.

    The attribute is asyncio's own (Python 3.11 to 3.14) and no public setting; where it is missing, nothing is done and only memory is lost.
    """
    if isinstance(getattr(sslproto.SSLProtocol, "max_size", None), int):
        sslproto.SSLProtocol.max_size = size


class Metrics:
    """What the hub counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connected = Gauge("ckp_hub_connected_hosts", "Hosts with a live channel", registry=registry)
        self.refused = Counter("ckp_hub_refused_total", "Connections that were refused", ["reason"], registry=registry)
        self.frames = Counter("ckp_hub_frames_total", "Frames from hosts", ["type"], registry=registry)
        self.sent = Counter("ckp_hub_desired_sent_total", "Desired states sent", registry=registry)
        self.renewals = Counter("ckp_hub_renewals_total", "Certificates that were renewed over the channel", registry=registry)
        self.writes = Counter("ckp_hub_status_writes_total", "Writes of ByoHost.status", ["outcome"], registry=registry)


class HostConnection(ServerConnection):
    """A connection that carries who it was admitted as."""

    credential: Credential | None = None
    admitted: Obj | None = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.opened = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        """Also if it never opened: nobody waits for it any more."""
        super().connection_lost(exc)
        self.opened.set()


class Channel:
    """All live connections of this hub.

    Args:
        kube: its field manager owns what is written into statuses.
        issue: signs renewals; None: certificates are not renewed over this channel.
        replicas: says who we are among the replicas of the hub.
        offline: seconds of silence after which a host counts as offline.
    """

    def __init__(
        self,
        kube: Kube,
        desired: DesiredSource,
        clock: Clock,
        registry: CollectorRegistry,
        replicas: Replicas,
        *,
        issue: Issue | None = None,
        offline: float = OFFLINE_SECONDS,
        seen_every: float = SEEN_SECONDS,
    ) -> None:
        self.kube = kube
        self.desired = desired
        self.clock = clock
        self.replicas = replicas
        self.metrics = Metrics(registry)
        self.issue = issue
        self.offline = offline
        self.seen_every = seen_every
        self._live: dict[HostId, Connection] = {}
        self._departed: dict[HostId, datetime] = {}
        self._locks: dict[HostId, tuple[asyncio.Lock, list[int]]] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._writes = asyncio.Semaphore(WRITES_AT_ONCE)
        self._reports = asyncio.Semaphore(REPORTS_AT_ONCE)
        self._closing: set[asyncio.Task[None]] = set()
        self.stopping = False

    @property
    def hosts(self) -> list[HostId]:
        """Hosts that are connected to this hub."""
        return sorted(self._live)

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[Server]:
        """Accept connections for the block; at its end all are closed with 1001, and hosts are not marked offline: another hub takes over."""
        limits: dict[str, Any] = {"ping_interval": 20.0, "ping_timeout": 20.0, "close_timeout": 5.0, "max_queue": 2, "write_limit": 16_384}
        door = gate.listening(host, port)
        async with serve(
            self._handle,
            sock=door,
            ssl=context,
            process_request=self._admit,
            compression=None,
            open_timeout=OPEN_SECONDS,
            server_header=None,
            backlog=gate.QUEUE,
        ) as server:

            def connection() -> HostConnection:
                return HostConnection(ServerProtocol(max_size=MAX_FRAME_BYTES, logger=server.logger), server, **limits)

            try:
                async with gate.taking_turns(door, context, connection, lambda made: made.opened, HANDSHAKE_SECONDS):
                    yield server
            finally:
                self.stopping = True

    @contextlib.asynccontextmanager
    async def writing(self, host: HostId) -> AsyncIterator[None]:
        """One writer of a host's status at a time in this process, so that an old connection's last word never follows a new one's first."""
        lock, users = self._locks.setdefault(host, (asyncio.Lock(), [0]))
        users[0] += 1
        try:
            async with lock, self._writes:
                await self.desired.calm()
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._locks.pop(host, None)

    @contextlib.asynccontextmanager
    async def hearing(self) -> AsyncIterator[None]:
        """So many reports at once, and none while changes come in: what is wanted of hosts goes before what they say."""
        async with self._reports:
            await self.desired.calm()
            yield
            await asyncio.sleep(0)

    def is_current(self, live: Connection) -> bool:
        """Whether this is (still) the host's connection."""
        return self._live.get(live.host) is live

    def forget(self, live: Connection) -> None:
        """This connection is over; a newer one of the same host stays."""
        if self.is_current(live):
            del self._live[live.host]
            self._departed[live.host] = live.seen

    def is_absent(self, host: HostId) -> bool:
        """Whether the host has no connection here."""
        return host not in self._live

    def departed(self, host: HostId) -> datetime | None:
        """When a host was last heard of whose connection here has ended not long ago."""
        return self._departed.get(host)

    def forget_departed(self) -> None:
        """Of those that ended longer ago than a host may be silent."""
        now = self.clock.now()
        self._departed = {host: seen for host, seen in self._departed.items() if (now - seen).total_seconds() < self.offline}

    def set_right(self, host: HostId, stands: Obj) -> None:
        """Write the status of a host that is connected here anew, if what stands there is not so; but not while it names another replica.

        Two looks running it may name another one while the host moves. After that its connection here is a half-open rest, or there are two machines
        with one certificate: it is closed, and a clone that comes back shows itself by its boot (status.with_boot).
        """
        if (live := self._live.get(host)) is None:
            return
        if shape.hub_of(stands) in ("", self.replicas.identity):
            live.elsewhere = 0
            live.set_right(stands)
        elif live.is_written:
            live.elsewhere += 1
            if live.elsewhere > LOOKS_ELSEWHERE:
                log.warning("a host is connected to another replica as well", host=str(host), replica=shape.hub_of(stands))
                self._later(live.close(1008, "connected to another replica"))

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the upgrade: the path, the certificate's host, and that this very certificate is the one that the host may use."""
        assert isinstance(connection, HostConnection)
        if request.path.partition("?")[0] != PATH:
            return self._refuse(connection, 404, "NotFound", "there is nothing here")
        try:
            tls = connection.transport.get_extra_info("ssl_object")
            connection.credential = credential_of(tls.getpeercert(binary_form=True) or b"")
        except (CkpError, AttributeError) as error:
            return self._refuse(connection, 403, "NoIdentity", str(error))
        identity = connection.credential.host
        try:
            async with self._lookups:
                host = await self.kube.get(kinds.BYO_HOST, identity.name, identity.namespace)
        except KubeError as error:
            return self._refuse(connection, 503, "Unavailable", error.brief)
        if host is None:
            return self._refuse(connection, 403, "UnknownHost", f"there is no host {identity} any more: enrol again")
        serial = connection.credential.serial
        try:
            if certificates.may_connect(host, serial) and certificates.next_serial(host) == serial:
                host = await self._promote(identity, serial, host)
        except KubeError as error:
            return self._refuse(connection, 503, "Unavailable", error.brief)
        if not certificates.may_connect(host, serial):
            return self._refuse(connection, 403, "WrongCertificate", f"host {identity} has another certificate: this one is revoked")
        connection.admitted = host
        return None

    async def _promote(self, identity: HostId, serial: str, host: Obj) -> Obj:
        """A renewed certificate is used for the first time: from here on it is the only one."""
        log.info("a renewed certificate is in use", host=str(identity))
        return await self.change_serials(identity, host, {"certificateSerial": serial, "nextCertificateSerial": None}, serial)

    async def change_serials(self, identity: HostId, host: Obj, serials: dict[str, str | None], serial: str) -> Obj:
        """Change which certificates hold, as long as `serial` does; the host as it is then.

        Only on top of what was read: between the two the certificate may have been revoked, or the machine been given another one.

        Raises:
            KubeError: the API server does not answer, the host is gone, or it changes all the time (Conflict).
        """

        def as_long_as_it_holds(now: Obj) -> Obj | None:
            return {"status": {"agent": serials}} if certificates.may_connect(now, serial) else None

        changed = await self.kube.change(kinds.BYO_HOST, identity.name, identity.namespace, as_long_as_it_holds, subresource="status", found=host)
        if changed is None:
            raise KubeError(f"host {identity} is gone", code=404, reason="NotFound")
        return changed

    def _refuse(self, connection: HostConnection, status: int, code: str, message: str) -> Response:
        peer = connection.remote_address
        log.warning("connection refused", reason=code, message=message, peer=str(peer[0]) if peer else "")
        self.metrics.refused.labels(code).inc()
        body = json.dumps({"error": {"code": code, "message": message, "details": "", "resolution": ""}})
        response = connection.respond(http.HTTPStatus(status), body)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, HostConnection)
        assert connection.credential is not None
        assert connection.admitted is not None
        connection.opened.set()
        live = Connection(self, connection, connection.credential, connection.admitted)
        connection.admitted = None
        if older := self._live.get(live.host):
            log.info("a newer connection takes over", host=str(live.host))
            self._later(older.close(1008, "replaced by a newer connection"))
        self._live[live.host] = live
        self.metrics.connected.set(len(self._live))
        try:
            await live.run()
        finally:
            self.forget(live)
            self.metrics.connected.set(len(self._live))

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

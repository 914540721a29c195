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
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from websockets.asyncio.server import Server, ServerConnection
from websockets.http11 import Request, Response

from ckp.api import kinds
from ckp.api.errors import error_body
from ckp.api.host_protocol import MAX_FRAME_BYTES, OFFLINE_SECONDS
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.desired import DesiredSource
from ckp.hub.identity import Credential, HostId, credential_of
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.metrics import Metrics
from ckp.hub.sessions.session import AgentSession, Issue
from ckp.hub.transport.websocket import TrackedConnection, serve_websockets
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError
from ckp.rules import certificates

log = structlog.get_logger("hub.channel")

SEEN_SECONDS = 300.0
"""How often the status of a host is written though nothing in it has changed. That the host is connected follows from its replica's Lease."""
LOOKUPS_AT_ONCE, WRITES_AT_ONCE = 9, 8
"""Requests to the API server at once. With watch, list and Lease they fit the twenty connections that the client keeps; all others wait here, in their order,
since in the client's own queue each would cost the more the longer it is, and time out after some seconds."""
REPORTS_AT_ONCE = 16
"""Reports that are taken between two looks at desired states: of the API server's watch one piece is read in each round of the event loop,
and when two thousand hosts report at once a round in which all of them were processed would last a second."""
MAX_FOREIGN_SWEEPS = 1
"""Consecutive sweeps in which a host's status may name another replica than the one that has its session."""
PATH = "/v1/agent"


class HostConnection(TrackedConnection):
    """A connection with the identity that it was admitted as."""

    credential: Credential | None = None
    admitted: Obj | None = None


class AgentServer:
    """All sessions of this hub; the `SessionHost` of each.

    Args:
        kube: its field manager owns what is written into statuses.
        issue: signs renewals; None: certificates are not renewed over this channel.
        replicas: our own name among the replicas of the hub, and the others.
        offline: seconds without a message after which a host counts as offline.
        seen_every: seconds after which the status of a host is written though nothing in it has changed.
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
        self._sessions: dict[HostId, AgentSession] = {}
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
        return sorted(self._sessions)

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[Server]:
        """Accept connections for the block; at its end all are closed with 1001, and hosts are not marked offline: another hub takes over.

        Raises:
            OSError: the port is taken.
        """
        async with serve_websockets(
            host, port, context, connection=HostConnection, handler=self._handle, process_request=self._admit, max_size=MAX_FRAME_BYTES
        ) as server:
            try:
                yield server
            finally:
                self.stopping = True

    @contextlib.asynccontextmanager
    async def writing(self, host: HostId) -> AsyncIterator[None]:
        """One writer of a host's status at a time in this process, so that an old session's last write never follows a new one's first."""
        lock, users = self._locks.setdefault(host, (asyncio.Lock(), [0]))
        users[0] += 1
        try:
            async with lock, self._writes:
                await self.desired.wait_until_quiet()
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._locks.pop(host, None)

    @contextlib.asynccontextmanager
    async def report_slot(self) -> AsyncIterator[None]:
        """So many reports at once, and none while desired states change: desired states are sent before reports are taken."""
        async with self._reports:
            await self.desired.wait_until_quiet()
            yield
            await asyncio.sleep(0)

    def is_current(self, session: AgentSession) -> bool:
        """Whether this is (still) the session of its host."""
        return self._sessions.get(session.host) is session

    def forget(self, session: AgentSession) -> None:
        """This session has ended; a newer one of the same host stays."""
        if self.is_current(session):
            del self._sessions[session.host]
            self._departed[session.host] = session.seen

    def is_absent(self, host: HostId) -> bool:
        """Whether the host has no session here."""
        return host not in self._sessions

    def departed(self, host: HostId) -> datetime | None:
        """When the last message came from a host whose session here ended a short time ago."""
        return self._departed.get(host)

    def forget_departed(self) -> None:
        """Drop the hosts whose last message is older than `offline`."""
        now = self.clock.now()
        self._departed = {host: seen for host, seen in self._departed.items() if (now - seen).total_seconds() < self.offline}

    def correct_status(self, host: HostId, stored: Obj) -> None:
        """Write the status of a host that is connected here again, if the stored one is wrong; but not while it names another replica.

        For up to MAX_FOREIGN_SWEEPS sweeps it may name another one while the host moves. After that its session here is half open, or two machines
        use one certificate: it is closed, and a clone that comes back is recognized by its boot (status.with_boot).
        """
        if (session := self._sessions.get(host)) is None:
            return
        if shape.hub_of(stored) in ("", self.replicas.identity):
            session.foreign_sweeps = 0
            session.correct_status(stored)
        elif session.is_written:
            session.foreign_sweeps += 1
            if session.foreign_sweeps > MAX_FOREIGN_SWEEPS:
                log.warning("a host is connected to another replica as well", host=str(host), replica=shape.hub_of(stored))
                self._start(session.close(1008, "connected to another replica"))

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
            return self._refuse(connection, 403, "UnknownHost", f"host {identity} no longer exists: enrol again")
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
        """Change which certificates are valid, as long as `serial` is; the host as it is then.

        Only on top of what was read: between the two the certificate may have been revoked, or the machine been given another one.

        Raises:
            KubeError: the API server does not answer, the host is gone, or it changes all the time (Conflict).
        """

        def while_valid(now: Obj) -> Obj | None:
            return {"status": {"agent": serials}} if certificates.may_connect(now, serial) else None

        changed = await self.kube.change(kinds.BYO_HOST, identity.name, identity.namespace, while_valid, subresource="status", found=host)
        if changed is None:
            raise KubeError(f"host {identity} is gone", code=404, reason="NotFound")
        return changed

    def _refuse(self, connection: HostConnection, status: int, code: str, message: str) -> Response:
        peer = connection.remote_address
        log.warning("connection refused", reason=code, message=message, peer=str(peer[0]) if peer else "")
        self.metrics.refused.labels(code).inc()
        response = connection.respond(http.HTTPStatus(status), json.dumps(error_body(code, message)))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, HostConnection)
        assert connection.credential is not None
        assert connection.admitted is not None
        connection.opened.set()
        session = AgentSession(self, connection, connection.credential, connection.admitted)
        connection.admitted = None
        if older := self._sessions.get(session.host):
            log.info("a newer connection takes over", host=str(session.host))
            self._start(older.close(1008, "replaced by a newer connection"))
        self._sessions[session.host] = session
        self.metrics.connected.set(len(self._sessions))
        try:
            await session.run()
        finally:
            self.forget(session)
            self.metrics.connected.set(len(self._sessions))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

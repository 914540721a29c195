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
from collections.abc import AsyncIterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
from websockets.http11 import Request, Response

from ckp.api.host_protocol import MAX_FRAME_BYTES, OFFLINE_SECONDS, PROTOCOL, REPORT_SECONDS, AgentMessage, Hello, Report
from ckp.clients import kinds
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.desired import DesiredSource
from ckp.hub.identity import Credential, HostId, credential_of
from ckp.kits.clock import Clock, parse_rfc3339
from ckp.kits.errors import CkpError
from ckp.kits.retry import backoff

log = structlog.get_logger("hub.channel")

HELLO_SECONDS = 15.0
SEND_SECONDS = 30.0
"""A host that does not take a frame within this time is cut off."""
WRITE_GAP_SECONDS = 0.25
"""Shortest time between two writes of one host's status."""
FRAME_BURST, FRAMES_PER_SECOND = 20.0, 5.0
"""A host that reports faster is not read for a while; TCP then slows it down."""
SWEEP_SECONDS = 15.0
LOOKUPS_AT_ONCE = 64
PATH = "/v1/agent"
_MESSAGES: TypeAdapter[Hello | Report] = TypeAdapter(AgentMessage)


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
        self.writes = Counter("ckp_hub_status_writes_total", "Writes of ByoHost.status", ["outcome"], registry=registry)


class HostConnection(ServerConnection):
    """A connection that carries who it was admitted as."""

    credential: Credential | None = None
    admitted: Obj | None = None


class Rejected(Exception):
    """The peer broke the protocol: close with `code` and say why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason[:120]  # a close frame has room for 123 bytes


class Channel:
    """All live connections of this hub.

    Args:
        kube: its field manager owns what is written into statuses.
        offline: seconds of silence after which a host counts as offline.
    """

    def __init__(
        self,
        kube: Kube,
        desired: DesiredSource,
        clock: Clock,
        registry: CollectorRegistry,
        *,
        offline: float = OFFLINE_SECONDS,
        seen_every: float = REPORT_SECONDS,
        sweep_every: float = SWEEP_SECONDS,
    ) -> None:
        self.kube = kube
        self.desired = desired
        self.clock = clock
        self.metrics = Metrics(registry)
        self.offline = offline
        self.seen_every = seen_every
        self._sweep_every = sweep_every
        self._live: dict[HostId, _Live] = {}
        self._locks: dict[HostId, tuple[asyncio.Lock, list[int]]] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._closing: set[asyncio.Task[None]] = set()
        self.stopping = False

    @property
    def hosts(self) -> list[HostId]:
        """Hosts that are connected to this hub."""
        return sorted(self._live)

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[Server]:
        """Accept connections for the block; at its end all are closed with 1001, and hosts are not marked offline: another hub takes over."""
        async with serve(
            self._handle,
            host,
            port,
            ssl=context,
            ssl_handshake_timeout=15.0,
            process_request=self._admit,
            create_connection=HostConnection,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            max_queue=2,
            write_limit=16_384,
            open_timeout=20.0,
            close_timeout=5.0,
            ping_interval=20.0,
            ping_timeout=20.0,
            server_header=None,
            backlog=2048,
        ) as server:
            try:
                yield server
            finally:
                self.stopping = True

    async def sweep(self) -> None:
        """Until cancelled: hosts that were connected, to us or to another hub, and have been silent for too long, become offline."""
        # After a start all hosts get the time to come back, however long no hub was there to hear them.
        await asyncio.sleep(self.offline)
        while True:
            try:
                for host in await self.kube.list(kinds.BYO_HOST):
                    await self._mark_if_silent(host)
            except KubeError as error:
                log.warning("silent hosts cannot be looked for", error=error.brief)
            await asyncio.sleep(self._sweep_every)

    async def _mark_if_silent(self, host: Obj) -> None:
        identity = HostId(host["metadata"]["namespace"], host["metadata"]["name"])
        last_seen = ((host.get("status") or {}).get("agent") or {}).get("lastSeen")
        if identity in self._live or shape.agent_condition(host).get("status") != "True" or not last_seen:
            return
        seen, now = parse_rfc3339(last_seen), self.clock.now()
        if (now - seen).total_seconds() < self.offline:
            return
        async with self.writing(identity):
            if identity in self._live:
                return
            message = f"nothing was heard of the agent since {last_seen}"
            status = shape.with_connection(shape.carried_over(host), connected=False, condition=False, reason="Silent", message=message, seen=seen, at=now)
            try:
                await self.kube.apply(shape.apply_body(identity, status), subresource="status")
                log.info("host is offline", host=str(identity), last_seen=last_seen)
            except KubeError as error:
                if error.code != 404:
                    raise

    @contextlib.asynccontextmanager
    async def writing(self, host: HostId) -> AsyncIterator[None]:
        """One writer of a host's status at a time in this process, so that an old connection's last word never follows a new one's first."""
        lock, users = self._locks.setdefault(host, (asyncio.Lock(), [0]))
        users[0] += 1
        try:
            async with lock:
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._locks.pop(host, None)

    def is_current(self, live: _Live) -> bool:
        """Whether this is (still) the host's connection."""
        return self._live.get(live.host) is live

    def is_absent(self, host: HostId) -> bool:
        """Whether the host has no connection here."""
        return host not in self._live

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
        if shape.certificate_serial(host) != connection.credential.serial:
            return self._refuse(connection, 403, "WrongCertificate", f"host {identity} has another certificate: this one is revoked")
        connection.admitted = host
        return None

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
        live = _Live(self, connection, connection.credential, connection.admitted)
        connection.admitted = None
        if older := self._live.get(live.host):
            log.info("a newer connection takes over", host=str(live.host))
            self._later(older.connection.close(1008, "replaced by a newer connection"))
        self._live[live.host] = live
        self.metrics.connected.set(len(self._live))
        try:
            await live.run()
        finally:
            if self.is_current(live):
                del self._live[live.host]
            self.metrics.connected.set(len(self._live))

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Live:
    """One host's connection."""

    def __init__(self, channel: Channel, connection: HostConnection, credential: Credential, admitted: Obj) -> None:
        self.host = credential.host
        self.connection = connection
        self._serial = credential.serial
        self._channel = channel
        self._status = shape.carried_over(admitted)
        self._seen = channel.clock.now()
        self._written: shape.Status = {}
        self._written_at = float("-inf")
        self._dirty = asyncio.Event()
        self._allowance, self._allowance_at = FRAME_BURST, channel.clock.monotonic()

    async def run(self) -> None:
        """Until the connection ends, for whatever reason."""
        clean, why = False, "the connection broke"
        try:
            hello = await self._hello()
            self._take(hello)
            await self._serve()
        except ConnectionClosedOK:
            clean, why = True, "the agent ended the connection"
        except ConnectionClosed as error:
            why = str(error)
        except TimeoutError:
            why = "the agent fell silent"
            await self._close(1008, "silent for too long")
        except Rejected as error:
            why = error.reason
            self._channel.metrics.refused.labels("Protocol").inc()
            log.warning("connection closed for a bad frame", host=str(self.host), code=error.code, reason=error.reason)
            await self._close(error.code, error.reason)
        await self._farewell(clean=clean, why=why)

    async def _hello(self) -> Hello:
        async with asyncio.timeout(HELLO_SECONDS):
            message = self._parse(await self.connection.recv())
        if not isinstance(message, Hello):
            raise Rejected(1008, "the first frame must be hello")
        if message.protocol != PROTOCOL:
            raise Rejected(1008, f"protocol {message.protocol} is not spoken here, {PROTOCOL} is")
        return message

    async def _serve(self) -> None:
        tasks = [asyncio.ensure_future(part) for part in (self._receive(), self._send(), self._write())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        while True:
            async with asyncio.timeout(self._channel.offline):
                frame = await self.connection.recv()
            self._take(self._parse(frame))
            await self._slow_down()

    def _parse(self, frame: str | bytes) -> Hello | Report:
        if isinstance(frame, bytes):
            raise Rejected(1003, "frames are text")
        try:
            return _MESSAGES.validate_json(frame)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            malformed = first["type"] == "json_invalid"
            where = ".".join(str(part) for part in first["loc"])
            raise Rejected(1007 if malformed else 1008, f"{where}: {first['msg']}" if where else first["msg"]) from None

    def _take(self, message: Hello | Report) -> None:
        self._channel.metrics.frames.labels(message.type).inc()
        self._seen = self._channel.clock.now()
        if isinstance(message, Hello):
            if len(message.facts.model_dump_json()) > shape.MAX_FACTS_BYTES:
                raise Rejected(1008, f"the facts are larger than {shape.MAX_FACTS_BYTES} bytes")
            peer = self.connection.remote_address
            self._status = shape.with_facts(self._status, message.facts, address=str(peer[0]) if peer else "")
        else:
            self._status = shape.with_report(self._status, message, at=self._seen)
        self._dirty.set()

    async def _slow_down(self) -> None:
        now = self._channel.clock.monotonic()
        self._allowance = min(FRAME_BURST, self._allowance + (now - self._allowance_at) * FRAMES_PER_SECOND) - 1
        self._allowance_at = now
        if self._allowance < 0:
            await asyncio.sleep(1 / FRAMES_PER_SECOND)

    async def _send(self) -> None:
        source = self._channel.desired
        changed = source.subscribe(self.host)
        sent: str | None = None
        try:
            await source.wait_synced()
            while True:
                changed.clear()
                frame = source.frame(self.host)
                if frame is not None and frame != sent:
                    async with asyncio.timeout(SEND_SECONDS):
                        await self.connection.send(frame)
                    sent = frame
                    self._channel.metrics.sent.inc()
                await changed.wait()
        finally:
            source.unsubscribe(self.host, changed)

    async def _write(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            now = self._channel.clock.monotonic()
            fresh = self._connected()
            if shape.without_time(fresh) == shape.without_time(self._written) and now - self._written_at < self._channel.seen_every - 1:
                continue
            try:
                async with self._channel.writing(self.host):
                    if not self._channel.is_current(self):
                        return
                    answer = await self._channel.kube.apply(shape.apply_body(self.host, fresh), subresource="status")
            except KubeError as error:
                self._channel.metrics.writes.labels("failed").inc()
                if error.code == 404:
                    raise Rejected(1008, "this host was removed") from None
                log.warning("a status cannot be written", host=str(self.host), error=error.brief, failures=failures)
                await asyncio.sleep(backoff(failures, limit=15.0))
                failures += 1
                self._dirty.set()
                continue
            failures = 0
            self._channel.metrics.writes.labels("done").inc()
            self._written, self._written_at = fresh, now
            self._status = self._status | {"conditions": fresh["conditions"]}
            # Every write is also the question whether this host still is who it says: a removed or re-enrolled one is cut off here.
            if shape.certificate_serial(answer) != self._serial:
                raise Rejected(1008, "this host has another certificate now")
            await asyncio.sleep(WRITE_GAP_SECONDS)

    def _connected(self) -> shape.Status:
        return shape.with_connection(
            self._status,
            connected=True,
            condition=True,
            reason="Connected",
            message="the agent is connected to the hub",
            seen=self._seen,
            at=self._channel.clock.now(),
        )

    async def _farewell(self, *, clean: bool, why: str) -> None:
        """The last word: offline at once if the agent said goodbye; else only not connected, and offline if it does not come back (see sweep)."""
        channel = self._channel
        if channel.stopping or not self._written:
            return
        if not channel.is_current(self):
            return
        channel._live.pop(self.host, None)
        log.info("host has left", host=str(self.host), clean=clean, why=why)
        async with channel.writing(self.host):
            if not channel.is_absent(self.host):
                return
            final = shape.with_connection(
                self._status,
                connected=False,
                condition=False if clean else None,
                reason="Disconnected",
                message=why,
                seen=self._seen,
                at=channel.clock.now(),
            )
            try:
                answer = await channel.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
                if answer is not None and shape.certificate_serial(answer) == self._serial:
                    await channel.kube.apply(shape.apply_body(self.host, final), subresource="status")
            except KubeError as error:
                log.warning("a host's leaving cannot be written; the sweep will notice it", host=str(self.host), error=error.brief)

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            await self.connection.close(code, reason)

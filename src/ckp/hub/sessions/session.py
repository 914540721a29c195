"""One host's session: what it sends is checked and becomes its ByoHost's status, its desired state is sent, its certificate is renewed in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
from cryptography import x509
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FACTS_BYTES, PROTOCOL, AgentMessage, Hello, IssuedCertificate, Renewal, RenewalDue, Report
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.desired import DesiredSource
from ckp.hub.identity import Credential, HostId, serial_text
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.metrics import Metrics
from ckp.hub.transport import websocket
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.retry import backoff
from ckp.rules import certificates

log = structlog.get_logger("hub.channel")

HELLO_SECONDS = 15.0
SEND_SECONDS = 30.0
"""A host that does not take a frame within this time is cut off."""
DISCONNECT_ATTEMPTS = 8
"""Attempts to write that a host has disconnected, while other writers change the same object."""
MAX_REASON_BYTES = 120
WRITE_GAP_SECONDS = 0.25
"""Shortest time between two writes of one host's status."""
FRAME_BURST, FRAMES_PER_SECOND = 20.0, 5.0
"""A host that reports faster is not read for a while; TCP then slows it down."""
RENEWAL_CHECK_SECONDS = 3600.0
"""How often a long session checks whether its certificate is about to expire."""
_MESSAGES: TypeAdapter[Hello | Report | Renewal] = TypeAdapter(AgentMessage)


class Rejected(Exception):
    """The peer broke the protocol, or may not be here any more (`final`): close with `code` and say why."""

    def __init__(self, code: int, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        self.code = code
        self.reason = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")  # a close frame has room for 123 bytes


Issue = Callable[[str, HostId], tuple[str, str]]
"""Signs a host's request (PEM): the certificate, and the CAs that the host is to trust. InvalidInput if the request is not acceptable."""


class SessionHost(Protocol):
    """What a session needs of the server that holds it and all others."""

    kube: Kube
    desired: DesiredSource
    clock: Clock
    replicas: Replicas
    metrics: Metrics
    issue: Issue | None
    offline: float
    seen_every: float
    stopping: bool

    def writing(self, host: HostId) -> AbstractAsyncContextManager[None]:
        """Hold while the host's status is written: one writer a host."""
        ...

    def report_slot(self) -> AbstractAsyncContextManager[None]:
        """Hold while a report is taken: backpressure on hosts that report."""
        ...

    def is_current(self, session: AgentSession) -> bool:
        """Whether this is (still) the session of its host."""
        ...

    def is_absent(self, host: HostId) -> bool:
        """Whether the host has no session here."""
        ...

    def forget(self, session: AgentSession) -> None:
        """This session has ended."""
        ...

    async def change_serials(self, identity: HostId, host: Obj, serials: dict[str, str | None], serial: str) -> Obj:
        """Change which certificates are valid, as long as `serial` is; KubeError if it can't be written."""
        ...


class AgentSession:
    """One host's session, from its admission to its end."""

    def __init__(self, server: SessionHost, connection: ServerConnection, credential: Credential, admitted: Obj) -> None:
        self.host = credential.host
        self.connection = connection
        self._credential = credential
        self._serial = credential.serial
        self._server = server
        self._machine = str((admitted["metadata"].get("annotations") or {}).get(names.MACHINE_ID_ANNOTATION) or "")
        self._renewal_asked = False
        self._status = shape.carried_over(admitted)
        self.seen = server.clock.now()
        self._written: shape.Status = {}
        self._write_again_at = float("-inf")
        self.foreign_sweeps = 0
        """Consecutive sweeps in which the host's status named another replica."""
        self._dirty = asyncio.Event()
        self._allowance, self._allowance_at = FRAME_BURST, server.clock.monotonic()

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
            why = "the agent timed out"
            await self.close(1008, "silent for too long")
        except Rejected as error:
            clean, why = error.final, error.reason
            self._server.metrics.refused.labels("Revoked" if error.final else "Protocol").inc()
            log.warning("connection closed", host=str(self.host), code=error.code, reason=error.reason)
            await self.close(error.code, error.reason)
        await self._write_disconnected(clean=clean, why=why)

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
        done: set[asyncio.Future[None]] = set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while done:
                done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The exception that ended one of them knows this frame, and the frame knew the tasks: garbage that only the collector would find.
            tasks.clear()
            done = set()

    async def _receive(self) -> None:
        while True:
            async with asyncio.timeout(self._server.offline):
                frame = await self.connection.recv()
            async with self._server.report_slot():
                message = self._parse(frame)
                if not isinstance(message, Renewal):
                    self._take(message)
            if isinstance(message, Renewal):
                await self._renew(message)
            await self._slow_down()

    def _parse(self, frame: str | bytes) -> Hello | Report | Renewal:
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
        self._server.metrics.frames.labels(message.type).inc()
        self.seen = self._server.clock.now()
        if isinstance(message, Hello):
            if len(message.facts.model_dump_json()) > MAX_FACTS_BYTES:
                raise Rejected(1008, f"the facts are larger than {MAX_FACTS_BYTES} bytes")
            peer = self.connection.remote_address
            self._status = shape.with_facts(self._status, message.facts, address=str(peer[0]) if peer else "", at=self.seen)
            self._status = shape.with_boot(
                self._status, message.boot_id[:64], self._serial, machine_id=message.facts.machine_id, enrolled_machine=self._machine, at=self.seen
            )
        else:
            self._status = shape.with_report(self._status, message, at=self.seen)
        self._dirty.set()

    async def _slow_down(self) -> None:
        now = self._server.clock.monotonic()
        self._allowance = min(FRAME_BURST, self._allowance + (now - self._allowance_at) * FRAMES_PER_SECOND) - 1
        self._allowance_at = now
        if self._allowance < 0:
            await asyncio.sleep(1 / FRAMES_PER_SECOND)

    async def _send(self) -> None:
        source = self._server.desired
        changed = source.subscribe(self.host)
        sent: str | None = None
        try:
            await source.wait_synced()
            known = source.certificates(self.host)
            while True:
                changed.clear()
                if (now := source.certificates(self.host)) != known:
                    await self._check_identity()
                    known = now
                frame = source.frame(self.host)
                if frame is not None and frame != sent:
                    await self._send_frame(frame)
                    sent = frame
                    self._server.metrics.sent.inc()
                await self._ask_for_renewal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RENEWAL_CHECK_SECONDS):
                        await changed.wait()
        finally:
            source.unsubscribe(self.host, changed)

    async def _send_frame(self, frame: str) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self.connection.send(frame)
        except TimeoutError:
            self.connection.transport.abort()  # a close frame would wait behind what it did not take
            raise Rejected(1008, "the agent does not read what it is sent") from None

    async def _check_identity(self) -> None:
        """The host's certificates changed, or it was removed: is this connection still its own? Rejected if not."""
        try:
            host = await self._server.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
        except KubeError as error:
            log.warning("a host cannot be looked up; a write of its status decides", host=str(self.host), error=error.brief)
            self._rewrite()
            return
        if host is None or host["metadata"].get("deletionTimestamp"):
            raise Rejected(1008, "this host was removed")
        if not certificates.may_connect(host, self._serial):
            raise Rejected(1008, "this certificate is no longer valid", final=True)

    async def _ask_for_renewal(self) -> None:
        if self._server.issue is None or self._renewal_asked or not self._credential.renewal_due(self._server.clock.now()):
            return
        self._renewal_asked = True
        await self._send_frame(RenewalDue().model_dump_json())

    async def _renew(self, message: Renewal) -> None:
        """Sign a new key of this same host. Until it is used for the first time the old certificate stays valid, so a lost answer locks no host out."""
        if self._server.issue is None or not self._renewal_asked:
            raise Rejected(1008, "no renewal was asked for")
        self._renewal_asked = False  # one answer to each question
        try:
            certificate, ca = await asyncio.to_thread(self._server.issue, message.csr, self.host)
        except InvalidInput as error:
            raise Rejected(1008, error.brief) from None
        except CkpError as error:
            log.error("a certificate could not be renewed", host=str(self.host), error=error.brief)
            return
        serial = serial_text(x509.load_pem_x509_certificate(certificate.encode()).serial_number)
        try:
            found = await self._server.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
            if found is None or not self._server.is_current(self):
                raise Rejected(1008, "this host was removed, or has a newer connection")
            now = await self._server.change_serials(self.host, found, {"nextCertificateSerial": serial}, self._serial)
        except KubeError as error:
            log.warning("a renewal could not be written; it is asked for again", host=str(self.host), error=error.brief)
            return
        if certificates.next_serial(now) != serial:
            raise Rejected(1008, "this certificate is no longer valid", final=True)
        await self._send_frame(IssuedCertificate(certificate=certificate, ca=ca).model_dump_json())
        self._server.metrics.renewals.inc()
        log.info("a certificate was renewed", host=str(self.host))

    async def _write(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            now = self._server.clock.monotonic()
            fresh = self._connected()
            if shape.without_time(fresh) == shape.without_time(self._written) and now < self._write_again_at:
                continue
            try:
                async with self._server.writing(self.host):
                    if not self._server.is_current(self):
                        return
                    self._dirty.clear()
                    fresh = self._connected()  # the lock may have come late: what was reported meanwhile is included
                    answer = await self._server.kube.apply(shape.apply_body(self.host, fresh), subresource="status")
            except KubeError as error:
                self._server.metrics.writes.labels("failed").inc()
                if error.code == 404:
                    raise Rejected(1008, "this host was removed") from None
                log.warning("a status cannot be written", host=str(self.host), error=error.brief, failures=failures)
                await asyncio.sleep(backoff(failures, limit=15.0))
                failures += 1
                self._dirty.set()
                continue
            failures = 0
            self._server.metrics.writes.labels("done").inc()
            # At times of their own, though all hosts may have come at one moment.
            self._written, self._write_again_at = fresh, now + self._server.seen_every * random.uniform(0.5, 1.0)
            self._status = self._status | {"conditions": fresh["conditions"]}
            # Every write also checks that the certificate is still valid: a host that was removed or enrolled again is cut off here.
            if not certificates.may_connect(answer, self._serial):
                raise Rejected(1008, "this certificate is no longer valid", final=True)
            await asyncio.sleep(WRITE_GAP_SECONDS)

    @property
    def is_written(self) -> bool:
        """Whether this session has written to the host's status that it is connected."""
        return bool(self._written)

    def correct_status(self, stored: Obj) -> None:
        """Write again if the stored status is not what was written last: a request that timed out may be executed after the one that followed it."""
        if self._written and shape.without_time(shape.written_of(stored)) != shape.without_time(self._written):
            self._rewrite()

    def _rewrite(self) -> None:
        """Write the whole status once more, though nothing in it has changed."""
        self._write_again_at = float("-inf")
        self._dirty.set()

    def _connected(self) -> shape.Status:
        return shape.with_connection(
            self._status,
            hub=self._server.replicas.identity,
            condition=True,
            reason="Connected",
            message="the agent is connected to the hub",
            seen=self.seen,
            at=self._server.clock.now(),
        )

    async def _write_disconnected(self, *, clean: bool, why: str) -> None:
        """The end of the session in the host's status: offline at once if the agent closed it; else not connected, and offline if it does not come back."""
        server = self._server
        if server.stopping or not self._written:
            return
        if not server.is_current(self):
            return
        server.forget(self)
        log.info("host has disconnected", host=str(self.host), clean=clean, why=why)
        async with server.writing(self.host):
            for attempt in range(DISCONNECT_ATTEMPTS):
                try:
                    await self._try_write_disconnected(clean=clean, why=why)
                    return
                except KubeError as error:
                    if error.reason != "Conflict" or attempt == DISCONNECT_ATTEMPTS - 1:
                        log.warning("a host's disconnection cannot be written; the offline detector will write it", host=str(self.host), error=error.brief)
                        return

    async def _try_write_disconnected(self, *, clean: bool, why: str) -> None:
        """Unless another session owns the status: the host is back here or at another replica, or another certificate is in use. KubeError if it fails."""
        server = self._server
        if not server.is_absent(self.host):
            return
        now = await server.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
        if now is None or self._serial not in (certificates.certificate_serial(now), certificates.next_serial(now)):
            return
        if shape.hub_of(now) != server.replicas.identity:
            return
        final = shape.with_connection(
            self._status, hub="", condition=False if clean else None, reason="Disconnected", message=why, seen=self.seen, at=server.clock.now()
        )
        # Only on top of what was read: between the two the host may have come back to another replica.
        await server.kube.apply(shape.apply_body(self.host, final, version=now["metadata"]["resourceVersion"]), subresource="status")

    async def close(self, code: int, reason: str) -> None:
        """End it, also with a peer that does not read."""
        await websocket.close(self.connection, code, reason)

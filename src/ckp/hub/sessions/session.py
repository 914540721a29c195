"""One host's connection: what it sends is checked and becomes its ByoHost's status, what is wanted of it goes out, its certificate is looked after."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import structlog
from cryptography import x509
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FACTS_BYTES, PROTOCOL, AgentMessage, Hello, IssuedCertificate, Renewal, RenewalDue, Report
from ckp.clients.kube import KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.identity import Credential, serial_text
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.retry import backoff
from ckp.rules import certificates

if TYPE_CHECKING:
    from ckp.hub.sessions.server import Channel

log = structlog.get_logger("hub.channel")

HELLO_SECONDS = 15.0
SEND_SECONDS = 30.0
"""A host that does not take a frame within this time is cut off."""
CLOSE_SECONDS = 2.0
"""How long a peer gets to answer our closing. One that reads nothing never does, and one that has sent more than we took is not heard any more."""
LAST_WORDS = 8
"""Attempts to write that a host has left, while others change the same object."""
MAX_REASON_BYTES = 120
WRITE_GAP_SECONDS = 0.25
"""Shortest time between two writes of one host's status."""
FRAME_BURST, FRAMES_PER_SECOND = 20.0, 5.0
"""A host that reports faster is not read for a while; TCP then slows it down."""
RENEWAL_CHECK_SECONDS = 3600.0
"""How often a connection that lasts looks whether its certificate comes to its end."""
_MESSAGES: TypeAdapter[Hello | Report | Renewal] = TypeAdapter(AgentMessage)


class Rejected(Exception):
    """The peer broke the protocol, or may not be here any more (`final`): close with `code` and say why."""

    def __init__(self, code: int, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        self.code = code
        self.reason = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")  # a close frame has room for 123 bytes


class Connection:
    """One host's connection, from its admission to its end."""

    def __init__(self, channel: Channel, connection: ServerConnection, credential: Credential, admitted: Obj) -> None:
        self.host = credential.host
        self.connection = connection
        self._credential = credential
        self._serial = credential.serial
        self._channel = channel
        self._machine = str((admitted["metadata"].get("annotations") or {}).get(names.MACHINE_ID_ANNOTATION) or "")
        self._renewal_asked = False
        self._status = shape.carried_over(admitted)
        self.seen = channel.clock.now()
        self._written: shape.Status = {}
        self._write_again_at = float("-inf")
        self.elsewhere = 0
        """Looks running at which the host's status named another replica."""
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
            await self.close(1008, "silent for too long")
        except Rejected as error:
            clean, why = error.final, error.reason
            self._channel.metrics.refused.labels("Revoked" if error.final else "Protocol").inc()
            log.warning("connection closed", host=str(self.host), code=error.code, reason=error.reason)
            await self.close(error.code, error.reason)
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
            async with asyncio.timeout(self._channel.offline):
                frame = await self.connection.recv()
            async with self._channel.hearing():
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
        self._channel.metrics.frames.labels(message.type).inc()
        self.seen = self._channel.clock.now()
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
            known = source.certificates(self.host)
            while True:
                changed.clear()
                if (now := source.certificates(self.host)) != known:
                    await self._check_identity()
                    known = now
                frame = source.frame(self.host)
                if frame is not None and frame != sent:
                    await self._tell(frame)
                    sent = frame
                    self._channel.metrics.sent.inc()
                await self._ask_for_renewal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RENEWAL_CHECK_SECONDS):
                        await changed.wait()
        finally:
            source.unsubscribe(self.host, changed)

    async def _tell(self, frame: str) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self.connection.send(frame)
        except TimeoutError:
            self.connection.transport.abort()  # what it did not take stands before every word of farewell
            raise Rejected(1008, "the agent does not read what it is sent") from None

    async def _check_identity(self) -> None:
        """The host's certificates changed, or it was removed: is this connection still its own? Rejected if not."""
        try:
            host = await self._channel.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
        except KubeError as error:
            log.warning("a host cannot be looked up; a write of its status decides", host=str(self.host), error=error.brief)
            self._say_again()
            return
        if host is None or host["metadata"].get("deletionTimestamp"):
            raise Rejected(1008, "this host was removed")
        if not certificates.may_connect(host, self._serial):
            raise Rejected(1008, "this certificate is no longer valid", final=True)

    async def _ask_for_renewal(self) -> None:
        if self._channel.issue is None or self._renewal_asked or not self._credential.renewal_due(self._channel.clock.now()):
            return
        self._renewal_asked = True
        await self._tell(RenewalDue().model_dump_json())

    async def _renew(self, message: Renewal) -> None:
        """Sign a new key of this same host. Until it is used for the first time the old certificate stays good, so a lost answer locks nobody out."""
        if self._channel.issue is None or not self._renewal_asked:
            raise Rejected(1008, "no renewal was asked for")
        self._renewal_asked = False  # one answer a question
        try:
            certificate, ca = await asyncio.to_thread(self._channel.issue, message.csr, self.host)
        except InvalidInput as error:
            raise Rejected(1008, error.brief) from None
        except CkpError as error:
            log.error("a certificate could not be renewed", host=str(self.host), error=error.brief)
            return
        serial = serial_text(x509.load_pem_x509_certificate(certificate.encode()).serial_number)
        try:
            found = await self._channel.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
            if found is None or not self._channel.is_current(self):
                raise Rejected(1008, "this host was removed, or has a newer connection")
            now = await self._channel.change_serials(self.host, found, {"nextCertificateSerial": serial}, self._serial)
        except KubeError as error:
            log.warning("a renewal could not be written; it is asked for again", host=str(self.host), error=error.brief)
            return
        if certificates.next_serial(now) != serial:
            raise Rejected(1008, "this certificate is no longer valid", final=True)
        await self._tell(IssuedCertificate(certificate=certificate, ca=ca).model_dump_json())
        self._channel.metrics.renewals.inc()
        log.info("a certificate was renewed", host=str(self.host))

    async def _write(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            now = self._channel.clock.monotonic()
            fresh = self._connected()
            if shape.without_time(fresh) == shape.without_time(self._written) and now < self._write_again_at:
                continue
            try:
                async with self._channel.writing(self.host):
                    if not self._channel.is_current(self):
                        return
                    self._dirty.clear()
                    fresh = self._connected()  # the turn may have come late: what was said meanwhile goes along
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
            # At times of their own, though all hosts may have come at one moment.
            self._written, self._write_again_at = fresh, now + self._channel.seen_every * random.uniform(0.5, 1.0)
            self._status = self._status | {"conditions": fresh["conditions"]}
            # Every write is also the question whether this host still is who it says: a removed or re-enrolled one is cut off here.
            if not certificates.may_connect(answer, self._serial):
                raise Rejected(1008, "this certificate is no longer valid", final=True)
            await asyncio.sleep(WRITE_GAP_SECONDS)

    @property
    def is_written(self) -> bool:
        """Whether the host's status has said since this connection began that it is here."""
        return bool(self._written)

    def set_right(self, stands: Obj) -> None:
        """If what was written last is not what stands there: a request that was given up may be done later than the one that followed it."""
        if self._written and shape.without_time(shape.written_of(stands)) != shape.without_time(self._written):
            self._say_again()

    def _say_again(self) -> None:
        """Write the whole status once more, though there is nothing new."""
        self._write_again_at = float("-inf")
        self._dirty.set()

    def _connected(self) -> shape.Status:
        return shape.with_connection(
            self._status,
            hub=self._channel.replicas.identity,
            condition=True,
            reason="Connected",
            message="the agent is connected to the hub",
            seen=self.seen,
            at=self._channel.clock.now(),
        )

    async def _farewell(self, *, clean: bool, why: str) -> None:
        """The last word: offline at once if the agent said goodbye; else only not connected, and offline if it does not come back (see sweep)."""
        channel = self._channel
        if channel.stopping or not self._written:
            return
        if not channel.is_current(self):
            return
        channel.forget(self)
        log.info("host has left", host=str(self.host), clean=clean, why=why)
        async with channel.writing(self.host):
            for attempt in range(LAST_WORDS):
                try:
                    await self._last_word(clean=clean, why=why)
                    return
                except KubeError as error:
                    if error.reason != "Conflict" or attempt == LAST_WORDS - 1:
                        log.warning("a host's leaving cannot be written; the sweep will notice it", host=str(self.host), error=error.brief)
                        return

    async def _last_word(self, *, clean: bool, why: str) -> None:
        """Unless it is not ours to say: the host is back here or at another replica, or another certificate speaks for it. KubeError if it can't be written."""
        channel = self._channel
        if not channel.is_absent(self.host):
            return
        now = await channel.kube.get(kinds.BYO_HOST, self.host.name, self.host.namespace)
        if now is None or self._serial not in (certificates.certificate_serial(now), certificates.next_serial(now)):
            return
        if shape.hub_of(now) != channel.replicas.identity:
            return
        final = shape.with_connection(
            self._status, hub="", condition=False if clean else None, reason="Disconnected", message=why, seen=self.seen, at=channel.clock.now()
        )
        # Only on top of what was read: between the two the host may have come back to another replica.
        await channel.kube.apply(shape.apply_body(self.host, final, version=now["metadata"]["resourceVersion"]), subresource="status")

    async def close(self, code: int, reason: str) -> None:
        """End it, with a reason for a peer that reads; websockets alone would wait for ever for one that does not."""
        with contextlib.suppress(ConnectionClosed, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.connection.close(code, reason)
        self.connection.transport.abort()

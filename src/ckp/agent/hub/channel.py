"""The channel to the hub: one outbound WebSocket over mutual TLS 1.3. The agent listens on no port.

The channel carries states, not commands: after a reconnect, the whole state is sent again.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from ckp.agent import messages
from ckp.agent.hub.backoff import Backoff
from ckp.agent.hub.errors import clock_problem
from ckp.agent.hub.identity import Identity
from ckp.agent.hub.status import Status
from ckp.agent.node import inventory
from ckp.agent.node.engine import Engine
from ckp.agent.system import registry_login
from ckp.hostkit import proxies
from ckp.hostkit.errors import AgentError
from ckp.hostkit.logs import log

CONNECT_SECONDS, OPEN_SECONDS = 20.0, 60.0
"""Timeouts for TCP, and for TLS with the WebSocket upgrade. A hub to which many hosts reconnect at once limits its handshakes. A host with a TCP
connection is in its queue; if it gave up and connected again, it would be at the end of the queue."""
PING_SECONDS = 20.0
LONGEST_DELAY = 60.0
FACTS_SECONDS = 300.0
"""Seconds between two collections of the facts; they are sent to the hub only if they have changed."""


def tls_context(identity: Identity, pinned_ca: str) -> ssl.SSLContext:
    """TLS 1.3 only, with this host's certificate; the hub must have a certificate of the given CAs for its name. OSError if a file is missing or broken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=identity.ca)
    context.load_verify_locations(cafile=pinned_ca)
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def tcp_connection(url: str) -> socket.socket:
    """Connect to the server of a wss URL, through this host's proxy unless NO_PROXY names it. OSError if that fails or takes CONNECT_SECONDS."""
    parts = urlsplit(url)
    return proxies.connect(parts.hostname or "", parts.port or 443, CONNECT_SECONDS)


class Channel:
    """Keeps one connection to the hub, and gives desired states to the engine. run() returns only when `stop` is set."""

    def __init__(
        self,
        url: str,
        identity: Identity,
        pinned_ca: str,
        engine: Engine,
        status: Status,
        hello: Callable[[], messages.Hello],
        *,
        confirm: Callable[[], None] = lambda: None,
        first_delay: float = 1.0,
        facts_seconds: float = FACTS_SECONDS,
    ) -> None:
        self.url = url
        self.identity = identity
        self.pinned_ca = pinned_ca
        self.engine = engine
        self.status = status
        self.hello = hello
        self.confirm = confirm
        self.facts_seconds = facts_seconds
        self.stop = threading.Event()
        self.report_seconds = messages.REPORT_SECONDS
        self._backoff = Backoff(first_delay, LONGEST_DELAY)
        self._socket: Any = None
        self._opening: Optional[socket.socket] = None

    def close(self) -> None:
        """Make run() return soon; may be called from any thread."""
        self.stop.set()
        websocket, opening = self._socket, self._opening
        if opening is not None:
            with contextlib.suppress(OSError):
                opening.shutdown(socket.SHUT_RDWR)  # or the TLS handshake would be waited for, for up to a minute
        if websocket is not None:
            threading.Thread(target=websocket.close, daemon=True).start()

    def run(self) -> None:
        """Connect, exchange messages, and reconnect with backoff and jitter."""
        while not self.stop.is_set():
            state, message = self._once()
            if self.stop.is_set():
                break
            delay = self._backoff.delay()
            if self.status.set("channel", state, message):
                log(f"channel: {message}")
            self.stop.wait(delay)
        self.status.set("channel", "Closed", "the agent was stopped")

    def _once(self) -> tuple[str, str]:
        """One connection from its beginning to its end; returns state and message for `ckp-agent status`."""
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        try:
            context = tls_context(self.identity, self.pinned_ca)
            tcp = tcp_connection(self.url)
            self._opening = tcp.dup()  # TLS takes the socket over; this is a second descriptor of it
            with connect(
                self.url,
                sock=tcp,
                ssl=context,
                proxy=None,
                compression=None,
                open_timeout=OPEN_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                close_timeout=5,
                max_size=messages.MAX_FRAME_BYTES,
                user_agent_header="ckp-agent",
            ) as websocket:
                self._socket = websocket
                self._close_duplicate()
                if self.stop.is_set():
                    return "Closed", "the agent was stopped"
                self._exchange(websocket)
            return "Disconnected", "the hub closed the connection"
        except ConnectionClosed as error:
            if isinstance(error.__cause__, ssl.SSLError):  # in TLS 1.3 a server rejects a certificate after the client's side of the handshake
                return (
                    "Refused",
                    f"the hub refuses this host's certificate ({error.__cause__.reason or error.__cause__}); enrol again (ckp-agent enrol --again)",
                )
            why = f" ({error.rcvd.code} {error.rcvd.reason})" if error.rcvd is not None else ""
            return "Disconnected", f"the connection to the hub was lost{why}; reconnecting"
        except InvalidStatus as error:
            code = error.response.status_code
            if code in (401, 403):
                if self._fall_back():
                    return "Refused", f"the hub refuses this host's renewed certificate (status {code}); trying the previous one"
                return "Refused", f"the hub refuses this host's certificate (status {code}): it was revoked or replaced; enrol again (ckp-agent enrol --again)"
            return "Disconnected", f"the hub answered with status {code}; reconnecting"
        except ssl.SSLCertVerificationError as error:
            if clock := clock_problem(error):
                return "ClockWrong", clock
            return "NotTrusted", f"the server at {self.url} is not the configured hub: {error.verify_message}"
        except ssl.SSLError as error:
            return "Refused", f"the hub refuses the TLS connection: {error.reason or error}"
        except (OSError, EOFError, InvalidHandshake, TimeoutError) as error:
            return "Disconnected", f"the hub {self.url} can't be reached: {error or type(error).__name__}; reconnecting"
        finally:
            self._socket = None
            self._close_duplicate()

    def _close_duplicate(self) -> None:
        """The connection is open, or failed: the second descriptor, by which close() could interrupt it, is no longer needed."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.close()

    def _fall_back(self) -> bool:
        try:
            return self.identity.fall_back()
        except OSError as error:
            log(f"channel: the previous certificate can't be used: {error}")
            return False

    def _exchange(self, websocket: Any) -> None:
        hello = self.hello()
        websocket.send(messages.to_json(hello))
        closed = threading.Event()
        sender = threading.Thread(target=self._send_reports, args=(websocket, closed, hello), name="reports", daemon=True)
        sender.start()
        try:
            for frame in websocket:
                try:
                    message = messages.from_hub(frame)
                except messages.MalformedMessage as error:
                    log(f"channel: a frame was ignored: {error}")
                    continue
                if isinstance(message, messages.Desired):
                    self._apply(message)
                elif isinstance(message, messages.RenewalDue):
                    self._request_renewal(websocket)
                elif self._renewed(message):
                    return  # to reconnect with the new certificate
        finally:
            closed.set()
            self.engine.wake()
            sender.join(timeout=5)

    def _apply(self, desired: messages.Desired) -> None:
        if self.identity.host and desired.host != self.identity.host:
            log(f"channel: a desired state for the host {desired.host!r} was ignored: this host is {self.identity.host!r}")
            return
        self.report_seconds = min(300.0, max(0.1, desired.report_seconds))
        self._backoff.reset()
        self.identity.confirm()
        if self.status.set("channel", "Connected", f"connected to {self.url}"):
            log(f"channel: connected to {self.url}")
        if registry_login.keep(desired.registry_login):
            log(f"channel: {'the login to the registry has changed' if desired.registry_login else 'the registry asks for no password any longer'}")
        self.engine.submit(desired)
        self.confirm()

    def _request_renewal(self, websocket: Any) -> None:
        try:
            csr = self.identity.make_next_csr()
        except (AgentError, OSError) as error:
            log(f"channel: no signing request for the renewal could be made; the hub asks again at the next connection: {error}")
            return
        websocket.send(messages.to_json(messages.Renewal(csr=csr)))

    def _renewed(self, issued: messages.IssuedCertificate) -> bool:
        """Store an issued certificate. Returns whether it is in use from now on."""
        try:
            self.identity.store_next(issued)
        except (AgentError, OSError) as error:
            log(f"channel: the renewed certificate can't be used, the present one is kept: {error}")
            return False
        log("channel: this host has a new certificate and key")
        return True

    def _send_reports(self, websocket: Any, closed: threading.Event, sent: messages.Hello) -> None:
        from websockets.exceptions import ConnectionClosed

        due = time.monotonic() + self.facts_seconds
        try:
            while not closed.is_set():
                report, version = self.engine.report()
                self.status.flush()
                websocket.send(messages.to_json(report))
                if time.monotonic() >= due:
                    due = time.monotonic() + self.facts_seconds
                    now = self.hello()
                    if not inventory.same(now.facts, sent.facts):
                        websocket.send(messages.to_json(now))
                        sent = now
                self.engine.wait_change(version, self.report_seconds, closed)
        except (ConnectionClosed, OSError):
            pass  # the reading thread reports why

"""Several HTTP servers in one process: TLS that follows its files, probes and metrics on a port of their own, one graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger("serving")

RELOAD_SECONDS = 30.0


REQUEST_SECONDS = 20.0


class PunctualProtocol(H11Protocol):
    """uvicorn's HTTP with a timeout for requests: its own protocol lets a connection that sends nothing, or half a request, stay for ever.

    As many of these as connections are allowed at once would block all clients, without any credential.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a peer that has a quarter of all places waiting already."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        waiting = [one for one in self.connections if isinstance(one, PunctualProtocol) and one._deadline is not None and one.client and one.client[0] == peer]
        if self.limit_concurrency is not None and len(waiting) >= max(1, self.limit_concurrency // 4):
            transport.abort()
            return
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """The timeout runs until the whole request is here."""
        super().data_received(data)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timeout."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            self._cancel_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process that runs several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals: `run_all` does, once for all."""
        yield

    @property
    def port(self) -> int:
        """The port that it listens on, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])


class Draining:
    """An ASGI application that can be told to let its clients go: answers then end their connections, so that the next request finds another replica."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.draining = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""

        async def closing(message: Any) -> None:
            if self.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing)


def make_server(
    app: Any, *, host: str, port: int, cert: Path | None = None, key: Path | None = None, concurrency: int = 512, graceful_seconds: int = 4
) -> Server:
    """A server for an ASGI application; plain HTTP without a certificate.

    Args:
        concurrency: connections and requests at once; more are answered with 503, so that memory stays bounded.
        graceful_seconds: how long requests get that are under way when it ends.
    """
    config = uvicorn.Config(
        app,
        http=PunctualProtocol,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=concurrency,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=graceful_seconds,  # idle TLS connections of clients that do not answer our close would hold it to the end
        ssl_certfile=str(cert) if cert else None,
        ssl_keyfile=str(key) if key else None,
    )
    config.load()
    if config.ssl:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return Server(config)


async def follow_certificate(context: ssl.SSLContext, cert: Path, key: Path, *, every: float = RELOAD_SECONDS) -> None:
    """Reload the certificate whenever its files change (cert-manager renews them); new connections then use it."""
    seen = _stamp(cert, key)
    while True:
        await asyncio.sleep(every)
        if (now := _stamp(cert, key)) == seen:
            continue
        try:
            # First into an unused context: a pair that does not fit would leave the one in use with a certificate and no key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
            context.load_cert_chain(cert, key)
            seen = now
            log.info("certificate reloaded", cert=str(cert))
        except OSError as error:  # ssl.SSLError is one
            # Files are swapped one after the other: the pair fits at the next look.
            log.warning("the new certificate does not load yet", cert=str(cert), error=str(error))


def _stamp(*files: Path) -> tuple[float, ...]:
    return tuple(file.stat().st_mtime if file.exists() else 0.0 for file in files)


class Probes:
    """A tiny ASGI application: /healthz (the process lives), /readyz (it can do its work), /metrics."""

    def __init__(self, ready: Callable[[], Awaitable[str]], registry: CollectorRegistry) -> None:
        """`ready` gives '' or the reason why not."""
        self._ready = ready
        self._registry = registry

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answer one request."""
        status, body, kind = 404, b"not found", "text/plain"
        if scope["path"] == "/healthz":
            status, body = 200, b"ok"
        elif scope["path"] == "/readyz":
            reason = await self._ready()
            status, body = (503, reason.encode()) if reason else (200, b"ok")
        elif scope["path"] == "/metrics":
            status, body, kind = 200, generate_latest(self._registry), CONTENT_TYPE_LATEST
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def run_all(servers: Sequence[Server], stop: asyncio.Event, *others: Awaitable[None], drain: Callable[[], Awaitable[None]] | None = None) -> None:
    """Serve until `stop` is set, SIGTERM or SIGINT comes, or one of the parts ends (a failure, which is raised).

    Args:
        drain: after it was told to stop, everything is served on until this ends.
    """
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.add_signal_handler(name, stop.set)
    serving = [asyncio.ensure_future(server.serve()) for server in servers]
    background = [asyncio.ensure_future(other) for other in others]
    stopping = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*serving, *background, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
        if drain is not None and stopping in done:
            draining = asyncio.ensure_future(drain())
            await asyncio.wait([*serving, *background, draining], return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
    finally:
        for server in servers:
            server.should_exit = True
        for task in (*background, stopping):
            task.cancel()
        await asyncio.gather(*serving, *background, stopping, return_exceptions=True)

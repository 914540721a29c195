"""The probes' and Prometheus' small HTTP server inside a pod: /healthz, /readyz, /metrics, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from prometheus_client import generate_latest

READ_TIMEOUT = 5.0
MAX_REQUEST = 8192


@dataclass
class Health:
    """Answers on `port`; `ready` says whether /readyz is 200."""

    port: int = 9090
    ready: bool = False

    async def serve(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._answer, "0.0.0.0", self.port, limit=MAX_REQUEST)
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_TIMEOUT)
            status, kind, body = self._route(request.split(b" ", 2)[1].decode(errors="replace"))
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await asyncio.wait_for(writer.drain(), READ_TIMEOUT)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, IndexError):
            pass
        finally:
            writer.close()

    def _route(self, path: str) -> tuple[str, str, bytes]:
        if path == "/healthz":
            return "200 OK", "text/plain", b"ok\n"
        if path == "/readyz":
            return ("200 OK", "text/plain", b"ok\n") if self.ready else ("503 Service Unavailable", "text/plain", b"starting\n")
        if path == "/metrics":
            return "200 OK", "text/plain; version=0.0.4", generate_latest()
        return "404 Not Found", "text/plain", b"not found\n"

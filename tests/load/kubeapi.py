"""The simulated API server over loopback HTTP, so that a hub of its own process talks to it by its real client.

Only what a hub asks for: get, list in chunks, watch, server-side apply and merge patch. Its time and memory are the bench's, not the hub's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ckp.api import kinds
from ckp.api.kinds import Kind
from ckp.clients.kube import KubeError
from tests.simulators.kube import KubeSimulator

KINDS = {(kind.group, kind.version, kind.plural): kind for kind in vars(kinds).values() if isinstance(kind, Kind)}
HISTORY = 8000
"""Events that are kept for watches; a client that is further behind lists again, as with etcd after its compaction."""


class KubeApi:
    """One listening face of a simulator. `requests` counts what was asked, by verb."""

    def __init__(self, simulator: KubeSimulator) -> None:
        self.simulator = simulator
        self.requests: dict[str, int] = {}
        self.port = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[KubeApi]:
        """Serve on a free port of loopback for the block."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ", 2)
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._answer(method, target, headers.get("content-type", ""), body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, method: str, target: str, content: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        kind, namespace, name, subresource = _place(url.path)
        self._trim()
        try:
            if method == "GET" and name:
                self._count("get")
                found = await self.simulator.get(kind, name, namespace)
                if found is None:
                    raise KubeError(f"{kind.plural} {name!r} not found", code=404, reason="NotFound")
                _reply(writer, 200, found)
            elif method == "GET" and query.get("watch") in ("true", "1"):
                self._count("watch")
                await self._watch(kind, namespace, query, writer)
            elif method == "GET":
                self._count("list")
                _reply(writer, 200, self._list(kind, namespace, query))
            elif method == "PATCH" and "apply" in content:
                self._count("apply")
                _reply(writer, 200, await self.simulator.apply(json.loads(body), subresource=subresource))
            elif method == "PATCH":
                self._count("merge")
                _reply(writer, 200, await self.simulator.merge(kind, name, namespace, json.loads(body), subresource=subresource))
            else:
                raise KubeError(f"{method} is not for this bench", code=405, reason="MethodNotAllowed")
        except KubeError as error:
            _reply(writer, error.code, {"kind": "Status", "apiVersion": "v1", "code": error.code, "reason": error.reason, "message": error.brief})

    def _list(self, kind: Kind, namespace: str | None, query: dict[str, str]) -> dict[str, Any]:
        begin, most = int(query.get("continue") or 0), int(query.get("limit") or 1 << 30)
        items = self.simulator.matching(kind, namespace, _labels(query))
        more = {"continue": str(begin + most)} if begin + most < len(items) else {}
        meta = {"resourceVersion": str(self.simulator.version)} | more
        return {"apiVersion": kind.api_version, "kind": f"{kind.kind}List", "metadata": meta, "items": items[begin : begin + most]}

    async def _watch(self, kind: Kind, namespace: str | None, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        seconds = int(query.get("timeoutSeconds") or 240)
        async for event, obj in self.simulator.watch(kind, namespace, query.get("resourceVersion", "0"), labels=_labels(query), seconds=seconds):
            line = json.dumps({"type": event, "object": obj}).encode() + b"\n"
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    def _trim(self) -> None:
        self.simulator.calls.clear()
        self.simulator.trim_history(HISTORY, beyond=2 * HISTORY)

    def _count(self, verb: str) -> None:
        self.requests[verb] = self.requests.get(verb, 0) + 1


def _place(path: str) -> tuple[Kind, str | None, str, Any]:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return KINDS[group, version, rest[0]], namespace, rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""


def _labels(query: dict[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, value = part.partition("=")
        found[name] = value if equals else None
    return found


def _reply(writer: asyncio.StreamWriter, status: int, obj: Any) -> None:
    body = json.dumps(obj).encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
    writer.write(body)

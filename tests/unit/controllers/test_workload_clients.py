"""Clients of workload clusters are kept from pass to pass, and none outlives its use: against servers that count connections."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Kube, KubeError
from ckp.controllers import workload
from ckp.controllers.workload import IDLE, WorkloadClients, workload_cluster
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"


class Server:
    """An API server of which only the connections matter: it answers each request that there is nothing."""

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.hold.wait()
                body = json.dumps({"kind": "Status", "code": 404, "reason": "NotFound", "message": "none", "status": "Failure"}).encode()
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def kubeconfig(self, user: str = "admin") -> str:
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": user, "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": user}}],
                "current-context": "x",
            }
        )

    async def is_open(self, count: int) -> bool:
        for _ in range(200):
            if self.open == count:
                return True
            await asyncio.sleep(0.01)
        return False


class Bench:
    def __init__(self, server: Server) -> None:
        self.server, self.kube = server, KubeSimulator(namespaces=(TENANT,))
        self.clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
        self.made: list[Kube] = []
        self.clients = WorkloadClients(self.make, self.clock, most=3)

    def make(self, kubeconfig: str) -> Kube:
        self.made.append(workload.connect(kubeconfig))
        return self.made[-1]

    async def cluster(self, name: str, user: str = "admin") -> None:
        data = {"value": base64.b64encode(self.server.kubeconfig(user).encode()).decode()}
        await self.kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-kubeconfig", "namespace": TENANT}, "data": data})

    async def ask(self, name: str = "demo") -> Any:
        async with workload_cluster(self.kube, TENANT, name, self.clients) as client:
            return None if client is None else await client.get(kinds.NODE, "n") is None


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = Server()
    await server.start()
    made = Bench(server)
    yield made
    await made.clients.close()
    assert await server.is_open(0), "no socket is left when the process ends"
    server.server.close()


async def test_one_client_and_its_connection_serve_pass_after_pass(bench: Bench) -> None:
    await bench.cluster("demo")
    for _ in range(5):
        assert await bench.ask()
    assert (len(bench.made), bench.server.connections) == (1, 1)


async def test_controllers_share_it_at_the_same_time(bench: Bench) -> None:
    await bench.cluster("demo")
    assert await asyncio.gather(*(bench.ask() for _ in range(8))) == [True] * 8
    assert len(bench.made) == 1 and await bench.server.is_open(bench.server.connections)


async def test_another_kubeconfig_is_another_client_and_closes_the_one_before(bench: Bench) -> None:
    await bench.cluster("demo")
    await bench.ask()
    await bench.cluster("demo", user="renewed")
    await bench.ask()
    assert (len(bench.made), bench.server.connections) == (2, 2) and await bench.server.is_open(1)


async def test_a_client_that_is_in_use_is_closed_by_its_last_user(bench: Bench) -> None:
    await bench.cluster("demo")
    bench.server.hold.clear()
    asking = asyncio.create_task(bench.ask())
    assert await bench.server.is_open(1)
    await bench.clients.forget(TENANT, "demo")
    assert bench.server.open == 1
    bench.server.hold.set()
    assert await asking and await bench.server.is_open(0)


async def test_a_cluster_that_is_gone_leaves_no_socket(bench: Bench) -> None:
    await bench.cluster("demo")
    await bench.ask()
    await bench.kube.delete(kinds.SECRET, "demo-kubeconfig", TENANT)
    assert await bench.ask() is None and await bench.server.is_open(0)
    await bench.cluster("other")
    await bench.ask("other")
    bench.clock.advance(IDLE + 1)
    await bench.cluster("third")
    await bench.ask("third")
    assert await bench.server.is_open(1), "nobody has asked for the other one in a long time"


async def test_the_one_that_was_not_used_for_longest_is_closed_where_there_are_too_many(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        await bench.cluster(name)
        await bench.ask(name)
    await bench.ask("a")
    await bench.cluster("d")
    await bench.ask("d")
    assert await bench.server.is_open(3)
    await bench.ask("a")
    assert len(bench.made) == 4
    await bench.ask("b")
    assert len(bench.made) == 5, "of a, b and c it was b"


async def test_a_look_that_is_cancelled_or_fails_gives_its_client_back(bench: Bench) -> None:
    await bench.cluster("demo")
    bench.server.hold.clear()
    asking = asyncio.create_task(bench.ask())
    assert await bench.server.is_open(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    bench.server.hold.set()
    assert await bench.server.is_open(0) and await bench.ask() and len(bench.made) == 1
    bench.server.server.close()
    port, bench.server.port = bench.server.port, 1
    await bench.cluster("away")
    bench.server.port = port
    made = len(bench.made)
    for number in (1, 2):
        with pytest.raises(KubeError):
            await bench.ask("away")
        assert len(bench.made) == made + number, "what did not answer is not kept"
    await bench.clients.forget(TENANT, "demo")
    assert await bench.server.is_open(0)

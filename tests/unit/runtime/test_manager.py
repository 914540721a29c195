"""A process of controllers: its probes, its lease, its end. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from ckp.api import kinds
from ckp.api.kinds import LEASE, Kind
from ckp.clients.kube import KubeError
from ckp.runtime.controller import Controller, Result
from ckp.runtime.lease import LeaderLease, LeaseLost
from ckp.runtime.manager import Manager
from ckp.runtime.serving import Server
from tests.simulators.kube import KubeSimulator


class Counting:
    """Counts what it reconciles."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def reconcile(self, namespace: str, name: str) -> Result:
        self.names.append(name)
        return Result()


@dataclass
class Running:
    kube: KubeSimulator
    reconciler: Counting
    probes: Server
    stop: asyncio.Event
    task: asyncio.Future[None]

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{self.probes.port}{path}")

    async def eventually(self, path: str, status: int) -> httpx.Response:
        async with asyncio.timeout(5):
            while (response := await self.get(path)).status_code != status:
                await asyncio.sleep(0.02)
        return response

    async def holder(self) -> str | None:
        lease = await self.kube.get(LEASE, "test", "default")
        return lease["spec"]["holderIdentity"] if lease else None


@contextlib.asynccontextmanager
async def running(kube: KubeSimulator) -> AsyncIterator[Running]:
    manager = Manager(kube, LeaderLease(kube, "default", "test", "us", duration=1.0, renew=0.1))
    reconciler = Counting()
    manager.controllers.append(Controller("test", reconciler, manager.informer(kinds.CONFIG_MAP)))
    probes, stop = manager.probes("127.0.0.1", 0), asyncio.Event()
    task = asyncio.ensure_future(manager.run(probes, stop))
    try:
        async with asyncio.timeout(5):
            while not probes.started:
                await asyncio.sleep(0.01)
        yield Running(kube, reconciler, probes, stop, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def kube() -> KubeSimulator:
    kube = KubeSimulator()
    await kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "default"}})
    return kube


async def test_it_is_alive_at_once_and_ready_when_all_objects_were_listed(kube: KubeSimulator) -> None:
    def away(verb: str, kind: Kind, _name: str) -> KubeError | None:
        return KubeError("away", code=0) if (verb, kind) == ("list", kinds.CONFIG_MAP) else None

    kube.on_fault(away)
    async with running(kube) as process:
        assert (await process.get("/healthz")).status_code == 200
        response = await process.get("/readyz")
        assert (response.status_code, response.text) == (503, "not listed yet: ConfigMap")
        assert process.reconciler.names == []
        kube.on_fault(None)
        await process.eventually("/readyz", 200)
        async with asyncio.timeout(5):
            while not process.reconciler.names:
                await asyncio.sleep(0.02)
        assert 'ckp_reconciles_total{controller="test",outcome="done"}' in (await process.get("/metrics")).text
        assert (await process.get("/else")).status_code == 404


async def test_at_its_end_it_releases_the_lease(kube: KubeSimulator) -> None:
    async with running(kube) as process:
        async with asyncio.timeout(5):
            while await process.holder() != "us":
                await asyncio.sleep(0.02)
        process.stop.set()
        await asyncio.wait_for(process.task, 5)
        assert await process.holder() == ""


def unreachable(verb: str, kind: Kind, _name: str) -> KubeError | None:
    """For who reads or renews the lease; the test's own merges go on."""
    return KubeError("away", code=0) if kind == LEASE and verb in ("get", "replace") else None


async def test_while_it_can_not_renew_its_lease_it_does_nothing_and_goes_on_afterwards(kube: KubeSimulator) -> None:
    async with running(kube) as process:
        async with asyncio.timeout(5):
            while not process.reconciler.names:
                await asyncio.sleep(0.02)
        kube.on_fault(unreachable)
        await asyncio.sleep(1.0)  # the lease's duration
        process.reconciler.names.clear()
        await kube.merge(kinds.CONFIG_MAP, "one", "default", {"data": {"a": "b"}})
        await asyncio.sleep(0.3)
        assert process.reconciler.names == [] and not process.task.done(), "it waits, in the same process"
        assert (await process.get("/readyz")).status_code == 200
        kube.on_fault(None)
        async with asyncio.timeout(5):
            while not process.reconciler.names:
                await asyncio.sleep(0.02)
        assert await process.holder() == "us"


async def test_if_another_took_the_lease_meanwhile_it_ends(kube: KubeSimulator) -> None:
    async with running(kube) as process:
        async with asyncio.timeout(5):
            while await process.holder() != "us":
                await asyncio.sleep(0.02)
        kube.on_fault(unreachable)
        await asyncio.sleep(1.0)
        await kube.merge(LEASE, "test", "default", {"spec": {"holderIdentity": "another", "leaseTransitions": 1}})
        kube.on_fault(None)
        with pytest.raises(BaseException) as caught:
            await asyncio.wait_for(process.task, 5)
        assert isinstance(caught.value, LeaseLost) or (isinstance(caught.value, BaseExceptionGroup) and caught.group_contains(LeaseLost))
        assert await process.holder() == "another"


async def test_when_the_lease_is_lost_it_ends_and_touches_it_no_more(kube: KubeSimulator) -> None:
    async with running(kube) as process:
        async with asyncio.timeout(5):
            while await process.holder() != "us":
                await asyncio.sleep(0.02)
        await kube.merge(LEASE, "test", "default", {"spec": {"holderIdentity": "another"}})
        with pytest.raises(BaseExceptionGroup) as caught:
            await asyncio.wait_for(process.task, 5)
        assert caught.group_contains(LeaseLost)
        assert await process.holder() == "another"

"""The client and the controller runtime against a real API server."""

from __future__ import annotations

import asyncio
import time

import pytest

from ckp.api.kinds import CONFIG_MAP, EVENT, LEASE
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.retry import wait_until_async
from ckp.runtime.controller import Controller, Result
from ckp.runtime.informer import Informer
from ckp.runtime.lease import LeaderLease
from tests.support.control_plane import TestControlPlane

pytestmark = pytest.mark.component


def config_map(namespace: str, name: str, **data: str) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


async def test_get_of_what_is_not_there_is_none_and_delete_says_so(kube: Kube, namespace: str) -> None:
    assert await kube.get(CONFIG_MAP, "nothing", namespace) is None
    assert await kube.delete(CONFIG_MAP, "nothing", namespace) is False


async def test_events_are_selected_by_what_they_are_about_and_their_reason(kube: Kube, namespace: str) -> None:
    for name, pod, reason in (("a", "p", "Unhealthy"), ("b", "p", "Pulled"), ("c", "other", "Unhealthy")):
        about = {"kind": "Pod", "name": pod, "namespace": namespace}
        await kube.create({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace}, "involvedObject": about, "reason": reason})
    fields = {"involvedObject.kind": "Pod", "involvedObject.name": "p", "reason": "Unhealthy"}
    assert [item["metadata"]["name"] for item in await kube.list(EVENT, namespace, fields=fields)] == ["a"]


async def test_a_stale_replace_is_a_conflict(kube: Kube, namespace: str) -> None:
    first = await kube.create(config_map(namespace, "a", x="1"))
    second = await kube.get(CONFIG_MAP, "a", namespace)
    assert second
    second["data"]["x"] = "2"
    await kube.replace(second)
    first["data"]["x"] = "3"
    with pytest.raises(KubeError) as caught:
        await kube.replace(first)
    assert caught.value.reason == "Conflict"


async def test_an_unreachable_server_is_an_error_of_ours_with_code_0() -> None:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    client = Kube.from_kubeconfig(config)
    with pytest.raises(KubeError) as caught:
        await client.get(CONFIG_MAP, "a", "default")
    assert caught.value.code == 0


async def test_the_informer_sees_what_is_there_what_comes_and_what_goes(kube: Kube, namespace: str) -> None:
    await kube.create(config_map(namespace, "early"))
    informer = Informer(kube, CONFIG_MAP, namespace)
    task = asyncio.create_task(informer.run())
    await asyncio.wait_for(informer.synced.wait(), 20)
    assert informer.get(namespace, "early")

    async def appears(name: str, there: bool) -> None:
        async def probe() -> bool:
            return (informer.get(namespace, name) is not None) is there

        await wait_until_async(probe, what=f"{name} is {there}", timeout=60, every=0.05)

    await kube.create(config_map(namespace, "late"))
    await appears("late", True)
    await kube.delete(CONFIG_MAP, "early", namespace)
    await appears("early", False)
    task.cancel()


async def test_a_reconcile_that_fails_is_tried_again_until_it_works(kube: Kube, namespace: str) -> None:
    tries: list[str] = []

    class Flaky:
        async def reconcile(self, _namespace: str, name: str) -> Result:
            tries.append(name)
            if tries.count(name) < 3:
                raise RuntimeError("not yet")
            return Result()

    informer = Informer(kube, CONFIG_MAP, namespace)
    controller = Controller("flaky", Flaky(), informer, workers=2)
    tasks = [asyncio.create_task(informer.run()), asyncio.create_task(controller.run())]
    await kube.create(config_map(namespace, "x"))

    async def three() -> bool:
        return tries.count("x") >= 3

    await wait_until_async(three, what="three tries", timeout=60, every=0.05)
    for task in tasks:
        task.cancel()


async def test_a_busy_process_keeps_its_lease_against_one_that_waits_for_it(plane: TestControlPlane, kube: Kube, namespace: str) -> None:
    """Its event loop stands still for longer than the lease lasts; the other is patient, and judges by its own clock."""
    first = LeaderLease(kube, namespace, "lead", "first", duration=2.0, renew=0.2, connect=plane.kube)
    other = plane.kube()
    waiting: asyncio.Task[None]
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    try:
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(LeaderLease(other, namespace, "lead", "second", duration=2.0, renew=0.2).acquire())
        for _ in range(4):
            time.sleep(1.5)
            await asyncio.sleep(0.1)
        assert not waiting.done() and not keeping.done()
        lease = await kube.get(LEASE, "lead", namespace)
        assert lease and lease["spec"]["holderIdentity"] == "first"
    finally:
        keeping.cancel()
    await asyncio.wait_for(waiting, 20)
    await other.close()


async def test_of_two_that_want_a_lease_one_leads_and_the_other_follows_when_it_lets_go(plane: TestControlPlane, kube: Kube, namespace: str) -> None:
    first = LeaderLease(kube, namespace, "lead", "first", renew=0.2)
    second = LeaderLease(plane.kube(), namespace, "lead", "second", renew=0.2)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(1)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, 20)
    lease = await kube.get(LEASE, "lead", namespace)
    assert lease and lease["spec"]["holderIdentity"] == "second"

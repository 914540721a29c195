"""The work queue, the informer's bookkeeping, and how a controller stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from ckp.api import kinds
from ckp.api.kinds import Kind
from ckp.clients.kube import EventType, KubeError, Obj
from ckp.runtime import informer as informer_module
from ckp.runtime.controller import Controller, Result
from ckp.runtime.informer import Informer
from ckp.runtime.queue import WorkQueue
from tests.simulators.kube import KubeSimulator

KEY = ("ns", "a")


async def test_a_key_added_twice_is_worked_on_once() -> None:
    queue = WorkQueue()
    queue.add(KEY)
    queue.add(KEY)
    assert await queue.get() == KEY
    queue.done(KEY)
    assert len(queue) == 0


async def test_a_key_added_while_worked_on_comes_again_afterwards_and_not_before() -> None:
    queue = WorkQueue()
    queue.add(KEY)
    await queue.get()
    queue.add(KEY)
    assert len(queue) == 0
    queue.done(KEY)
    assert await asyncio.wait_for(queue.get(), 1) == KEY


async def test_an_earlier_reason_beats_a_later_one() -> None:
    queue = WorkQueue()
    queue.add_after(KEY, 60)
    queue.add_after(KEY, 0.01)
    queue.add_after(KEY, 60)
    assert await asyncio.wait_for(queue.get(), 5) == KEY


async def test_failures_in_a_row_wait_longer_and_success_forgets_them() -> None:
    queue = WorkQueue()
    assert [queue.retry(KEY) for _ in range(3)] == [0.2, 0.4, 0.8]
    queue.forget(KEY)
    assert queue.retry(KEY) == 0.2


@pytest.mark.parametrize("steps", range(6))
async def test_a_controller_that_is_told_to_stop_stops_even_if_a_reconcile_ends_at_that_very_moment(steps: int) -> None:
    """Else a process that has lost its lease would go on working beside the next leader."""
    begun, ending = asyncio.Event(), asyncio.Event()

    class Reconciler:
        async def reconcile(self, namespace: str, name: str) -> Result:
            begun.set()
            await ending.wait()
            return Result()

    controller = Controller("test", Reconciler(), Informer(KubeSimulator(), kinds.BYO_HOST), workers=1)
    controller.queue.add(KEY)
    running = asyncio.ensure_future(controller.run())
    await begun.wait()
    ending.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=2)
    assert done, "it still runs"


def config_map(name: str, **data: str) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "labels": {"a": "b"}}, "data": data}


async def until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not probe():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def following(informer: Informer) -> AsyncIterator[None]:
    running = asyncio.ensure_future(informer.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_informer_keeps_only_what_is_needed_of_an_object_by_list_and_by_watch() -> None:
    kube = KubeSimulator()
    await kube.create(config_map("listed", kept="1", dropped="2"))
    seen: list[Obj] = []

    def needed(obj: Obj) -> Obj:
        meta = obj["metadata"]
        return {"metadata": {key: meta[key] for key in ("name", "namespace", "resourceVersion")}, "data": {"kept": obj["data"]["kept"]}}

    informer = Informer(kube, kinds.CONFIG_MAP, transform=needed, handlers=[seen.append])
    async with following(informer):
        await informer.synced.wait()
        await kube.create(config_map("watched", kept="3", dropped="4"))
        await until(lambda: len(seen) == 2)
        assert [(obj["metadata"]["name"], obj["data"]) for obj in informer.all()] == [("listed", {"kept": "1"}), ("watched", {"kept": "3"})]
        assert all("labels" not in obj["metadata"] for obj in (*seen, *informer.all()))
        await kube.delete(kinds.CONFIG_MAP, "watched", "default")
        await until(lambda: len(seen) == 3)
        assert informer.get("default", "watched") is None


async def test_an_informer_is_healthy_while_the_api_server_answers() -> None:
    kube = KubeSimulator()
    informer = Informer(kube, kinds.CONFIG_MAP)
    assert not informer.healthy
    async with following(informer):
        await until(lambda: informer.healthy)
        kube.on_fault(lambda *_: KubeError("away", code=0))
        kube.expire_history()  # it must list again
        await until(lambda: not informer.healthy)
        kube.on_fault(None)
        await until(lambda: informer.healthy)


async def test_a_watch_that_died_without_an_error_is_replaced_by_a_list_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though events of other objects still come: one that was lost is found."""
    monkeypatch.setattr(informer_module, "RELIST_SECONDS", 0.3)

    class Lossy(KubeSimulator):
        """Its watch never reports the object `lost`."""

        async def watch(
            self, kind: Kind, namespace: str | None, version: str, *, labels: Mapping[str, str | None] | None = None, seconds: int = 240
        ) -> AsyncIterator[tuple[EventType, Obj]]:
            async for event, obj in super().watch(kind, namespace, version, labels=labels, seconds=seconds):
                if obj["metadata"]["name"] != "lost":
                    yield event, obj

    kube = Lossy()
    informer = Informer(kube, kinds.CONFIG_MAP)
    async with following(informer):
        await informer.synced.wait()
        await kube.create(config_map("lost"))
        for number in range(20):
            await kube.create(config_map(f"other-{number}"))
            await asyncio.sleep(0.05)
        assert informer.get("default", "other-19") and informer.get("default", "lost")

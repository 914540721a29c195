"""The work queue and the informer's bookkeeping."""

from __future__ import annotations

import asyncio

import pytest

from ckp.api import kinds
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

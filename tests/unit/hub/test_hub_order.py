"""Desired states are sent before reports are taken: in a burst of changes reports and writes wait, but never for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from ckp.api import names
from ckp.api.host_protocol import Desired
from ckp.hub import desired as source
from ckp.hub.desired import KubeDesired
from tests.simulators.kube import KubeSimulator
from tests.worlds.hub import Door, desired_of, eventually, hello, make_door, report


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with make_door(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def changes(door: Door, every: float = source.QUIET_SECONDS / 5) -> AsyncIterator[None]:
    """Another host's desired state changes all the time, for the block."""

    async def change() -> None:
        number = 0
        while True:
            number += 1
            await door.desire("other", Desired(generation=number, host="other"))
            await asyncio.sleep(every)

    changing = asyncio.ensure_future(change())
    await asyncio.sleep(source.QUIET_SECONDS)
    try:
        yield
    finally:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)


async def test_without_changes_nothing_waits() -> None:
    async with asyncio.timeout(source.QUIET_SECONDS / 2):
        await KubeDesired(KubeSimulator(namespaces=(names.HOSTS_NAMESPACE,))).wait_until_quiet()


async def test_in_a_burst_changes_go_out_and_reports_wait(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await eventually(lambda: _phase(door, ""))
        async with changes(door):
            await websocket.send(report(phase="Joining"))
            await door.desire("one", Desired(generation=5, host="one"))
            async with asyncio.timeout(source.BURST_SECONDS / 2):
                assert (await desired_of(websocket)).generation == 5
            assert await _phase(door, ""), "not yet"
        await eventually(lambda: _phase(door, "Joining"), within=source.BURST_SECONDS / 2)


@pytest.mark.parametrize("every", [0.2, 0.9, 1.2])
async def test_endless_changes_do_not_starve_reports(door: Door, every: float) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        async with changes(door, every * source.QUIET_SECONDS):
            for phase in ("Joining", "Joined", "Free"):
                await websocket.send(report(phase=phase))
                await eventually(partial(_phase, door, phase), within=3 * source.BURST_SECONDS)


async def _phase(door: Door, phase: str) -> bool:
    status = (await door.host()).get("status") or {}
    return "agent" in status and (status.get("observed") or {}).get("phase", "") == phase

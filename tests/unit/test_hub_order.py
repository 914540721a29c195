"""What is wanted of hosts goes before what they say: in a burst of changes reports and writes wait, and never for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ckp.api import names
from ckp.api.host_protocol import Desired
from ckp.clients.kube_simulator import KubeSimulator
from ckp.hub import desired as source
from ckp.hub.desired import KubeDesired
from hub_world import Door, desired_of, eventually, hello, make_door, report


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with make_door(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def changes(door: Door) -> AsyncIterator[None]:
    """Another host's desired state changes all the time, for the block."""

    async def change() -> None:
        number = 0
        while True:
            number += 1
            await door.desire("other", Desired(generation=number, host="other"))
            await asyncio.sleep(source.CALM_SECONDS / 5)

    changing = asyncio.ensure_future(change())
    await asyncio.sleep(source.CALM_SECONDS)
    try:
        yield
    finally:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)


async def test_without_changes_nobody_waits() -> None:
    async with asyncio.timeout(source.CALM_SECONDS / 2):
        await KubeDesired(KubeSimulator(namespaces=(names.HOSTS_NAMESPACE,))).calm()


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


async def test_a_burst_without_an_end_keeps_no_report_out(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        async with changes(door):
            await websocket.send(report(phase="Joining"))
            await eventually(lambda: _phase(door, "Joining"), within=3 * source.BURST_SECONDS)
            await websocket.send(report(phase="Joined"))
            await eventually(lambda: _phase(door, "Joined"), within=source.BURST_SECONDS / 2)


async def _phase(door: Door, phase: str) -> bool:
    status = (await door.host()).get("status") or {}
    return "agent" in status and (status.get("observed") or {}).get("phase", "") == phase

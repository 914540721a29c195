"""`make bench-upgrade-checks`: how long the checks before a cluster's upgrade take, for 100 nodes and 2,000 pods; the aim is 5 s.

The API servers are simulators that answer after a given time, so what is measured is how the checks ask (how many requests one after the other) and what
they compute, not a network or a real API server. Pods are there as the budgets count them: the checks list none.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from ckp.api.kinds import NODE, PDB, Kind
from ckp.clients.kube import Obj
from tests.simulators.kube import KubeSimulator
from tests.worlds.upgrades import NEXT, OLD, UpgradeWorld

NODES, PODS, BUDGETS = 100, 2000, 200
AIM = 5.0
SECONDS = 0.05
"""Of each answer, as over a tunnel to a kubelet of another site."""


class SlowKube(KubeSimulator):
    """Each request takes its time, and is counted."""

    requests = 0

    async def _enter(self, verb: str, kind: Kind, name: str) -> None:
        self.requests += 1
        await asyncio.sleep(SECONDS)
        await super()._enter(verb, kind, name)

    async def text(self, path: str) -> str:
        self.requests += 1
        await asyncio.sleep(SECONDS)
        return await super().text(path)


async def cluster() -> UpgradeWorld:
    """A cluster of that size without a finding."""
    world = UpgradeWorld()
    await world.made()
    for number in range(4, NODES + 1):
        await world.add_worker(f"n{number}", "demo-a")
        await world.joined(f"n{number}", OLD)
    slow = SlowKube()
    slow.on_text("/metrics", "\n".join(f'apiserver_request_total{{code="200",resource="r{number}"}} 1' for number in range(20_000)))
    for number in range(1, NODES + 1):
        slow.on_text(f"/api/v1/nodes/n{number}/proxy/configz", '{"kubeletconfig": {}}')

    async def make(kind: Kind, name: str, status: Obj | None = None, **more: Any) -> None:
        meta = {"name": name, **({"namespace": "default"} if kind is PDB else {})}
        made = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": {}, **more}
        await slow.create(made)
        if status:
            await slow.merge(kind, name, meta.get("namespace"), {"status": status}, subresource="status")

    counts = {"expectedPods": PODS // BUDGETS, "currentHealthy": PODS // BUDGETS, "desiredHealthy": 1, "disruptionsAllowed": 1}
    await asyncio.gather(*(make(NODE, f"n{number}") for number in range(1, NODES + 1)), *(make(PDB, f"b{number}", counts) for number in range(BUDGETS)))
    world.workload = slow
    world.restarted()
    return world


async def measure() -> tuple[float, int, str]:
    """Seconds of a plan's one pass, requests to the workload cluster in it, and what it says."""
    world = await cluster()
    await world.ask(NEXT, dryRun=True)
    assert isinstance(world.workload, SlowKube)
    before, started = world.workload.requests, time.monotonic()
    await world.pass_once()
    return time.monotonic() - started, world.workload.requests - before, str(world.status()["message"])


def main() -> int:
    seconds, requests, message = asyncio.run(measure())
    print(f"checks of {NODES} nodes and {PODS} pods: {seconds:.2f} s (aim: {AIM:.0f} s), {requests} requests of {SECONDS * 1000:.0f} ms each: {message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

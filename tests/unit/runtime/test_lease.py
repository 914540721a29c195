"""Leader election: a lease is judged by one's own clock, whatever the other machine's clock shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from ckp.api.kinds import LEASE, Kind
from ckp.clients.kube import KubeError, Obj
from ckp.kits.clock import rfc3339_micro
from ckp.runtime.lease import LeaderLease, LeaseLost
from tests.simulators.kube import KubeSimulator

DURATION = 1.0
RENEW = 0.1
SKEWS = pytest.mark.parametrize("behind", [-20.0, 0.0, 20.0], ids=["holder's clock ahead", "equal clocks", "holder's clock behind"])


@pytest.fixture
def kube() -> KubeSimulator:
    return KubeSimulator()


def candidate(kube: KubeSimulator, identity: str = "candidate") -> LeaderLease:
    return LeaderLease(kube, "default", "lead", identity, duration=DURATION, renew=RENEW)


def held(identity: str, behind: float, *, transitions: int = 0) -> Obj:
    """A lease that was renewed just now, by a machine whose clock is `behind` ours by so many seconds."""
    now = rfc3339_micro(datetime.now(UTC) - timedelta(seconds=behind))
    spec = {"holderIdentity": identity, "leaseDurationSeconds": int(DURATION), "acquireTime": now, "renewTime": now, "leaseTransitions": transitions}
    return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": {"name": "lead", "namespace": "default"}, "spec": spec}


async def holder_of(kube: KubeSimulator) -> str:
    lease = await kube.get(LEASE, "lead", "default")
    assert lease is not None
    return str(lease["spec"]["holderIdentity"])


@contextlib.asynccontextmanager
async def another_holds(kube: KubeSimulator, behind: float) -> AsyncIterator[None]:
    """Another machine holds the lease, and renews it until the end of the block; then it has crashed."""
    await kube.apply(held("holder", behind))

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW)
            spec = held("holder", behind)["spec"]
            await kube.merge(LEASE, "lead", "default", {"spec": {"renewTime": spec["renewTime"]}})

    renewing = asyncio.ensure_future(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


@SKEWS
async def test_a_lease_that_is_renewed_is_never_taken(kube: KubeSimulator, behind: float) -> None:
    waiting = asyncio.ensure_future(candidate(kube).acquire())
    try:
        async with another_holds(kube, behind):
            done, _ = await asyncio.wait([waiting], timeout=3 * DURATION)
            assert not done
            assert await holder_of(kube) == "holder"
    finally:
        waiting.cancel()


@SKEWS
async def test_the_lease_of_a_crashed_holder_is_taken_after_its_duration(kube: KubeSimulator, behind: float) -> None:
    async with another_holds(kube, behind):
        waiting = asyncio.ensure_future(candidate(kube).acquire())
        await asyncio.sleep(DURATION / 2)
    crashed = asyncio.get_running_loop().time()
    await asyncio.wait_for(waiting, 3 * DURATION)
    took = asyncio.get_running_loop().time() - crashed
    assert DURATION - 2 * RENEW <= took <= 2 * DURATION
    lease = await kube.get(LEASE, "lead", "default")
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("candidate", 1)


async def test_a_lease_that_was_released_is_taken_at_once(kube: KubeSimulator) -> None:
    first = candidate(kube, "first")
    await first.acquire()
    await first.release()
    async with asyncio.timeout(DURATION / 2):
        await candidate(kube, "second").acquire()
    assert await holder_of(kube) == "second"


async def test_of_two_candidates_one_leads(kube: KubeSimulator) -> None:
    candidates = [asyncio.ensure_future(candidate(kube, name).acquire()) for name in ("first", "second")]
    done, waiting = await asyncio.wait(candidates, timeout=DURATION / 2)
    assert (len(done), len(waiting)) == (1, 1)
    for task in waiting:
        task.cancel()


async def test_a_holder_keeps_its_lease_while_it_renews(kube: KubeSimulator) -> None:
    lease = candidate(kube)
    await lease.acquire()
    keeping = asyncio.ensure_future(lease.keep())
    other = asyncio.ensure_future(candidate(kube, "other").acquire())
    done, _ = await asyncio.wait([keeping, other], timeout=2 * DURATION)
    assert not done
    assert await holder_of(kube) == "candidate"
    for task in (keeping, other):
        task.cancel()


async def test_a_holder_that_cannot_renew_stops_before_others_may_take_over(kube: KubeSimulator) -> None:
    lease = candidate(kube)
    await lease.acquire()
    begun = asyncio.get_running_loop().time()
    kube.on_fault(lambda *_: KubeError("away", code=0))
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(lease.keep(), 3 * DURATION)
    assert asyncio.get_running_loop().time() - begun < DURATION


async def test_a_holder_whose_requests_hang_stops_before_others_may_take_over(kube: KubeSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = candidate(kube)
    await lease.acquire()
    begun = asyncio.get_running_loop().time()

    async def hang(*_: object, **__: object) -> Obj:
        await asyncio.sleep(60)
        raise AssertionError("it was not cancelled")

    monkeypatch.setattr(kube, "replace", hang)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(lease.keep(), 3 * DURATION)
    assert asyncio.get_running_loop().time() - begun < DURATION


async def test_a_holder_that_was_replaced_stops_though_the_other_has_crashed_since(kube: KubeSimulator) -> None:
    lease = candidate(kube)
    await lease.acquire()
    await kube.merge(LEASE, "lead", "default", held("other", 60.0))
    with pytest.raises(LeaseLost, match="other"):
        await asyncio.wait_for(lease.keep(), 3 * DURATION)
    assert await holder_of(kube) == "other"


async def test_one_conflict_does_not_end_leadership(kube: KubeSimulator) -> None:
    """An earlier request of ours that timed out may be executed between our reading and our writing."""
    lease = candidate(kube)
    await lease.acquire()
    faults: list[str] = []

    def once(verb: str, kind: Kind, _name: str) -> KubeError | None:
        if (verb, kind) == ("replace", LEASE) and not faults:
            faults.append(verb)
            return KubeError("changed", code=409, reason="Conflict")
        return None

    kube.on_fault(once)
    keeping = asyncio.ensure_future(lease.keep())
    done, _ = await asyncio.wait([keeping], timeout=DURATION)
    assert not done and faults
    keeping.cancel()

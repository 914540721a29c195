"""Leader election: a lease is judged by one's own clock, whatever the other machine's clock shows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from ckp.api.kinds import LEASE, Kind
from ckp.clients.kube import KubeError, Obj
from ckp.kits.clock import rfc3339_micro
from ckp.runtime.lease import LeaderLease, LeaseLost, LeaseNotRenewed
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


async def test_a_renewal_is_one_request(kube: KubeSimulator) -> None:
    """Each one more is another chance for a slow API server to be too late."""
    lease = candidate(kube)
    await lease.acquire()
    before = len(kube.calls)
    keeping = asyncio.ensure_future(lease.keep())
    await asyncio.sleep(DURATION)
    keeping.cancel()
    renewals = kube.calls[before:]
    assert 5 <= len(renewals) <= 10 and {verb for verb, _, _ in renewals} == {"replace"}


async def test_an_api_server_that_takes_long_for_each_answer_does_not_end_leadership(kube: KubeSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the time between two renewals. Each renewal was once given up after that time, and so the lease though every request succeeded."""
    lease, replace = candidate(kube), kube.replace
    await lease.acquire()

    async def slow(obj: Obj) -> Obj:
        await asyncio.sleep(3 * RENEW)
        return await replace(obj)

    monkeypatch.setattr(kube, "replace", slow)
    keeping = asyncio.ensure_future(lease.keep())
    done, _ = await asyncio.wait([keeping], timeout=2 * DURATION)
    keeping.cancel()
    assert not done


def beside(kube: KubeSimulator) -> LeaderLease:
    """As the controllers have it: renewed in a thread of its own."""
    return LeaderLease(kube, "default", "lead", "candidate", duration=DURATION, renew=RENEW, connect=lambda: kube.as_manager("lease"))


async def test_work_that_keeps_the_event_loop_busy_does_not_end_leadership(kube: KubeSimulator) -> None:
    lease = beside(kube)
    await lease.acquire()
    keeping = asyncio.ensure_future(lease.keep())
    before = (await kube.get(LEASE, "lead", "default") or {})["spec"]["renewTime"]
    await asyncio.sleep(RENEW)
    time.sleep(2 * DURATION)  # nothing of this event loop runs, as while much is parsed on a slow machine
    done, _ = await asyncio.wait([keeping], timeout=RENEW)
    assert not done
    assert (await kube.get(LEASE, "lead", "default") or {})["spec"]["renewTime"] > before
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    calls = len(kube.calls)
    await asyncio.sleep(3 * RENEW)
    assert len(kube.calls) == calls, "no thread is left that renews"


@pytest.mark.parametrize("how", ["another holds it", "the API server is away"])
async def test_the_thread_that_renews_says_when_the_lease_is_lost(kube: KubeSimulator, how: str) -> None:
    lease = beside(kube)
    await lease.acquire()
    keeping = asyncio.ensure_future(lease.keep())
    await asyncio.sleep(2 * RENEW)
    if how == "another holds it":
        await kube.merge(LEASE, "lead", "default", held("other", 0.0))
    else:
        kube.on_fault(lambda *_: KubeError("away", code=0))
    with pytest.raises(LeaseLost) as told:
        await asyncio.wait_for(keeping, 3 * DURATION)
    assert isinstance(told.value, LeaseNotRenewed) == (how != "another holds it")


async def test_a_lease_that_is_given_up_at_once_leaves_no_thread(kube: KubeSimulator) -> None:
    before = {thread.name for thread in threading.enumerate()}
    lease = beside(kube)
    await lease.acquire()
    keeping = asyncio.ensure_future(lease.keep())
    await asyncio.sleep(0)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert {thread.name for thread in threading.enumerate()} <= before


async def lost(kube: KubeSimulator) -> LeaderLease:
    """A lease whose holder could not renew it in time."""
    lease = candidate(kube)
    await lease.acquire()
    kube.on_fault(lambda *_: KubeError("away", code=0))
    with pytest.raises(LeaseNotRenewed):
        await asyncio.wait_for(lease.keep(), 3 * DURATION)
    return lease


async def test_who_could_not_renew_leads_again_if_nobody_has_led_meanwhile(kube: KubeSimulator) -> None:
    lease = await lost(kube)
    recovering = asyncio.ensure_future(lease.recover())
    done, _ = await asyncio.wait([recovering], timeout=DURATION)
    assert not done, "as long as the API server does not answer"
    kube.on_fault(None)
    await asyncio.wait_for(recovering, DURATION)
    keeping = asyncio.ensure_future(lease.keep())
    done, _ = await asyncio.wait([keeping], timeout=DURATION)
    keeping.cancel()
    assert not done and await holder_of(kube) == "candidate"


@pytest.mark.parametrize("how", ["held", "held and released", "held and taken back", "removed"])
async def test_who_could_not_renew_does_not_lead_again_if_another_may_have_led(kube: KubeSimulator, how: str) -> None:
    lease = await lost(kube)
    kube.on_fault(None)
    if how == "removed":
        await kube.delete(LEASE, "lead", "default")
    else:
        await asyncio.wait_for(candidate(kube, "other").acquire(), 3 * DURATION)
    if how != "held" and how != "removed":
        await kube.merge(LEASE, "lead", "default", {"spec": {"holderIdentity": ""}})
    if how == "held and taken back":
        await candidate(kube).acquire()
        assert await holder_of(kube) == "candidate"
    with pytest.raises(LeaseLost) as told:
        await asyncio.wait_for(lease.recover(), DURATION)
    assert not isinstance(told.value, LeaseNotRenewed)


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

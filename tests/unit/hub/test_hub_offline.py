"""Hosts that go offline, with several replicas of the hub: which replica marks them, by what evidence, and which must not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from ckp.api import kinds, names
from ckp.api.host_protocol import Desired
from ckp.clients.kube import KubeError
from ckp.hub import status as shape
from ckp.hub.identity import HostId
from ckp.hub.replicas import KEPT, LABEL, Replicas
from ckp.kits.clock import parse_rfc3339, rfc3339, rfc3339_micro
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator
from tests.worlds.hub import TENANT, Door, close_code, desired_of, eventually, hello, is_so, make_door, report, with_condition, with_phase

OFFLINE = 1.0
ONE = HostId(TENANT, "one")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def kube() -> KubeSimulator:
    return KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))


@contextlib.asynccontextmanager
async def two_replicas(directory: Path, kube: KubeSimulator, first_sweeps: float = 0.1) -> AsyncIterator[tuple[Door, Door]]:
    """Two replicas of one hub; the first looks for silent hosts this often."""
    (directory / "1").mkdir()
    (directory / "2").mkdir()
    async with make_door(directory / "1", kube, offline=OFFLINE, seen_every=300.0, sweep_every=first_sweeps, identity="hub-1") as first:
        authorities = (first.root, first.host_ca)
        async with make_door(directory / "2", kube, authorities=authorities, offline=OFFLINE, seen_every=300.0, identity="hub-2") as second:
            yield first, second


async def _holds(door: Door, hub: str) -> bool:
    return shape.hub_of(await door.host()) == hub


@contextlib.asynccontextmanager
async def at_both(
    one: Door, other: Door, boots: tuple[str, str] = ("boot", "boot")
) -> AsyncIterator[tuple[ssl.SSLContext, ClientConnection, ClientConnection]]:
    """One host's certificate, connected to a replica and then, while that connection stays, to another one."""
    context = await one.enrolled()
    older = await one.connect(context)
    await hello(older, boot_id=boots[0])
    await eventually(lambda: _holds(one, one.server.replicas.identity))
    async with other.connect(context) as newer:
        await hello(newer, boot_id=boots[1])
        await eventually(lambda: _holds(one, other.server.replicas.identity))
        yield context, older, newer


async def stale(kube: KubeSimulator, hub: str, host: HostId = ONE) -> None:
    """The host as a replica left it long ago."""
    status = shape.with_connection({}, hub=hub, condition=True, reason="Connected", message="", seen=LONG_AGO, at=LONG_AGO)
    await kube.apply(shape.apply_body(host, status), subresource="status")


def condition(host: dict[str, Any]) -> str:
    return str(shape.condition_of(host).get("status"))


def verdicts(kube: KubeSimulator, since: int = 0, of: str = "") -> list[str]:
    """What AgentConnected was, change for change; of all hosts, or of one."""
    found = [event.obj for event in kube.events(since) if event.kind == kinds.BYO_HOST and of in ("", event.obj["metadata"]["name"])]
    return [condition(host) for host in found if condition(host) != "None"]


async def test_a_live_replica_alone_marks_its_hosts_offline_though_their_last_seen_is_old(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube) as (first, _):
        async with first.connect(await first.enrolled()) as websocket:
            await hello(websocket)
            await eventually(lambda: with_condition(first, "True"))
            old = {"status": {"agent": {"lastSeen": rfc3339(LONG_AGO)}}}
            await kube.merge(kinds.BYO_HOST, "one", TENANT, old, subresource="status")
            for _round in range(5):  # well beyond the time after which others would mark it offline
                await websocket.send(report())
                await asyncio.sleep(OFFLINE / 2)
            assert shape.hub_of(await first.host()) == "hub-1"
            assert set(verdicts(kube)) == {"True"}


async def test_when_a_replica_dies_its_hosts_that_do_not_come_back_are_offline_since_then(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube) as (_, second):
        await second.add_host("one", serial="abc")
        await stale(kube, "hub-0")
        died = datetime.now(UTC)
        await kube.apply(lease("hub-0", died))
        host = await eventually(lambda: with_condition(second, "False"), within=10)
        assert (datetime.now(UTC) - died).total_seconds() >= OFFLINE, "it had its time to come back"
        assert shape.condition_of(host)["reason"] == "Silent"
        assert abs((parse_rfc3339(host["status"]["agent"]["lastSeen"]) - died).total_seconds()) <= 1, "its replica spoke for it until then"
        assert shape.hub_of(host) == "" and host["status"]["agent"]["connected"] is False


async def test_a_host_of_an_unknown_replica_is_judged_by_its_last_seen(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube, offline=OFFLINE) as door:
        await door.add_host("one", serial="abc")
        await stale(kube, "hub-gone")
        host = await eventually(lambda: with_condition(door, "False"), within=10)
        assert host["status"]["agent"]["lastSeen"] == rfc3339(LONG_AGO)


async def test_our_own_host_that_left_before_our_restart_is_judged_by_us(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube, offline=OFFLINE, identity="hub-1") as door:
        await door.add_host("one", serial="abc")
        await stale(kube, "hub-1")
        await asyncio.sleep(OFFLINE / 2)
        assert condition(await door.host()) == "True", "it gets its time to come back"
        await eventually(lambda: with_condition(door, "False"), within=10)


async def test_after_an_outage_of_the_api_server_nobody_is_marked_though_all_leases_are_old(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube) as (first, second):
        async with first.connect(await first.enrolled()) as websocket, second.connect(await second.enrolled("two")) as other:
            for one in (websocket, other):
                await hello(one)
            await eventually(lambda: with_condition(first, "True"))
            await eventually(lambda: with_condition(first, "True", "two"))
            events = len(kube.events())
            kube.on_fault(lambda verb, *_: KubeError("away", code=0))
            for _round in range(6):
                for one in (websocket, other):
                    await one.send(report())
                await asyncio.sleep(OFFLINE / 2)
            kube.on_fault(None)
            for _round in range(6):
                for one in (websocket, other):
                    await one.send(report(generation=_round))
                await asyncio.sleep(OFFLINE / 2)
            assert set(verdicts(kube, events)) <= {"True"}


async def test_the_last_word_of_one_replica_never_follows_the_first_of_another(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube) as (first, second):
        async with at_both(first, second) as (_, older, newer):
            await desired_of(newer)
            events = len(kube.events())
            await older.close()
            await eventually(lambda: is_so(first.server.hosts == []))
            await asyncio.sleep(0.5)
            assert shape.hub_of(await first.host()) == "hub-2"
            assert set(verdicts(kube, events)) <= {"True"}


async def test_between_reading_and_writing_the_last_word_others_may_change_the_host(tmp_path: Path, kube: KubeSimulator) -> None:
    """A change of something else is no obstacle; a connection to another replica is."""
    async with two_replicas(tmp_path, kube) as (first, _):
        websocket = await first.connect(await first.enrolled())
        await hello(websocket)
        await eventually(lambda: with_condition(first, "True"))
        once: list[str] = []

        def meanwhile(verb: str, kind: kinds.Kind, name: str) -> None:
            if (verb, kind) == ("apply", kinds.BYO_HOST) and not once:
                once.append(name)
                kube.stored(kinds.BYO_HOST, "one", TENANT)["metadata"]["resourceVersion"] += "1"

        kube.on_fault(meanwhile)
        await websocket.close()
        host = await eventually(lambda: with_condition(first, "False"))
        assert once and shape.condition_of(host)["reason"] == "Disconnected"


async def test_a_host_that_was_marked_by_mistake_is_set_right_by_the_replica_that_has_it(tmp_path: Path, kube: KubeSimulator) -> None:
    """As an older hub does during an update, which knows nothing of Leases."""
    async with make_door(tmp_path, kube, offline=OFFLINE, seen_every=300.0) as door, door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        host = await eventually(lambda: with_condition(door, "True"))
        agent = {name: value for name, value in host["status"]["agent"].items() if name not in ("hub", "certificateSerial")}
        wrong = shape.with_connection({"agent": agent}, hub="", condition=False, reason="Silent", message="", seen=LONG_AGO, at=LONG_AGO)
        await kube.apply(shape.apply_body(ONE, wrong), subresource="status")

        async def right() -> bool:
            await websocket.send(report())
            await asyncio.sleep(0.2)
            return condition(await door.host()) == "True" and shape.hub_of(await door.host()) == "hub-1"

        await eventually(right, within=10)


async def test_while_a_sweep_takes_long_no_live_replica_becomes_stale(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube, first_sweeps=600.0) as (first, second):
        await eventually(lambda: is_so(second.server.replicas.steady() >= OFFLINE), within=10)
        async with first.connect(await first.enrolled()) as websocket:
            await hello(websocket)
            await websocket.send(report())
            await eventually(lambda: with_phase(first, "Free"))  # and of it nothing more is written
            await second.add_host("a-dark", serial="abc")
            dark = HostId(TENANT, "a-dark")
            async with second.server.writing(dark):  # its turn to be written does not come; "one" is looked at after it
                await stale(kube, "hub-gone", dark)
                for _round in range(5):
                    await websocket.send(report())
                    await asyncio.sleep(OFFLINE / 2)
            await asyncio.sleep(0.5)
            assert set(verdicts(kube, of="one")) == {"True"}


async def test_a_write_that_was_given_up_and_is_done_after_the_next_is_set_right(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube, offline=60.0, seen_every=300.0) as door, door.connect(await door.enrolled()) as websocket:
        kube.on_fault(lambda verb, kind, _: KubeError("forbidden", code=403) if (verb, kind) == ("apply", kinds.LEASE) else None)
        await hello(websocket)
        await websocket.send(report(phase="Joined"))
        host = await eventually(lambda: with_phase(door, "Joined"))
        late = shape.written_of(host)
        late["observed"] |= {"phase": "Joining"}
        await kube.apply(shape.apply_body(ONE, late), subresource="status")
        await eventually(lambda: with_phase(door, "Joined"))
        await asyncio.sleep(0.5)
        writes = len(kube.events())
        await asyncio.sleep(0.5)
        assert len(kube.events()) == writes, "and what is right is left alone"


async def test_one_host_that_cannot_be_marked_keeps_no_other_from_it(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube, offline=OFFLINE) as door:
        for name in ("a-bad", "a-odd", "one"):
            await door.add_host(name, serial="abc")
            await stale(kube, "hub-gone", HostId(TENANT, name))
        kube.stored(kinds.BYO_HOST, "a-odd", TENANT)["status"]["agent"]["lastSeen"] = "yesterday"
        kube.on_fault(lambda verb, _, name: KubeError("not valid", code=422) if (verb, name) == ("apply", "a-bad") else None)
        await eventually(lambda: with_condition(door, "False"), within=10)


async def test_when_a_host_cannot_be_looked_up_its_void_certificate_is_noticed_all_the_same(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube, seen_every=300.0) as door:
        context = await door.enrolled()
        await door.desire("one", Desired(generation=1, host="one"))
        async with door.connect(context) as websocket:
            await hello(websocket)
            await desired_of(websocket)
            serial = (await eventually(lambda: with_condition(door, "True")))["status"]["agent"]["certificateSerial"]
            await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": serial}})
            kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind) == ("get", kinds.BYO_HOST) else None)
            await door.announce("one", f"revoked={serial}")
            assert await close_code(websocket) == 1008


async def test_a_connection_that_has_ended_is_no_garbage_for_the_collector(tmp_path: Path, kube: KubeSimulator) -> None:
    async with make_door(tmp_path, kube) as door:
        gc.collect()
        gc.disable()
        try:
            websocket = await door.connect(await door.enrolled())
            await hello(websocket)
            await eventually(lambda: with_condition(door, "True"))
            (live,) = (weakref.ref(one) for one in door.server._sessions.values())
            websocket.transport.abort()
            await eventually(lambda: is_so(live() is None))
        finally:
            gc.enable()


async def test_clocks_of_replicas_may_differ(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    replicas, behind = Replicas(kube, "hub-1", clock, renew=10.0), timedelta(minutes=10)
    for _renewal in range(3):
        await kube.apply(lease("hub-2", clock.now() - behind))
        assert (await replicas.replica_leases())["hub-2"].heard == clock.now()
        clock.advance(10.0)
    assert (await replicas.replica_leases())["hub-2"].heard == clock.now() - timedelta(seconds=10), "by our clock, since it no longer renews"


async def test_the_leases_of_replicas_that_are_long_gone_are_deleted(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    replicas = Replicas(kube, "hub-1", clock, renew=10.0)
    await kube.apply(lease("hub-old", clock.now()))
    assert set(await replicas.replica_leases()) == {"hub-old"}
    clock.advance(2.0)
    await kube.apply(lease("hub-young", clock.now()))
    assert set(await replicas.replica_leases()) == {"hub-old", "hub-young"}
    clock.advance(KEPT.total_seconds() - 1.0)
    await kube.apply(lease("ckp-controllers", clock.now() - 2 * KEPT) | {"metadata": {"name": "ckp-controllers", "namespace": names.HOSTS_NAMESPACE}})
    assert set(await replicas.replica_leases()) == {"hub-young"}
    assert {one["metadata"]["name"] for one in await kube.list(kinds.LEASE)} == {"hub-young", "ckp-controllers"}, "leases of others are left alone"


async def test_the_lease_of_a_replica_that_renews_is_kept_though_its_clock_is_hours_behind(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    replicas, behind = Replicas(kube, "hub-1", clock, renew=10.0), 3 * KEPT
    for _renewal in range(3):
        await kube.apply(lease("hub-2", clock.now() - behind))
        assert set(await replicas.replica_leases()) == {"hub-2"}
        clock.advance(KEPT.total_seconds() / 2)


async def test_a_step_of_our_own_clock_makes_no_replica_look_dead(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    replicas = Replicas(kube, "hub-1", clock, renew=10.0)
    await kube.apply(lease("hub-2", clock.now()))
    await replicas.replica_leases()
    clock.step(600.0)
    assert (await replicas.replica_leases())["hub-2"].heard == clock.now()


async def test_a_replica_is_steady_while_it_renews_without_a_gap(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    replicas = Replicas(kube, "hub-1", clock, renew=0.01)
    assert replicas.steady() == 0.0
    keeping = asyncio.ensure_future(replicas.keep())
    try:
        await eventually(lambda: is_so(any(lease["metadata"]["name"] == "hub-1" for lease in kube.all_stored(kinds.LEASE))))
        for _step in range(10):
            clock.advance(0.02)
            await asyncio.sleep(0.05)
        assert replicas.steady() == pytest.approx(0.2)
        kube.on_fault(lambda *_: KubeError("away", code=0))
        await asyncio.sleep(0.05)
        clock.advance(1.0)
        assert replicas.steady() == 0.0, "the last renewal is too long ago"
        kube.on_fault(None)
        await asyncio.sleep(0.1)
        assert replicas.steady() == 0.0, "and the gap is where it begins again"
        clock.advance(0.02)
        assert replicas.steady() == pytest.approx(0.02)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def lease(identity: str, renewed: datetime) -> dict[str, Any]:
    return {
        "apiVersion": kinds.LEASE.api_version,
        "kind": kinds.LEASE.kind,
        "metadata": {"name": identity, "namespace": names.HOSTS_NAMESPACE, "labels": LABEL},
        "spec": {"holderIdentity": identity, "renewTime": rfc3339_micro(renewed)},
    }


async def test_two_clones_at_two_replicas_are_noticed(tmp_path: Path, kube: KubeSimulator) -> None:
    """The second looks like a restart of the first; but the first is still there, is closed, and comes back with a boot that was over."""
    async with two_replicas(tmp_path, kube) as (first, second):
        async with at_both(first, second, ("a", "b")) as (context, one, _):
            assert await close_code(one) == 1008
            async with first.connect(context) as back:
                await hello(back, boot_id="a")
                await eventually(lambda: _holds(first, "hub-1"))
                unique = shape.condition_of(await first.host(), shape.UNIQUE)
                assert (unique["status"], unique["reason"]) == ("False", "ClonedMachine")


async def test_a_host_that_moves_to_another_replica_is_not_closed_there(tmp_path: Path, kube: KubeSimulator) -> None:
    async with two_replicas(tmp_path, kube) as (first, second):
        async with at_both(second, first) as (_, older, newer):
            await older.close()
            for number in range(10):  # sweeps of the first replica
                await newer.send(report(generation=number))
                await asyncio.sleep(0.1)
            assert first.server.hosts == [ONE] and await _holds(first, "hub-1")

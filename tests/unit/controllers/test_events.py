"""Events: one for each time that something became so, none for what stays as it is, none twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.events import EventsReconciler
from ckp.kits.clock import rfc3339
from ckp.rules.conditions import make_condition
from ckp.rules.events import transitions
from ckp.runtime.informer import Informer
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
START = datetime(2026, 4, 1, tzinfo=UTC)


class Bench:
    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.clock = ManualClock(START)
        self.restart()

    def restart(self) -> None:
        """A new process."""
        self.informer = Informer(self.kube, kinds.BYO_HOST, TENANT)
        self.events = EventsReconciler(self.kube, self.clock, self.informer)

    async def become(self, *conditions: dict[str, Any], **observed: Any) -> None:
        await self.kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"conditions": list(conditions), "observed": observed}}, subresource="status")
        await self.look()

    async def look(self) -> None:
        await self.informer._list()
        await self.events.reconcile(TENANT, "one")

    async def told(self) -> list[tuple[str, str, str]]:
        found = await self.kube.list(kinds.EVENT, TENANT)
        return [(item["type"], item["reason"], item["message"]) for item in sorted(found, key=lambda item: (item["lastTimestamp"], item["reason"]))]


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.kube.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "one", "namespace": TENANT}, "spec": {}})
    return made


def condition(kind: str, ok: bool, at: datetime, **more: Any) -> dict[str, Any]:
    return make_condition(kind, ok, at, **more)


async def test_each_change_is_told_once_and_what_stays_is_not(bench: Bench) -> None:
    await bench.become(condition("AgentConnected", True, START))
    await bench.look()
    lost = condition("AgentConnected", False, START + timedelta(minutes=5), reason="Silent", message="no word for 60 s", severity="Warning")
    await bench.become(lost)
    await bench.become({**lost, "message": "no word for 61 s"})
    assert await bench.told() == [("Normal", "AgentConnected", "AgentConnected is True"), ("Warning", "Silent", "no word for 60 s")]


async def test_an_event_says_whom_it_is_about_and_can_be_listed_by_it(bench: Bench) -> None:
    await bench.become(condition("Available", False, START, reason="Claimed", message="held by m1"))
    host = await bench.kube.get(kinds.BYO_HOST, "one", TENANT)
    assert host is not None
    [event] = await bench.kube.list(kinds.EVENT, TENANT, labels={names.EVENT_LABEL: host["metadata"]["uid"]})
    about = event["involvedObject"]
    assert (about["kind"], about["name"], about["uid"]) == ("ByoHost", "one", host["metadata"]["uid"])
    assert (event["type"], event["reason"], event["message"], event["lastTimestamp"]) == ("Normal", "Claimed", "held by m1", rfc3339(START))


async def test_a_restart_tells_what_is_fresh_once_and_what_is_old_not_at_all(bench: Bench) -> None:
    await bench.become(condition("AgentConnected", True, START), condition("Stable", True, START - timedelta(hours=1)))
    bench.restart()
    await bench.look()
    assert await bench.told() == [("Normal", "AgentConnected", "AgentConnected is True")]
    bench.clock.advance(3600)
    bench.restart()
    await bench.look()
    assert len(await bench.told()) == 1


async def test_a_hosts_phase_is_told_as_it_changes(bench: Bench) -> None:
    await bench.become(phase="Free")
    await bench.become(phase="Joined", cluster="ns/demo")
    bench.clock.advance(1)
    await bench.become(phase="Failed", cluster="ns/demo", reason="VerificationFailed", message="kubelet.deb is not signed")
    assert await bench.told() == [("Normal", "Joined", "the host is Joined for cluster demo"), ("Warning", "VerificationFailed", "kubelet.deb is not signed")]


async def test_an_event_that_cannot_be_written_holds_nothing_up(bench: Bench) -> None:
    bench.kube.on_fault(lambda verb, kind, _name: KubeError("no", code=500) if (verb, kind) == ("create", kinds.EVENT) else None)
    await bench.become(condition("Stable", True, START))
    assert await bench.told() == []


def test_ready_is_a_sum_and_unknown_is_nothing() -> None:
    conditions = [condition("Ready", False, START, reason="X"), make_condition("AgentConnected", None, START)]
    host: Obj = {"metadata": {}, "status": {"conditions": conditions}}
    assert list(transitions(host)) == []

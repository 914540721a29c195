"""Unhealthy workers: what the health check reports is replaced, waited for or held, and nothing is lost when the controller is killed."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.api.kinds import Kind
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.providers.byo.cluster import ByoClusterReconciler
from ckp.controllers.providers.byo.remediation import Remediation
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import rfc3339
from ckp.rules.conditions import get_condition
from ckp.rules.events import transitions
from ckp.runtime.informer import Informer
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
START = datetime.now(UTC).replace(microsecond=0)
"""The simulator stamps objects with the real time, so reports are made now."""
LABELS = {names.CLUSTER_NAME_LABEL: "demo"}
KUBECONFIG = base64.b64encode(b"kubeconfig").decode()


class Bench:
    """A cluster of workers, its health check and its API server. What Cluster API does, the tests do: report, and let a deleted Machine go."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.workload = KubeSimulator(manager="ckp-controllers")
        self.clock = ManualClock(START)
        self.restart()

    def restart(self) -> None:
        """A new process."""
        self.requests = Informer(self.kube, kinds.BYO_REMEDIATION, TENANT)
        self.machines = Informer(self.kube, kinds.MACHINE, TENANT)
        self.hosts = Informer(self.kube, kinds.BYO_HOST, TENANT)
        remediation = Remediation(self.kube, self.clock, self.requests, self.machines, self.hosts, WorkloadClients(lambda _kubeconfig: self.workload))
        self.reconciler = ByoClusterReconciler(self.kube, self.clock, remediation)

    async def create(self, kind: Kind, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> Obj:
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": TENANT, **metadata}, "spec": spec}
        obj = await self.kube.create(body)
        return await self.kube.merge(kind, name, TENANT, {"status": status}, subresource="status") if status else obj

    async def worker(self, name: str, *, ready: bool = True, was_ready: bool = True, old: bool = False) -> None:
        """A Machine with its ByoMachine and its node."""
        status = {"hostRef": {"name": f"host-{name}"}}
        if was_ready:
            status["nodeReadyAt"] = rfc3339(START - (timedelta(days=9) if old else timedelta(minutes=20)))  # type: ignore[assignment]
        await self.create(kinds.BYO_MACHINE, name, {}, status, labels=LABELS)
        spec = {"infrastructureRef": {"kind": "ByoMachine", "name": name}}
        failed = {"type": "HealthCheckSucceeded", "status": "False", "message": "Condition Ready on node is reporting status Unknown for more than 5m0s"}
        status = {"nodeRef": {"name": name}, "conditions": [] if ready else [failed]}  # type: ignore[dict-item]
        await self.create(kinds.MACHINE, name, spec, status, labels=LABELS, finalizers=["machine.cluster.x-k8s.io"])
        await self.workload.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        await self.node(name, ready=ready)

    async def node(self, name: str, *, ready: bool) -> None:
        conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
        await self.workload.merge(kinds.NODE, name, None, {"status": {"conditions": conditions}}, subresource="status")

    async def report(self, name: str) -> None:
        """As the health check does."""
        await self.create(kinds.BYO_REMEDIATION, name, {}, labels=LABELS)

    async def step(self) -> float | None:
        """One pass with what is now."""
        await self.requests._list()
        await self.machines._list()
        await self.hosts._list()
        return (await self.reconciler.reconcile(TENANT, "demo")).after

    async def gone(self, name: str) -> bool:
        found = await self.kube.get(kinds.MACHINE, name, TENANT)
        return found is None or "deletionTimestamp" in found["metadata"]

    async def vanish(self, name: str) -> None:
        """Its host is clean, and Cluster API lets it go, with what it owns."""
        await self.kube.merge(kinds.MACHINE, name, TENANT, {"metadata": {"finalizers": []}})
        await self.kube.delete(kinds.BYO_REMEDIATION, name, TENANT)

    async def status(self) -> dict[str, Any]:
        found = await self.kube.get(kinds.BYO_CLUSTER, "demo", TENANT)
        assert found is not None
        return dict(found["status"])

    async def allowed(self) -> tuple[str, str]:
        found = get_condition({"status": await self.status()}, "RemediationAllowed") or {}
        return str(found.get("status")), str(found.get("reason", ""))

    async def skipped(self, name: str) -> str | None:
        found = await self.kube.get(kinds.MACHINE, name, TENANT)
        assert found is not None
        return (found["metadata"].get("annotations") or {}).get(names.SKIP_REMEDIATION_ANNOTATION)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    cluster = await made.create(kinds.CLUSTER, "demo", {"controlPlaneRef": {"kind": "ManagedControlPlane", "name": "demo"}}, {"infrastructureReady": True})
    owners = [{"apiVersion": cluster["apiVersion"], "kind": "Cluster", "name": "demo", "uid": cluster["metadata"]["uid"]}]
    await made.create(kinds.BYO_CLUSTER, "demo", {}, labels=LABELS, ownerReferences=owners)
    await made.create(kinds.MANAGED_CONTROL_PLANE, "demo", {"addons": {"cni": "cilium"}}, labels=LABELS)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
    await made.kube.create({**secret, "data": {"value": KUBECONFIG}})
    return made


async def test_a_silent_worker_is_replaced_with_its_reason_in_the_history(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.worker(name, ready=name != "a")
    assert await bench.step() is None and await bench.allowed() == ("True", "")
    await bench.report("a")
    assert await bench.step() is not None
    assert await bench.gone("a") and not await bench.gone("b")
    [made] = (await bench.status())["replacements"]
    assert (made["machine"], made["host"], made["cause"], made["number"]) == ("a", "host-a", "Unhealthy", 1) and "status Unknown" in made["reason"]
    found = await bench.kube.get(kinds.BYO_CLUSTER, "demo", TENANT)
    assert found is not None and found["status"]["ready"] is True
    [event] = [item for item in transitions(found) if item.reason == "WorkerReplaced"]
    assert event.warning and "host-a" in event.message and "number 1" in event.message and event.since == made["at"]
    await bench.step()
    assert len((await bench.status())["replacements"]) == 1, "it is one replacement, however often it is seen"


async def test_a_worker_that_leaves_uses_up_nothing_and_hides_nobody(bench: Bench) -> None:
    """A dead host never says that it is clean, so its Machine stays; the health check counts it, and stops at its report (Cluster API v1.7.7)."""
    for name in ("a", "a2", "b"):
        await bench.worker(name, ready=name == "a2", old=True)
    await bench.node("b", ready=True)
    await bench.report("a")
    await bench.step()
    assert await bench.gone("a") and await bench.skipped("a") == names.CKP, "it is no target of the health check any more"
    await bench.node("b", ready=False)
    await bench.report("b")
    await bench.step()
    assert await bench.gone("b"), "1 of 2 that stay"
    assert not await bench.gone("a2") and await bench.skipped("a2") is None


@pytest.mark.parametrize(("connected", "minutes", "isolated"), [("False", 6, True), ("False", 1, False), ("True", 60, False)])
async def test_a_worker_that_leaves_has_a_successor_although_its_host_does_not_answer(bench: Bench, connected: str, minutes: int, isolated: bool) -> None:
    """A MachineSet counts what is not gone yet (v1.7.7: syncReplicas), and a dead host never is. What keeps it is the MachineSet's selector."""
    await bench.worker("a", ready=False, old=True)
    await bench.kube.merge(kinds.MACHINE, "a", TENANT, {"metadata": {"labels": {names.DEPLOYMENT_NAME_LABEL: "demo-workers"}}})
    since = rfc3339(START - timedelta(minutes=minutes))
    agent = {"conditions": [{"type": "AgentConnected", "status": connected, "lastTransitionTime": since}]}
    await bench.create(kinds.BYO_HOST, "host-a", {"machineRef": {"name": "a", "uid": "1"}}, agent)
    await bench.report("a")
    await bench.step()
    assert await bench.step() == 30.0 and await bench.gone("a"), "it goes on being watched"
    found = await bench.kube.get(kinds.MACHINE, "a", TENANT)
    assert found is not None and (names.DEPLOYMENT_NAME_LABEL not in found["metadata"]["labels"]) is isolated
    assert found["metadata"]["labels"][names.CLUSTER_NAME_LABEL] == "demo"
    host = await bench.kube.get(kinds.BYO_HOST, "host-a", TENANT)
    assert host is not None and host["spec"]["machineRef"], "it keeps its host"


async def test_too_many_at_once_are_left_with_a_sentence_and_do_not_change_ready(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.worker(name, ready=False, old=True)
        await bench.report(name)
    await bench.step()
    assert not await bench.gone("a") and not await bench.gone("b")
    assert await bench.allowed() == ("False", "TooManyUnhealthy")
    found = {"status": await bench.status()}
    # The health check does nothing while the cluster's InfrastructureReady, which mirrors this one, is not True.
    assert (get_condition(found, "Ready") or {})["status"] == "True"
    assert [entry["action"] for entry in found["status"]["unhealthy"]] == ["Waiting", "Waiting"]


async def test_what_fails_together_is_left_although_it_is_reported_one_after_the_other(bench: Bench) -> None:
    """The health check looks at each node when its own timeout is over. Whether others are Ready is seen, and not only heard of."""
    for name in ("a", "b"):
        await bench.worker(name, ready=False, old=True)
    await bench.report("a")
    await bench.step()
    assert not await bench.gone("a") and await bench.allowed() == ("False", "TooManyUnhealthy")
    [entry] = (await bench.status())["unhealthy"]
    assert "2 of 2 workers are not healthy at once (host-a, b)" in entry["message"]
    await bench.node("b", ready=True)
    await bench.step()
    assert await bench.gone("a") and not await bench.gone("b")


async def test_a_worker_whose_node_is_ready_again_is_watched_again(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.worker(name, ready=False, old=True)
        await bench.report(name)
    await bench.step()
    assert await bench.skipped("a") == names.CKP
    for name in ("a", "b"):
        await bench.node(name, ready=True)
    await bench.step()
    assert await bench.kube.list(kinds.BYO_REMEDIATION, TENANT) == []
    assert await bench.skipped("a") is None and not await bench.gone("a")
    await bench.step()
    assert await bench.allowed() == ("True", "") and (await bench.status())["unhealthy"] == []


async def test_a_persons_own_mark_is_left_alone(bench: Bench) -> None:
    await bench.worker("a", ready=False)
    await bench.kube.merge(kinds.MACHINE, "a", TENANT, {"metadata": {"annotations": {names.SKIP_REMEDIATION_ANNOTATION: "true"}}})
    await bench.step()
    assert await bench.skipped("a") == "true"


async def test_a_node_that_never_was_ready_waits_for_its_start_and_without_a_network_for_its_owner(bench: Bench) -> None:
    await bench.worker("a", ready=False, was_ready=False)
    await bench.report("a")
    assert await bench.step() is not None
    assert not await bench.gone("a") and await bench.allowed() == ("False", "WaitingForStartup")
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"addons": {"cni": "none"}}})
    bench.clock.advance(86400)
    await bench.step()
    assert not await bench.gone("a") and await bench.allowed() == ("False", "WaitingForNetwork")
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"addons": {"cni": "cilium"}}})
    await bench.step()
    assert await bench.gone("a")


async def test_the_third_that_fails_alike_is_held_across_restarts_until_a_person_decides(bench: Bench) -> None:
    for number in range(3):
        await bench.worker(f"m{number}", ready=False)
        await bench.report(f"m{number}")
        await bench.step()
        bench.clock.advance(1200)
        await bench.step()
        if number < 2:
            assert await bench.gone(f"m{number}")
            await bench.vanish(f"m{number}")
        bench.restart()
    assert not await bench.gone("m2") and await bench.allowed() == ("False", "Held")
    [worker] = (await bench.status())["unhealthy"]
    assert worker["action"] == "Held" and "ckp host remove host-m2" in worker["message"]
    bench.clock.advance(3 * 86400)
    bench.restart()
    await bench.step()
    assert not await bench.gone("m2"), "time alone does not let it go on"
    resumed = {names.RESUMED_ANNOTATION: rfc3339(bench.clock.now())}
    await bench.kube.merge(kinds.BYO_CLUSTER, "demo", TENANT, {"metadata": {"annotations": resumed}})
    await bench.step()
    assert await bench.gone("m2")


async def test_killed_between_the_decision_and_the_deletion_it_is_not_decided_again(bench: Bench) -> None:
    await bench.worker("a", ready=False)
    await bench.report("a")
    bench.kube.on_fault(lambda verb, kind, _: KubeError("killed", code=500) if (verb, kind) == ("delete", kinds.MACHINE) else None)
    with pytest.raises(KubeError):
        await bench.step()
    assert len((await bench.status())["replacements"]) == 1 and not await bench.gone("a")
    bench.kube.on_fault(None)
    bench.restart()
    await bench.step()
    assert await bench.gone("a") and len((await bench.status())["replacements"]) == 1


async def test_with_the_api_server_gone_nobody_is_replaced_but_one_that_failed_for_good(bench: Bench) -> None:
    for name in ("a", "b", "c", "d"):
        await bench.worker(name, ready=False, old=True)
    await bench.report("a")
    await bench.report("b")
    await bench.kube.merge(kinds.MACHINE, "b", TENANT, {"status": {"failureMessage": "host b was removed"}}, subresource="status")
    bench.workload.on_fault(lambda *_: KubeError("connection refused", code=0))
    await bench.step()
    assert not await bench.gone("a") and await bench.gone("b")
    assert await bench.allowed() == ("False", "ClusterNotReached")


async def test_a_cluster_that_is_being_deleted_replaces_nobody(bench: Bench) -> None:
    await bench.worker("a", ready=False, old=True)
    await bench.report("a")
    await bench.kube.merge(kinds.CLUSTER, "demo", TENANT, {"metadata": {"annotations": {names.DELETE_REQUESTED_ANNOTATION: "now"}}})
    await bench.step()
    assert not await bench.gone("a")


async def test_a_health_check_of_0_2_0_is_made_to_report(bench: Bench) -> None:
    labels = {**LABELS, names.DOMAIN_LABEL: "default", names.PROJECT_LABEL: "default"}
    spec = {"clusterName": "demo", "maxUnhealthy": "50%", "nodeStartupTimeout": "30m0s"}
    await bench.create(kinds.MACHINE_HEALTH_CHECK, "demo-workers", spec, labels=labels)
    await bench.create(kinds.MACHINE_HEALTH_CHECK, "by-hand", spec, labels=LABELS)
    await bench.step()
    check = await bench.kube.get(kinds.MACHINE_HEALTH_CHECK, "demo-workers", TENANT)
    assert check is not None and check["spec"]["maxUnhealthy"] == "100%" and check["spec"]["nodeStartupTimeout"] == "30m0s"
    template = await bench.kube.get(kinds.BYO_REMEDIATION_TEMPLATE, check["spec"]["remediationTemplate"]["name"], TENANT)
    assert template is not None and template["spec"] == {"template": {"spec": {}}}
    other = await bench.kube.get(kinds.MACHINE_HEALTH_CHECK, "by-hand", TENANT)
    assert other is not None and "remediationTemplate" not in other["spec"]


@pytest.mark.parametrize("changed", [{"maxUnhealthy": 3}, {"maxUnhealthy": "30%"}, {"remediationTemplate": {"name": "mine"}}])
async def test_a_health_check_that_a_person_changed_stays_as_it_is(bench: Bench, changed: dict[str, Any]) -> None:
    labels = {**LABELS, names.DOMAIN_LABEL: "default"}
    made = await bench.create(kinds.MACHINE_HEALTH_CHECK, "demo-workers", {"clusterName": "demo", "maxUnhealthy": "50%"} | changed, labels=labels)
    await bench.step()
    found = await bench.kube.get(kinds.MACHINE_HEALTH_CHECK, "demo-workers", TENANT)
    assert found is not None and found["spec"] == made["spec"]

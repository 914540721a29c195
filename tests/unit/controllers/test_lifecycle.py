"""The fourteen steps from the objects of a cluster, against a simulated API server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.controllers.lifecycle.reconciler import POLL, POLL_DONE, LifecycleReconciler
from ckp.runtime.informer import Informer
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
LABELS = {names.CLUSTER_NAME_LABEL: "demo"}
GROUP = {names.group_label("lab"): ""}


class Bench:
    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.hosts = Informer(self.kube, kinds.BYO_HOST, TENANT)
        self.reconciler = LifecycleReconciler(self.kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), self.hosts)

    async def create(self, kind: kinds.Kind, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None, **meta: Any) -> str:
        """Returns its uid."""
        metadata = {"name": name, "namespace": TENANT, "labels": LABELS, **meta}
        made = await self.kube.create({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec})
        if status:
            await self.kube.merge(kind, name, TENANT, {"status": status}, subresource="status")
        return str(made["metadata"]["uid"])

    async def host(self, name: str, machine: str = "", **meta: Any) -> None:
        spec = {"machineRef": {"name": "m", "uid": machine}} if machine else {}
        status = {"facts": {"os_id": "debian", "os_version": "12"}, "agent": {"connected": True, "certificateSerial": "0a"}}
        await self.create(kinds.BYO_HOST, name, spec, status, **{"labels": GROUP, **meta})

    async def start(self) -> None:
        await self.create(kinds.CLUSTER, "demo", {}, {"infrastructureReady": True})
        await self.create(kinds.MANAGED_CONTROL_PLANE, "demo", {"version": "v1.35.1"})
        await self.create(kinds.MACHINE_DEPLOYMENT, "demo-workers", {"replicas": 2})
        await self.create(kinds.BYO_MACHINE_TEMPLATE, "demo-workers", {"template": {"spec": {"selector": {"matchLabels": GROUP}}}})
        await self.create(kinds.KUBEADM_CONFIG_TEMPLATE, "demo-workers", {})

    async def pass_once(self) -> tuple[dict[str, str], float | None]:
        await self.hosts._list()
        result = await self.reconciler.reconcile(TENANT, "demo")
        plane = await self.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert plane is not None
        return {step["name"]: step["state"] for step in plane["status"]["steps"]}, result.after


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.start()
    return made


def running(states: dict[str, str]) -> list[str]:
    return [name for name, state in states.items() if state == "Running"]


async def test_hosts_that_are_not_in_the_group_are_what_a_cluster_waits_for(bench: Bench) -> None:
    await bench.host("a")
    await bench.host("b", labels={})
    states, after = await bench.pass_once()
    assert running(states) == ["HostsAssigned"] and after == POLL
    assert [states[name] for name in ("HostsProvisioned", "AgentsRegistered", "HostsApproved")] == ["Done"] * 3
    await bench.kube.merge(kinds.BYO_HOST, "b", TENANT, {"metadata": {"labels": GROUP}})
    states, _ = await bench.pass_once()
    assert running(states) == ["ReconcilersBootstrapped"] and states["ResourcesCreated"] == "Done"


async def test_a_revoked_host_is_not_approved(bench: Bench) -> None:
    await bench.host("a")
    await bench.host("b")
    await bench.kube.merge(kinds.BYO_HOST, "b", TENANT, {"spec": {"revokedSerial": "0a"}})
    assert running((await bench.pass_once())[0]) == ["HostsApproved"]


WORKS = {"type": "WorkloadReady", "status": "True", "lastTransitionTime": "2026-04-01T00:00:00Z"}


async def test_a_cluster_with_all_that_it_asked_for_is_complete(bench: Bench) -> None:
    for name in ("m1", "m2"):
        uid = await bench.create(kinds.BYO_MACHINE, name, {})
        await bench.host(f"host-{name}", machine=uid)
        await bench.create(kinds.MACHINE, name, {}, {"nodeRef": {"name": name}, "conditions": [{"type": "NodeHealthy", "status": "True"}]})
    owners = [{"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "name": "demo", "uid": "u"}]
    await bench.create(kinds.CERTIFICATE, "demo-ca", {}, {"conditions": [{"type": "Ready", "status": "True"}]}, ownerReferences=owners)
    status: dict[str, Any] = {
        "ready": True,
        "conditions": [WORKS],
        "addons": [{"name": "cilium", "state": "Installing", "message": "helm is installing the chart"}],
    }
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": status}, subresource="status")
    assert running((await bench.pass_once())[0]) == ["NetworkInstalled"]
    status = {"addons": [{"name": "cilium", "state": "Installed"}]}
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": status}, subresource="status")
    states, after = await bench.pass_once()
    assert set(states.values()) == {"Done", "Skipped"} and states["StorageAndBackup"] == "Skipped" and after == POLL_DONE


async def test_a_cluster_in_which_pods_stop_working_is_not_ready_any_longer(bench: Bench) -> None:
    for name in ("m1", "m2"):
        await bench.host(f"host-{name}", machine=await bench.create(kinds.BYO_MACHINE, name, {}))
        await bench.create(kinds.MACHINE, name, {}, {"nodeRef": {"name": name}, "conditions": [{"type": "NodeHealthy", "status": "True"}]})

    async def step(*conditions: dict[str, str]) -> tuple[str, str]:
        await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"ready": True, "conditions": conditions}}, subresource="status")
        await bench.pass_once()
        plane = await bench.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert plane is not None
        return plane["status"]["steps"][10]["state"], plane["status"]["steps"][10].get("message", "")

    assert await step() == ("Running", "no pod has been seen to work yet"), "what was never seen is not so"
    assert await step(WORKS) == ("Done", "")
    assert await step() == ("Done", ""), "as 0.2.0 left it: until the canary has started"
    broken = {**WORKS, "status": "False", "reason": "DNSNotReady", "message": "no pod of CoreDNS is ready"}
    assert await step(broken) == ("Running", "no pod of CoreDNS is ready")
    assert (await step({**broken, "status": "Unknown", "message": "it can't be asked"})) == ("Unknown", "it can't be asked")
    assert await step(WORKS) == ("Done", "")


UP = {"initialized": True, "ready": True, "conditions": [WORKS]}
CUT_OFF = {**WORKS, "status": "Unknown", "reason": "ClusterNotReached", "message": "the cluster's API server can't be asked: timed out"}
HELD = {"type": "Ready", "status": "False", "reason": "DataLost", "message": "no member of etcd has data"}
LOST = "the cluster's API server does not serve: no member of etcd has data"


@pytest.mark.parametrize(
    ("status", "why", "usable"),
    [
        ({"ready": False, "conditions": [HELD, WORKS]}, LOST, "Running"),
        ({"conditions": [CUT_OFF]}, "the cluster's API server can't be asked: timed out", "Unknown"),
    ],
)
async def test_steps_that_only_the_api_server_can_tell_are_unknown_while_it_can_not_be_asked(
    bench: Bench, status: dict[str, Any], why: str, usable: str
) -> None:
    """Cluster API leaves its last word in the Machines. That a cluster without a control plane is not ready is seen all the same."""
    for name in ("m1", "m2"):
        await bench.host(f"host-{name}", machine=await bench.create(kinds.BYO_MACHINE, name, {}))
        await bench.create(kinds.MACHINE, name, {}, {"nodeRef": {"name": name}, "conditions": [{"type": "NodeHealthy", "status": "True"}]})

    async def steps(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {**UP, **changes}}, subresource="status")
        await bench.pass_once()
        plane = await bench.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert plane is not None
        return {step["name"]: step for step in plane["status"]["steps"]}

    before = await steps({})
    assert (before["WorkersJoined"]["state"], before["ClusterReady"]["state"]) == ("Done", "Done")
    lost = await steps(status)
    assert (lost["WorkersJoined"]["state"], lost["WorkersJoined"]["message"]) == ("Unknown", why)
    assert lost["WorkersJoined"]["finishedAt"] == before["WorkersJoined"]["finishedAt"], "when it was done is known"
    assert (lost["ClusterReady"]["state"], lost["ClusterReady"]["message"]) == (usable, why)
    assert lost["ReconcilersBootstrapped"]["state"] == "Done", "which hosts its machines hold is seen without it"
    assert await steps({}) == before


async def test_a_machine_that_failed_is_named_in_the_step(bench: Bench) -> None:
    await bench.host("a")
    await bench.host("b")
    failed = {"type": "BYOHostReady", "status": "False", "severity": "Error", "reason": "CannotProvision", "message": "there is no bundle"}
    await bench.create(kinds.BYO_MACHINE, "m1", {}, {"conditions": [failed]})
    await bench.pass_once()
    plane = await bench.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
    assert plane is not None and plane["status"]["steps"][7]["message"] == "m1: there is no bundle"

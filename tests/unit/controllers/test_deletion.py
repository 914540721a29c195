"""A cluster is deleted within a bound, or by force, and what it leaves is told."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.api.kinds import Kind
from ckp.clients.kube import KubeError
from ckp.controllers.lifecycle.deletion import DeletionReconciler, sentences
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import rfc3339
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
START = datetime(2026, 4, 1, 12, tzinfo=UTC)
LABELS = {names.CLUSTER_NAME_LABEL: "demo"}


class Bench:
    """A cluster of two workers, one of whose hosts does not answer."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.workload = KubeSimulator(manager="ckp-controllers")
        self.clock = ManualClock(START)
        self.reconciler = DeletionReconciler(self.kube, self.clock, WorkloadClients(lambda _kubeconfig: self.workload))

    async def create(self, kind: Kind, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> None:
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": TENANT, **metadata}, "spec": spec}
        await self.kube.create(body)
        if status:
            await self.kube.merge(kind, name, TENANT, {"status": status}, subresource="status")

    async def ask(self, **more: str) -> None:
        annotations = {names.DELETE_REQUESTED_ANNOTATION: rfc3339(START), **more}
        await self.kube.merge(kinds.CLUSTER, "demo", TENANT, {"metadata": {"annotations": annotations}})

    async def annotations(self, kind: Kind, name: str) -> dict[str, str]:
        found = await self.kube.get(kind, name, TENANT)
        assert found is not None
        return dict(found["metadata"].get("annotations") or {})


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.create(kinds.CLUSTER, "demo", {})
    await made.create(kinds.MACHINE_DEPLOYMENT, "demo-workers", {}, labels=LABELS)
    for name, connected in (("here", "True"), ("away", "False")):
        await made.create(kinds.BYO_HOST, f"host-{name}", {}, {"conditions": [{"type": "AgentConnected", "status": connected}]})
        await made.create(kinds.BYO_MACHINE, name, {}, {"hostRef": {"name": f"host-{name}"}}, labels=LABELS)
        await made.create(kinds.MACHINE, name, {}, labels=LABELS, finalizers=["machine.cluster.x-k8s.io"])
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
    await made.kube.create({**secret, "data": {"value": base64.b64encode(b"kubeconfig").decode()}})
    return made


async def test_by_itself_it_waits_for_everything_and_forces_nothing(bench: Bench) -> None:
    await bench.ask()
    assert (await bench.reconciler.reconcile(TENANT, "demo")).after
    bench.clock.advance(3600)
    assert (await bench.reconciler.reconcile(TENANT, "demo")).after
    assert await bench.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", TENANT) is None
    for name in ("here", "away"):
        assert not await bench.annotations(kinds.MACHINE, name) and not await bench.annotations(kinds.BYO_MACHINE, name)


async def test_by_force_only_hosts_that_answer_are_waited_for_and_only_for_some_minutes(bench: Bench) -> None:
    await bench.ask(**{names.FORCE_DELETE_ANNOTATION: rfc3339(START)})
    assert (await bench.reconciler.reconcile(TENANT, "demo")).after
    for name in ("here", "away"):
        assert names.FORCED.items() <= (await bench.annotations(kinds.MACHINE, name)).items()
    assert names.FORCE_RELEASE_ANNOTATION in await bench.annotations(kinds.BYO_MACHINE, "away")
    assert names.FORCE_RELEASE_ANNOTATION not in await bench.annotations(kinds.BYO_MACHINE, "here"), "it can still be cleaned"
    bench.clock.advance(timedelta(minutes=6).total_seconds())
    await bench.reconciler.reconcile(TENANT, "demo")
    assert names.FORCE_RELEASE_ANNOTATION in await bench.annotations(kinds.BYO_MACHINE, "here")


async def test_force_helps_also_where_the_cluster_itself_was_deleted_already(bench: Bench) -> None:
    await bench.kube.merge(kinds.CLUSTER, "demo", TENANT, {"metadata": {"finalizers": ["cluster.cluster.x-k8s.io"]}})
    await bench.kube.delete(kinds.CLUSTER, "demo", TENANT)
    await bench.ask(**{names.FORCE_DELETE_ANNOTATION: rfc3339(START)})
    assert (await bench.reconciler.reconcile(TENANT, "demo")).after, "there may be machines left to force"
    assert names.FORCE_RELEASE_ANNOTATION in await bench.annotations(kinds.BYO_MACHINE, "away")


async def test_the_volumes_that_it_leaves_are_noted_while_its_api_can_still_be_asked(bench: Bench) -> None:
    claim = {"namespace": "shop", "name": "data"}
    spec = {"csi": {"driver": "ceph.example", "volumeHandle": "0001"}, "claimRef": claim}
    await bench.workload.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-1"}, "spec": spec})
    await bench.ask()
    await bench.reconciler.reconcile(TENANT, "demo")
    noted = (await bench.annotations(kinds.CLUSTER, "demo"))[names.LEFT_BEHIND_ANNOTATION]
    assert json.loads(noted) == ["volume pvc-1 (ceph.example 0001), of claim shop/data"]


@pytest.mark.parametrize("text", ["", "kind: Config\n", "[", "clusters: 3", "\x00", "null"])
async def test_a_kubeconfig_that_cannot_be_read_does_not_hold_up_the_deletion(bench: Bench, text: str) -> None:
    bench.reconciler.clients = WorkloadClients()
    await bench.kube.merge(kinds.SECRET, "demo-kubeconfig", TENANT, {"data": {"value": base64.b64encode(text.encode()).decode()}})
    await bench.ask()
    await bench.reconciler.reconcile(TENANT, "demo")
    noted = json.loads((await bench.annotations(kinds.CLUSTER, "demo"))[names.LEFT_BEHIND_ANNOTATION])
    assert "its volumes are not known: the kubeconfig" in noted[0]
    assert await bench.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", TENANT) is None


async def test_an_api_server_that_is_gone_does_not_hold_up_the_deletion(bench: Bench) -> None:
    bench.workload.on_fault(lambda *_: KubeError("the API server of demo can't be reached", code=0))
    await bench.ask()
    await bench.reconciler.reconcile(TENANT, "demo")
    noted = (await bench.annotations(kinds.CLUSTER, "demo"))[names.LEFT_BEHIND_ANNOTATION]
    assert json.loads(noted) == ["its volumes are not known: the API server of demo can't be reached"]
    assert await bench.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", TENANT) is None


def test_a_cluster_with_many_volumes_names_the_first() -> None:
    told = sentences({"metadata": {"name": f"pvc-{number:03}"}, "spec": {"nfs": {}}} for number in range(25))
    assert len(told) == 21 and told[0] == "volume pvc-000 (nfs), of claim /" and told[-1] == "and 5 more volumes"

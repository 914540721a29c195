"""Kubelets' serving certificates, with both clusters simulated."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from ckp.api import kinds
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.controlplane.bootstrap import bootstrap_objects
from ckp.controllers.providers.byo.serving_certificates import JOINS_WITHIN, OFTEN, RARELY, ServingCertificatesReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.runtime.informer import Informer
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_control_plane_certificates import PLAN
from tests.unit.rules.test_kubelet_certificates import request

TENANT = "ckp-default-default"
LABEL = {"cluster.x-k8s.io/cluster-name": "demo"}


class Bench:
    """A cluster with its control plane, and hosts that join it."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.cluster = KubeSimulator(manager="kubelet", namespaces=("default",))
        self.clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
        planes, hosts, machines = (Informer(self.kube, kind, TENANT) for kind in (kinds.MANAGED_CONTROL_PLANE, kinds.BYO_HOST, kinds.BYO_MACHINE))
        self.informers = (planes, hosts, machines)
        self.reconciler = ServingCertificatesReconciler(self.kube, self.clock, planes, hosts, machines, WorkloadClients(lambda _: self.cluster))

    async def start(self, *hosts: str, cluster: str = "demo") -> None:
        meta = {"name": "demo", "namespace": TENANT, "labels": LABEL}
        await self.kube.create({"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": {}})
        secret = {"value": base64.b64encode(b"{}").decode()}
        await self.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}, "data": secret})
        for number, name in enumerate(hosts, start=1):
            await self.join(name, f"10.0.0.{number}", cluster)

    async def join(self, name: str, address: str, cluster: str = "demo", phase: str = "Joining") -> None:
        meta = {"name": f"m-{name}", "namespace": TENANT, "labels": {"cluster.x-k8s.io/cluster-name": cluster}}
        machine = await self.kube.create({"apiVersion": kinds.BYO_MACHINE.api_version, "kind": "ByoMachine", "metadata": meta, "spec": {}})
        spec = {"machineRef": {"name": f"m-{name}", "uid": machine["metadata"]["uid"]}}
        await self.kube.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": name, "namespace": TENANT}, "spec": spec})
        status = {"facts": {"addresses": [address], "default_address": address}, "observed": {"phase": phase, "cluster": "anything"}}
        await self.kube.merge(kinds.BYO_HOST, name, TENANT, {"status": status}, subresource="status")

    async def ask(self, obj: Obj) -> None:
        await self.cluster.create(obj)

    async def pass_once(self) -> float | None:
        for informer in self.informers:
            await informer._list()
        return (await self.reconciler.reconcile(TENANT, "demo")).after

    def decided(self) -> dict[str, list[str]]:
        found = self.cluster.all_stored(kinds.CSR)
        return {obj["metadata"]["name"]: [item["type"] for item in (obj.get("status") or {}).get("conditions", [])] for obj in found}

    def events(self) -> list[Obj]:
        return self.kube.all_stored(kinds.EVENT)


async def test_a_joining_hosts_kubelet_gets_its_certificate() -> None:
    bench = Bench()
    await bench.start("one")
    assert await bench.pass_once() == OFTEN
    await bench.ask(request())
    bench.clock.advance(OFTEN)
    await bench.pass_once()
    assert bench.decided() == {"csr-one": ["Approved"]} and bench.events() == []
    bench.clock.advance(OFTEN)
    await bench.pass_once()
    assert bench.decided() == {"csr-one": ["Approved"]}, "once"


async def test_what_is_not_a_hosts_own_is_left_and_said_once_until_it_is() -> None:
    bench = Bench()
    await bench.start("one")
    await bench.ask(request(names=("one", "10.0.0.7")))
    for _ in range(3):
        await bench.pass_once()
        bench.clock.advance(OFTEN)
    assert bench.decided() == {"csr-one": []}
    [event] = bench.events()
    assert event["involvedObject"]["kind"] == "ByoHost" and event["involvedObject"]["name"] == "one"
    assert "csr-one" in event["message"] and "host one does not have 10.0.0.7" in event["message"]
    await bench.kube.merge(
        kinds.BYO_HOST, "one", TENANT, {"status": {"facts": {"addresses": ["10.0.0.7"], "default_address": "10.0.0.7"}}}, subresource="status"
    )
    await bench.pass_once()
    assert bench.decided() == {"csr-one": ["Approved"]}, "the host has reported its new address"


async def test_hosts_of_other_clusters_and_free_ones_get_none_whatever_they_report() -> None:
    bench = Bench()
    await bench.start("one")
    await bench.join("two", "10.0.0.2", "other")
    await bench.kube.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "three", "namespace": TENANT}, "spec": {}})
    report = {"facts": {"addresses": ["10.0.0.3"]}, "observed": {"phase": "Joined", "cluster": f"{TENANT}/demo"}}
    await bench.kube.merge(kinds.BYO_HOST, "three", TENANT, {"status": report}, subresource="status")
    await bench.ask(request("two", ("two", "10.0.0.2")))
    await bench.ask(request("three", ("three", "10.0.0.3")))
    await bench.pass_once()
    assert bench.decided() == {"csr-two": [], "csr-three": []}
    assert {event["involvedObject"]["kind"] for event in bench.events()} == {"ManagedControlPlane"}


async def test_a_cluster_is_asked_often_while_hosts_join_and_rarely_afterwards() -> None:
    bench = Bench()
    await bench.start("one")
    await bench.pass_once()
    bench.clock.advance(JOINS_WITHIN + 1)
    assert await bench.pass_once() == RARELY
    asked = len(bench.cluster.calls)
    bench.clock.advance(RARELY / 2)
    assert await bench.pass_once() == RARELY / 2
    assert len(bench.cluster.calls) == asked, "a report of a host is no reason to ask"
    await bench.join("two", "10.0.0.2")
    assert await bench.pass_once() == OFTEN
    assert len(bench.cluster.calls) > asked


async def test_a_cluster_without_nodes_or_that_is_deleted_is_not_asked() -> None:
    bench = Bench()
    await bench.start()
    assert await bench.pass_once() is None
    await bench.join("one", "10.0.0.1", phase="Pulling")
    assert await bench.pass_once() is None
    await bench.kube.delete(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
    assert await bench.pass_once() is None
    assert bench.cluster.calls == []


async def test_a_cluster_that_does_not_answer_is_asked_again() -> None:
    bench = Bench()
    await bench.start("one")
    await bench.ask(request())

    def fault(verb: str, kind: kinds.Kind, name: str) -> KubeError | None:
        return KubeError("no answer", code=0)

    bench.cluster.on_fault(fault)
    assert await bench.pass_once() == OFTEN
    bench.cluster.on_fault(None)
    bench.clock.advance(OFTEN)
    await bench.pass_once()
    assert bench.decided() == {"csr-one": ["Approved"]}


def test_kubelets_ask_for_a_serving_certificate() -> None:
    documents: list[dict[str, Any]] = [json.loads(text) for text in bootstrap_objects(PLAN, "")[0]["data"]["kubeadm.json"].split("\n---\n")]
    assert next(item for item in documents if item["kind"] == "KubeletConfiguration")["serverTLSBootstrap"] is True

"""The address of a control plane over its life, against a simulated API server; load balancer, cert-manager and pods are played by hand."""

from __future__ import annotations

import asyncio
import base64
import json
from ipaddress import ip_address
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.kinds import Kind
from ckp.api.names import ADDRESSES_ANNOTATION
from ckp.api.platform import Releases
from ckp.api.states import ConditionType
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import certificates
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import SystemClock
from ckp.rules.conditions import get_condition
from tests.simulators.etcd import EtcdSimulator
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_control_plane_certificates import RELEASE, secret, with_names
from tests.worlds.tls import make_authority

TENANT = "ckp-default-default"
A, B = "10.88.0.150", "10.88.0.151"
IMAGES = {**RELEASE.images, "konnectivity-server": "v1"}
RELEASES = Releases(releases={"v1.35.1": RELEASE.model_copy(update={"images": IMAGES})})


class Bench:
    """One control plane, Service and all."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        clock = SystemClock()
        self.workload = KubeSimulator(manager="ckp-controllers")
        self.reconciler = ManagedControlPlaneReconciler(
            self.kube,
            clock,
            RELEASES,
            Applier(self.kube, clock),
            clients=WorkloadClients(lambda _kubeconfig: self.workload),
            connect_to_etcd=EtcdSimulator().connect,
        )
        self.authority = make_authority("kubernetes")

    async def start(self, **spec: Any) -> None:
        meta = {"name": "demo", "namespace": TENANT, "labels": {"cluster.x-k8s.io/cluster-name": "demo"}}
        cluster = await self.kube.create({"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {}})
        owner = {"apiVersion": cluster["apiVersion"], "kind": "Cluster", "name": "demo", "uid": cluster["metadata"]["uid"], "controller": True}
        obj = {"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": {**meta, "ownerReferences": [owner]}}
        await self.kube.create({**obj, "spec": {"version": "v1.35.1", **spec}})

    async def pass_once(self) -> Obj:
        await self.reconciler.reconcile(TENANT, "demo")
        return await self.plane()

    async def plane(self) -> Obj:
        found = await self.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert found
        return found

    async def service(self) -> Obj:
        found = await self.kube.get(kinds.SERVICE, "demo-apiserver", TENANT)
        assert found
        return found

    async def asks_for(self) -> str:
        return str((await self.service())["metadata"].get("annotations", {}).get(ADDRESSES_ANNOTATION, ""))

    async def give(self, *ingress: dict[str, str]) -> None:
        await self.kube.merge(kinds.SERVICE, "demo-apiserver", TENANT, {"status": {"loadBalancer": {"ingress": list(ingress)}}}, subresource="status")

    async def plan(self, address: str = "") -> Plan:
        plane = await self.plane()
        return Plan.of(plane, {"metadata": plane["metadata"], "spec": {}}, RELEASES, plane["spec"].get("controlPlaneEndpoint", {}).get("host", ""), address)

    async def issue(self, address: str) -> None:
        """What cert-manager does with the Certificates."""
        for part in certificates.AUTHORITIES:
            await self.kube.apply(secret(f"demo-{part}", self.authority))
        for leaf in certificates.leaves(await self.plan(address)):
            await self.kube.apply(secret(f"demo-{leaf.name}", with_names(self.authority, leaf)))

    async def come_up(self, address: str = A) -> Obj:
        """To a control plane that is ready."""
        await self.pass_once()
        await self.give({"ip": address})
        await self.pass_once()
        await self.issue(address)
        await self.pass_once()
        await self.kube.merge(kinds.STATEFUL_SET, "demo-etcd", TENANT, {"status": {"replicas": 1, "readyReplicas": 1}}, subresource="status")
        up = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1}
        await self.kube.merge(kinds.DEPLOYMENT, "demo-apiserver", TENANT, {"status": up}, subresource="status")
        await self.pass_once()
        for job in await self.kube.list(kinds.JOB, TENANT):
            done = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
            await self.kube.merge(kinds.JOB, job["metadata"]["name"], TENANT, {"status": done}, subresource="status")
        for part in ("controller-manager", "scheduler"):
            await self.kube.merge(kinds.DEPLOYMENT, f"demo-{part}", TENANT, {"status": up}, subresource="status")
        return await self.pass_once()


def verdict(plane: Obj, kind: str = ConditionType.ENDPOINT_AVAILABLE) -> tuple[str, str, str]:
    found = get_condition(plane, kind) or {}
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def both(plane: Obj) -> tuple[bool, str]:
    """status.ready, and the condition."""
    return plane["status"]["ready"], verdict(plane, "Ready")[0]


async def test_the_address_is_pinned_once_it_is_known() -> None:
    bench = Bench()
    await bench.start()
    assert both(await bench.come_up()) == (True, "True")
    assert await bench.asks_for() == A


@pytest.mark.parametrize("given", ["", B])
async def test_a_lost_address_is_asked_for_again_and_nothing_says_ready(given: str) -> None:
    bench = Bench()
    await bench.start()
    await bench.come_up()
    await bench.kube.delete(kinds.SERVICE, "demo-apiserver", TENANT)
    await bench.pass_once()
    assert await bench.asks_for() == A, "the new Service asks for the old address"
    if given:
        await bench.give({"ip": given})
    plane = await bench.pass_once()
    status, reason, message = verdict(plane)
    assert (status, reason) == ("False", "AddressLost")
    assert A in message and (given or "no address") in message
    assert both(plane) == (False, "False")
    assert plane["spec"]["controlPlaneEndpoint"] == {"host": A, "port": 6443}
    await bench.give({"ip": A})
    assert both(await bench.pass_once()) == (True, "True")


@pytest.mark.parametrize("spec", [{}, {"controlPlaneEndpoint": {"host": "api.demo.example", "port": 6443}}])
async def test_a_load_balancer_that_gives_only_a_name_is_refused_with_a_sentence(spec: dict[str, Any]) -> None:
    bench = Bench()
    await bench.start(**spec)
    await bench.pass_once()
    await bench.give({"hostname": "lb.example"})
    plane = await bench.pass_once()
    status, reason, message = verdict(plane)
    assert (status, reason) == ("False", "UnusableEndpoint") and "lb.example" in message and "use a load balancer" in message
    assert both(plane) == (False, "False")
    assert await bench.kube.list(kinds.CERTIFICATE, TENANT) == []


async def test_a_name_as_endpoint_is_in_kubeconfigs_and_certificate_and_never_where_an_address_must_be() -> None:
    bench = Bench()
    await bench.start(controlPlaneEndpoint={"host": "api.demo.example", "port": 6443}, certSANs=["203.0.113.7", "demo.example"])
    assert both(await bench.come_up()) == (True, "True")
    certificate = bench.kube.stored(kinds.CERTIFICATE, "demo-apiserver", TENANT)["spec"]
    assert {"api.demo.example", "demo.example"} < set(certificate["dnsNames"])
    assert {A, "203.0.113.7"} < set(certificate["ipAddresses"])
    for address in certificate["ipAddresses"]:
        ip_address(address)
    assert bench.workload.stored(kinds.ENDPOINT_SLICE, "kubernetes", "default")["endpoints"][0]["addresses"] == [A]
    config = json.loads(base64.b64decode(bench.kube.stored(kinds.SECRET, "demo-kubeconfig", TENANT)["data"]["value"]))
    assert config["clusters"][0]["cluster"]["server"] == "https://api.demo.example:6443"
    assert await bench.asks_for() == A


async def test_names_that_are_added_later_are_available_only_when_they_are_issued() -> None:
    bench = Bench()
    await bench.start()
    await bench.come_up()
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"certSANs": ["demo.example"]}})
    plane = await bench.pass_once()
    assert verdict(plane, ConditionType.CERTIFICATES_AVAILABLE)[0] == "False"
    assert "demo-apiserver with demo.example" in verdict(plane, ConditionType.CERTIFICATES_AVAILABLE)[2]
    await bench.issue(A)
    assert both(await bench.pass_once()) == (True, "True")


async def test_names_that_are_removed_leave_the_certificate_and_no_part_of_the_control_plane_starts_again() -> None:
    bench = Bench()
    await bench.start(certSANs=["demo.example"])
    await bench.come_up()
    before = bench.kube.stored(kinds.DEPLOYMENT, "demo-apiserver", TENANT)["spec"]
    assert "demo.example" in bench.kube.stored(kinds.CERTIFICATE, "demo-apiserver", TENANT)["spec"]["dnsNames"]
    await bench.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"certSANs": []}})
    assert both(await bench.pass_once()) == (True, "True")
    assert "demo.example" not in bench.kube.stored(kinds.CERTIFICATE, "demo-apiserver", TENANT)["spec"]["dnsNames"]
    assert bench.kube.stored(kinds.DEPLOYMENT, "demo-apiserver", TENANT)["spec"] == before, "the API server reads its certificate again by itself"


@pytest.mark.parametrize("code", [422, 500])
async def test_a_failure_in_the_middle_never_says_ready(code: int) -> None:
    """A DNS name where an address must be once made cert-manager refuse the certificate, and the conditions so far were summed up as Ready."""
    bench = Bench()
    await bench.start()
    await bench.pass_once()
    await bench.give({"ip": A})

    def fault(verb: str, kind: Kind, name: str) -> KubeError | None:
        refused = kind == kinds.CERTIFICATE and verb == "apply"
        return KubeError(f"{verb} {name}: not this one", code=code, reason="Invalid") if refused else None

    bench.kube.on_fault(fault)
    with pytest.raises(KubeError):
        await bench.pass_once()
    bench.kube.on_fault(None)
    plane = await bench.plane()
    assert both(plane) == (False, "False")
    if code == 422:
        assert verdict(plane, ConditionType.CERTIFICATES_AVAILABLE)[1:] == ("Refused", "apply demo-ca: not this one")


async def test_a_pass_that_is_cut_off_says_nothing() -> None:
    """A process that loses its lease is cancelled in the middle: what it had seen until then was summed up as Ready, and written."""
    bench = Bench()
    await bench.start()
    await bench.pass_once()
    await bench.give({"ip": A})
    before = (await bench.plane())["status"]

    def lost(verb: str, kind: Kind, _name: str) -> KubeError | None:
        if kind == kinds.CERTIFICATE and verb == "apply":
            raise asyncio.CancelledError
        return None

    bench.kube.on_fault(lost)
    with pytest.raises(asyncio.CancelledError):
        await bench.pass_once()
    bench.kube.on_fault(None)
    assert (await bench.plane())["status"] == before


def test_a_certificate_without_names_lacks_all_of_them() -> None:
    meta = {"name": "demo", "namespace": TENANT, "uid": "1"}
    plane = {"apiVersion": "v1", "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": "v1.35.1", "certSANs": ["x.example"]}}
    plan = Plan.of(plane, {"metadata": meta, "spec": {}}, RELEASES, A)
    lacking = certificates.lacking(plan, secret("demo-apiserver", make_authority("x")))
    assert {"x.example", A, "kubernetes.default"} < set(lacking)

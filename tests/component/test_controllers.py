"""CKP's reconcilers against a real API server with the real CRDs. What other controllers would do, the tests do by hand, and say so."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
import yaml

from ckp.api.host_protocol import BundleRef, Desired
from ckp.api.kinds import (
    BYO_CLUSTER,
    BYO_HOST,
    BYO_MACHINE,
    BYO_REMEDIATION,
    BYO_REMEDIATION_TEMPLATE,
    CERTIFICATE,
    CLUSTER,
    DEPLOYMENT,
    MACHINE,
    MACHINE_DEPLOYMENT,
    MANAGED_CONTROL_PLANE,
    NODE,
    SECRET,
    SERVICE,
    STATEFUL_SET,
)
from ckp.api.names import DELETE_REQUESTED_ANNOTATION, FORCE_RELEASE_ANNOTATION, HOSTS_NAMESPACE, group_label
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.certificates import leaves
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.lifecycle.deletion import DeletionReconciler
from ckp.controllers.providers.byo.cluster import ByoClusterReconciler
from ckp.controllers.providers.byo.machine import ByoMachineReconciler
from ckp.controllers.providers.byo.remediation import Remediation
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import SystemClock
from ckp.rules.conditions import get_condition
from ckp.runtime.informer import Informer
from tests.simulators.etcd import EtcdSimulator
from tests.simulators.kube import KubeSimulator
from tests.support.checkout import REPO
from tests.support.control_plane import TestControlPlane
from tests.unit.controllers.test_control_plane_certificates import with_names
from tests.worlds.tls import key_pem, make_authority

pytestmark = pytest.mark.component

CLOCK = SystemClock()
LABEL = {group_label("lab"): ""}
JOIN = {"apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "JoinConfiguration", "discovery": {"bootstrapToken": {"token": "abcdef.0123456789abcdef"}}}
CLOUD_CONFIG = "#cloud-config\n" + yaml.safe_dump(
    {
        "write_files": [
            {"path": "/run/kubeadm/kubeadm-join-config.yaml", "permissions": "0640", "content": yaml.safe_dump(JOIN)},
            {"path": "/run/cluster-api/placeholder", "permissions": "0640", "content": "text"},
        ],
        "runcmd": [
            "echo before",
            "kubeadm join --config /run/kubeadm/kubeadm-join-config.yaml && echo success > /run/cluster-api/bootstrap-success.complete",
            "echo after",
        ],
    }
)
CORE = ("etcd", "coredns", "pause", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubeadm")
IMAGES = (*CORE, "konnectivity-server", "konnectivity-agent")
RELEASES = Releases(
    releases={
        "v1.35.1": InstalledRelease(
            name="v1.35.1",
            stamp="v1.35.1-ckp",
            registry="registry.example:5000/ckp",
            images=dict.fromkeys(
                (
                    "pause",
                    "etcd",
                    "kube-apiserver",
                    "kube-controller-manager",
                    "kube-scheduler",
                    "kubeadm",
                    "coredns",
                    "konnectivity-server",
                    "konnectivity-agent",
                ),
                "v1",
            ),
            bundles={"debian-12": BundleRef(image="registry.example:5000/ckp/bundle@sha256:" + "0" * 64, tag="v1.35.1-ckp", release="v1.35.1")},
            cni={"cilium": "v1.19.5"},
        )
    },
    registry_ca="PEM",
)


def foundation() -> list[Obj]:
    return list(yaml.safe_load_all((REPO / "deploy" / "00-foundation.yaml").read_text()))


def owned_by(owner: Obj) -> list[Obj]:
    return [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": True}]


async def make_cluster(kube: Kube, namespace: str, **status: Any) -> Obj:
    cluster = await kube.create(
        {
            "apiVersion": CLUSTER.api_version,
            "kind": "Cluster",
            "metadata": {"name": "demo", "namespace": namespace},
            "spec": {"clusterNetwork": {"pods": {"cidrBlocks": ["10.42.0.0/16"]}, "services": {"cidrBlocks": ["10.43.0.0/16"]}}},
        }
    )
    await kube.merge(CLUSTER, "demo", namespace, {"status": {"infrastructureReady": True, **status}}, subresource="status")
    return cluster


async def make_host(kube: Kube, namespace: str, name: str) -> None:
    await kube.create({"apiVersion": BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": name, "namespace": namespace, "labels": LABEL}, "spec": {}})
    status = {
        "agent": {"connected": True},
        "observed": {"phase": "Free", "generation": 0},
        "facts": {"os_id": "debian", "os_version": "12", "default_address": "10.0.0.9"},
    }
    await kube.merge(BYO_HOST, name, namespace, {"status": status}, subresource="status")


async def make_machine(kube: Kube, namespace: str, name: str) -> None:
    """A Machine with its bootstrap data and ByoMachine, as Cluster API's core and kubeadm provider leave them."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-data", "namespace": namespace}}
    await kube.create({**secret, "data": {"value": base64.b64encode(CLOUD_CONFIG.encode()).decode()}})
    labels = {"cluster.x-k8s.io/cluster-name": "demo"}
    machine = await kube.create(
        {
            "apiVersion": MACHINE.api_version,
            "kind": "Machine",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "clusterName": "demo",
                "version": "v1.35.1",
                "bootstrap": {"dataSecretName": f"{name}-data"},
                "infrastructureRef": {"apiVersion": BYO_MACHINE.api_version, "kind": "ByoMachine", "name": name, "namespace": namespace},
            },
        }
    )
    await kube.create(
        {
            "apiVersion": BYO_MACHINE.api_version,
            "kind": "ByoMachine",
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owned_by(machine)},
            "spec": {"selector": {"matchLabels": LABEL}},
        }
    )


class Machines:
    """A ByoMachine reconciler with its informer."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace
        self.hosts = Informer(kube, BYO_HOST, namespace)
        self.reconciler = ByoMachineReconciler(kube, CLOCK, self.hosts, RELEASES)
        self.task = asyncio.create_task(self.hosts.run())

    async def reconcile(self, name: str) -> Obj:
        """One pass, with the hosts as they are now (in production an event brings them within milliseconds)."""
        await self.hosts._list()
        await self.reconciler.reconcile(self.namespace, name)
        found = await self.kube.get(BYO_MACHINE, name, self.namespace)
        return found or {}

    async def desired(self, host: str) -> Desired:
        secret = await self.kube.get(SECRET, f"{self.namespace}.{host}", HOSTS_NAMESPACE)
        assert secret
        return Desired.model_validate_json(base64.b64decode(secret["data"]["desired.json"]))

    async def report(self, host: str, **observed: Any) -> None:
        """What the hub writes when the agent reports."""
        await self.kube.merge(BYO_HOST, host, self.namespace, {"status": {"observed": observed}}, subresource="status")


@pytest.fixture
async def machines(kube: Kube, namespace: str) -> Any:
    made = Machines(kube, namespace)
    yield made
    made.task.cancel()


async def test_a_machine_becomes_ready_when_its_host_has_joined(machines: Machines, kube: Kube, namespace: str) -> None:
    """Contract (InfraMachine): providerID, ready, addresses."""
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    await machines.reconcile("m1")
    desired = await machines.desired("one")
    assert desired.membership
    assert (desired.generation, desired.membership.machine, desired.membership.release) == (1, "m1", "v1.35.1")
    assert desired.membership.pre_commands == ("echo before",)
    assert desired.membership.post_commands == ("echo after",)
    join = next(file for file in desired.membership.files if file.path == desired.membership.join_config)
    assert yaml.safe_load(join.content)["patches"] == {"directory": "/etc/kubernetes/ckp-patches"}
    await machines.report("one", generation=1, phase="Installing", cluster=desired.membership.cluster, machine="m1")
    waiting = await machines.reconcile("m1")
    assert waiting["status"]["ready"] is False
    assert (get_condition(waiting, "BYOHostReady") or {})["reason"] == "Installing"
    await machines.report("one", generation=1, phase="Joined", cluster=desired.membership.cluster, machine="m1")
    ready = await machines.reconcile("m1")
    assert ready["spec"]["providerID"] == desired.membership.provider_id
    assert ready["status"]["ready"] is True
    assert {"type": "InternalIP", "address": "10.0.0.9"} in ready["status"]["addresses"]
    assert (get_condition(ready, "Ready") or {})["status"] == "True"


async def test_a_host_is_claimed_and_prepared_before_there_is_join_data(machines: Machines, kube: Kube, namespace: str) -> None:
    """Contract (InfraMachine): provisioning ends only with the bootstrap data; what needs none of it is done meanwhile."""
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    await kube.merge(MACHINE, "m1", namespace, {"spec": {"bootstrap": {"dataSecretName": None, "configRef": {"kind": "KubeadmConfig", "name": "m1"}}}})
    await machines.reconcile("m1")
    early = await machines.desired("one")
    assert early.membership and early.membership.files == ()
    await machines.report("one", generation=1, phase="Prepared", cluster=early.membership.cluster, machine="m1")
    waiting = await machines.reconcile("m1")
    assert waiting["status"]["ready"] is False
    assert "waits for the control plane" in (get_condition(waiting, "BYOHostReady") or {})["message"]
    await kube.merge(MACHINE, "m1", namespace, {"spec": {"bootstrap": {"dataSecretName": "m1-data"}}})
    await machines.reconcile("m1")
    full = await machines.desired("one")
    assert full.membership and full.membership.files
    assert (full.generation, full.membership.provider_id) == (2, early.membership.provider_id)


async def test_a_report_of_an_older_generation_does_not_make_a_machine_ready(machines: Machines, kube: Kube, namespace: str) -> None:
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    await machines.report("one", generation=0, phase="Joined", cluster=f"{namespace}/demo")
    await machines.report("one", generation=0, phase="Free")
    assert (await machines.reconcile("m1"))["status"]["ready"] is False


async def test_two_machines_that_want_one_host_do_not_both_get_it(machines: Machines, kube: Kube, namespace: str) -> None:
    """facts: the predecessor's claim took the first host that matched, with races."""
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    for name in ("m1", "m2"):
        await make_machine(kube, namespace, name)
    await machines.hosts._list()
    results = await asyncio.gather(*(machines.reconciler.reconcile(namespace, name) for name in ("m1", "m2")), return_exceptions=True)
    assert all(not isinstance(item, Exception) or (isinstance(item, KubeError) and item.reason == "Conflict") for item in results)
    after = [await machines.reconcile(name) for name in ("m1", "m2")]
    with_host = [item["metadata"]["name"] for item in after if (item.get("status") or {}).get("hostRef")]
    assert len(with_host) == 1
    loser = next(item for item in after if not (item.get("status") or {}).get("hostRef"))
    assert (get_condition(loser, "BYOHostReady") or {})["message"] == "none of 1 matching hosts is free: 1 in use"


async def test_a_machine_whose_host_lost_its_label_keeps_it_and_takes_no_second_one(machines: Machines, kube: Kube, namespace: str) -> None:
    await make_cluster(kube, namespace)
    for name in ("one", "two"):
        await make_host(kube, namespace, name)
    await make_machine(kube, namespace, "m1")
    await machines.reconcile("m1")
    await kube.merge(BYO_HOST, "one", namespace, {"metadata": {"labels": {group_label("lab"): None}}})
    assert (await machines.reconcile("m1"))["status"]["hostRef"] == {"name": "one"}
    other = await kube.get(BYO_HOST, "two", namespace)
    assert other and "machineRef" not in other["spec"]


async def test_deletion_waits_until_the_host_is_clean(machines: Machines, kube: Kube, namespace: str) -> None:
    """facts: the predecessor removed the finalizer without waiting for the host's clean-up."""
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    await machines.reconcile("m1")
    await kube.delete(BYO_MACHINE, "m1", namespace)
    still = await machines.reconcile("m1")
    assert still["metadata"]["finalizers"]
    desired = await machines.desired("one")
    assert (desired.generation, desired.membership) == (2, None)
    await machines.report("one", generation=1, phase="Free")  # an old word
    assert await machines.reconcile("m1")
    await machines.report("one", generation=2, phase="Free")
    assert await machines.reconcile("m1") == {}
    host = await kube.get(BYO_HOST, "one", namespace)
    assert host and "machineRef" not in host["spec"]


async def test_an_unreachable_host_can_be_forced_away(machines: Machines, kube: Kube, namespace: str) -> None:
    await make_cluster(kube, namespace)
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    await machines.reconcile("m1")
    await kube.delete(BYO_MACHINE, "m1", namespace)
    assert await machines.reconcile("m1")
    await kube.merge(BYO_MACHINE, "m1", namespace, {"metadata": {"annotations": {FORCE_RELEASE_ANNOTATION: "yes"}}})
    assert await machines.reconcile("m1") == {}
    assert (await machines.desired("one")).membership is None, "it cleans itself when it comes back"


async def test_a_paused_cluster_is_left_alone(machines: Machines, kube: Kube, namespace: str) -> None:
    """Contract (every provider): Cluster.spec.paused."""
    await make_cluster(kube, namespace)
    await kube.merge(CLUSTER, "demo", namespace, {"spec": {"paused": True}})
    await make_host(kube, namespace, "one")
    await make_machine(kube, namespace, "m1")
    before = await kube.get(BYO_MACHINE, "m1", namespace)
    await machines.reconcile("m1")
    assert await kube.get(BYO_MACHINE, "m1", namespace) == before


async def make_control_plane(kube: Kube, namespace: str, version: str = "v1.35.1") -> None:
    cluster = await make_cluster(kube, namespace)
    await kube.create(
        {
            "apiVersion": MANAGED_CONTROL_PLANE.api_version,
            "kind": "ManagedControlPlane",
            "metadata": {
                "name": "demo",
                "namespace": namespace,
                "labels": {"cluster.x-k8s.io/cluster-name": "demo"},
                "ownerReferences": owned_by(cluster),
            },
            "spec": {"version": version, "addons": {"cni": "cilium"}},
        }
    )


async def plane_status(kube: Kube, namespace: str) -> Obj:
    found = await kube.get(MANAGED_CONTROL_PLANE, "demo", namespace)
    assert found
    return found


async def test_a_control_plane_comes_up_phase_by_phase(kube: Kube, namespace: str) -> None:
    """Contract (ControlPlane): initialized, ready, version; traps 1 and 2."""
    await make_control_plane(kube, namespace)
    workload = KubeSimulator()
    reconciler = ManagedControlPlaneReconciler(
        kube, CLOCK, RELEASES, Applier(kube, CLOCK), clients=WorkloadClients(lambda kubeconfig: workload), connect_to_etcd=EtcdSimulator().connect
    )
    await reconciler.reconcile(namespace, "demo")
    plane = await plane_status(kube, namespace)
    assert plane["status"]["externalManagedControlPlane"] is True
    assert plane["status"]["ready"] is False
    assert "load balancer" in (get_condition(plane, "EndpointAvailable") or {})["message"]

    # The load balancer gives an address; nobody waits for Cluster.spec.controlPlaneEndpoint (trap 2).
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "10.88.0.150"}]}}}
    await kube.merge(SERVICE, "demo-apiserver", namespace, ingress, subresource="status")
    await reconciler.reconcile(namespace, "demo")
    plane = await plane_status(kube, namespace)
    assert plane["spec"]["controlPlaneEndpoint"] == {"host": "10.88.0.150", "port": 6443}
    assert await kube.list(DEPLOYMENT, namespace) == [], "no API server before its certificates"
    assert {item["spec"]["duration"] for item in await kube.list(CERTIFICATE, namespace)} == {"87600h"}

    # cert-manager issues.
    cluster = await kube.get(CLUSTER, "demo", namespace)
    assert cluster
    plan = Plan.of(plane, cluster, RELEASES, "10.88.0.150")
    for part in ["ca", "etcd", "proxy", *(leaf.name for leaf in leaves(plan))]:
        leaf = next((leaf for leaf in leaves(plan) if leaf.name == part), None)
        made = with_names(make_authority(part), leaf) if leaf else make_authority(part)
        data = {key: base64.b64encode(text.encode()).decode() for key, text in (("tls.crt", made.pem), ("tls.key", key_pem(made.key)))}
        await kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"demo-{part}", "namespace": namespace}, "data": data})
    await reconciler.reconcile(namespace, "demo")
    assert [item["metadata"]["name"] for item in await kube.list(STATEFUL_SET, namespace)] == ["demo-etcd"]
    assert [item["metadata"]["name"] for item in await kube.list(DEPLOYMENT, namespace)] == ["demo-apiserver"]

    # The pods come up.
    await kube.merge(STATEFUL_SET, "demo-etcd", namespace, {"status": {"replicas": 1, "readyReplicas": 1}}, subresource="status")
    up = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1}
    await kube.merge(DEPLOYMENT, "demo-apiserver", namespace, {"status": up}, subresource="status")
    await reconciler.reconcile(namespace, "demo")
    assert {item["metadata"]["name"] for item in await kube.list(DEPLOYMENT, namespace)} == {"demo-apiserver", "demo-controller-manager", "demo-scheduler"}
    secret = await kube.get(SECRET, "demo-kubeconfig", namespace)
    assert secret and secret["type"] == "cluster.x-k8s.io/secret"
    config = json.loads(base64.b64decode(secret["data"]["value"]))
    assert config["clusters"][0]["cluster"]["server"] == "https://10.88.0.150:6443"
    assert config["current-context"] == f"demo.{namespace}"
    plane = await plane_status(kube, namespace)
    assert plane["status"]["ready"] is False, "not before kubeadm's phases"

    # The Job ends.
    from ckp.api.kinds import JOB

    job = (await kube.list(JOB, namespace))[0]["metadata"]["name"]
    now = "2026-05-01T12:00:00Z"
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("SuccessCriteriaMet", "Complete")]
    done = {"succeeded": 1, "startTime": now, "completionTime": now, "conditions": conditions}
    await kube.merge(JOB, job, namespace, {"status": done}, subresource="status")
    for part in ("controller-manager", "scheduler"):
        await kube.merge(DEPLOYMENT, f"demo-{part}", namespace, {"status": up}, subresource="status")
    await reconciler.reconcile(namespace, "demo")
    plane = await plane_status(kube, namespace)
    assert (plane["status"]["initialized"], plane["status"]["ready"], plane["status"]["version"]) == (True, True, "v1.35.1")
    assert (get_condition(plane, "Ready") or {})["status"] == "True"


async def test_components_trust_the_clusters_own_ca_and_never_a_leafs_ca_crt(kube: Kube, namespace: str) -> None:
    """ADR 3: what cert-manager writes into a leaf's ca.crt may be the root, which every cluster shares."""
    from ckp.controllers.controlplane import apiserver, etcd

    await make_control_plane(kube, namespace)
    plane, cluster = await plane_status(kube, namespace), await kube.get(CLUSTER, "demo", namespace)
    assert cluster
    plan = Plan.of(plane, cluster, RELEASES, "10.88.0.150")
    objects = [*etcd.etcd_objects(plan), apiserver.api_server(plan), apiserver.controller_manager(plan, ""), apiserver.scheduler(plan)]
    text = json.dumps(objects)
    assert '"key": "ca.crt"' not in text
    assert '"secretName"' not in text, "whole Secrets are not mounted"


async def test_a_tenants_control_plane_never_puts_out_what_manages_it(kube: Kube, namespace: str) -> None:
    """Five clusters on a full host preempted hub, Compass and controllers once."""
    from ckp.controllers.controlplane import apiserver, etcd

    await make_control_plane(kube, namespace)
    plane, cluster = await plane_status(kube, namespace), await kube.get(CLUSTER, "demo", namespace)
    assert cluster
    plan = Plan.of(plane, cluster, RELEASES, "10.88.0.150")
    hosted = [etcd.etcd_objects(plan)[-1], apiserver.api_server(plan), apiserver.controller_manager(plan, ""), apiserver.scheduler(plan)]
    classes = {obj["metadata"]["name"]: obj["value"] for obj in foundation() if obj["kind"] == "PriorityClass"}
    used = {obj["spec"]["template"]["spec"]["priorityClassName"] for obj in hosted}
    for path in sorted((REPO / "deploy").glob("*.yaml")):
        for obj in yaml.safe_load_all(path.read_text()):
            if obj["kind"] == "Deployment":
                name = obj["spec"]["template"]["spec"]["priorityClassName"]
                assert all(classes[name] > classes[other] for other in used), path.name


async def test_an_unknown_version_is_said_in_a_condition(kube: Kube, namespace: str) -> None:
    await make_control_plane(kube, namespace, version="v1.99.0")
    await ManagedControlPlaneReconciler(kube, CLOCK, RELEASES, Applier(kube, CLOCK)).reconcile(namespace, "demo")
    ready = get_condition(await plane_status(kube, namespace), "Ready") or {}
    assert (ready["status"], ready["severity"]) == ("False", "Error")
    assert "v1.99.0" in ready["message"]


async def test_workers_go_before_the_cluster(kube: Kube, namespace: str) -> None:
    """Cluster API's core skips the drain once the Cluster itself is being deleted."""
    await make_cluster(kube, namespace)
    await make_machine(kube, namespace, "m1")
    labels = {"cluster.x-k8s.io/cluster-name": "demo"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"clusterName": "demo", "bootstrap": {"dataSecretName": "x"}, "infrastructureRef": {"kind": "ByoMachineTemplate", "name": "x"}},
    }
    await kube.create(
        {
            "apiVersion": MACHINE_DEPLOYMENT.api_version,
            "kind": "MachineDeployment",
            "metadata": {"name": "demo-workers", "namespace": namespace, "labels": labels},
            "spec": {"clusterName": "demo", "selector": {"matchLabels": labels}, "template": template},
        }
    )
    reconciler = DeletionReconciler(kube)
    await reconciler.reconcile(namespace, "demo")
    assert await kube.get(MACHINE_DEPLOYMENT, "demo-workers", namespace), "nothing was asked for"
    await kube.merge(CLUSTER, "demo", namespace, {"metadata": {"annotations": {DELETE_REQUESTED_ANNOTATION: "now"}}})
    await reconciler.reconcile(namespace, "demo")
    assert await kube.get(MACHINE_DEPLOYMENT, "demo-workers", namespace) is None
    await reconciler.reconcile(namespace, "demo")
    assert await kube.get(CLUSTER, "demo", namespace), "a machine is left"
    await kube.delete(MACHINE, "m1", namespace)
    await reconciler.reconcile(namespace, "demo")
    assert await kube.get(CLUSTER, "demo", namespace) is None


async def test_an_unhealthy_worker_that_the_health_check_reports_is_replaced(kube: Kube, namespace: str, plane: TestControlPlane) -> None:
    """Contract REM-1. The health check's part is done by hand, as external.GenerateTemplate and patchUnhealthyTargets of v1.7.7 do it."""
    cluster = await make_cluster(kube, namespace)
    labels = {"cluster.x-k8s.io/cluster-name": "demo"}
    meta: Obj = {"name": "demo", "namespace": namespace, "labels": labels, "ownerReferences": owned_by(cluster)}
    await kube.create({"apiVersion": BYO_CLUSTER.api_version, "kind": "ByoCluster", "metadata": meta, "spec": {}})
    meta = {"name": "demo-workers", "namespace": namespace}
    template = {"apiVersion": BYO_REMEDIATION_TEMPLATE.api_version, "kind": "ByoRemediationTemplate", "metadata": meta}
    stored = await kube.create({**template, "spec": {"template": {"spec": {}}}})
    assert stored["spec"]["template"] == {"spec": {}}, "the API server keeps what the health check clones"
    await make_machine(kube, namespace, "m1")
    node = f"node-{namespace}"
    await kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    await kube.merge(NODE, node, None, {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, subresource="status")
    try:
        await kube.merge(MACHINE, "m1", namespace, {"status": {"nodeRef": {"name": node}}}, subresource="status")
        await kube.merge(BYO_MACHINE, "m1", namespace, {"status": {"nodeReadyAt": "2026-01-01T00:00:00Z"}}, subresource="status")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": namespace}}
        await kube.create({**secret, "data": {"value": base64.b64encode(b"kubeconfig").decode()}})
        machine = await kube.get(MACHINE, "m1", namespace)
        assert machine is not None
        owners = [{**reference, "controller": False} for reference in owned_by(machine)]
        meta = {"name": "m1", "namespace": namespace, "labels": labels, "ownerReferences": owners}
        await kube.create({"apiVersion": BYO_REMEDIATION.api_version, "kind": "ByoRemediation", "metadata": meta, **stored["spec"]["template"]})
        requests, machines = Informer(kube, BYO_REMEDIATION, namespace), Informer(kube, MACHINE, namespace)
        await requests._list()
        await machines._list()
        hosts = Informer(kube, BYO_HOST, namespace)
        clients = WorkloadClients(lambda _kubeconfig: plane.kube())  # the same API server holds the Node
        remediation = Remediation(kube, CLOCK, requests, machines, hosts, clients)
        await ByoClusterReconciler(kube, CLOCK, remediation).reconcile(namespace, "demo")
        found = await kube.get(BYO_CLUSTER, "demo", namespace)
        assert found is not None
        [made] = found["status"]["replacements"]
        assert (made["machine"], made["cause"], made["number"]) == ("m1", "Unhealthy", 1) and found["status"]["unhealthy"][0]["action"] == "Replacing"
        assert await kube.get(MACHINE, "m1", namespace) is None
    finally:
        await kube.delete(NODE, node)

"""A hosted control plane in a simulated management cluster; cert-manager, the kubelets and the Job's controller are played by the test."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ckp.api import kinds
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.certificates import AUTHORITIES, leaves
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.rules.conditions import get_condition
from ckp.runtime.controller import Result
from tests.simulators.clock import ManualClock
from tests.simulators.etcd import EtcdSimulator
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_control_plane_certificates import secret, with_names
from tests.worlds.tls import make_authority

TENANT = "ckp-default-default"
HOST = "10.88.0.150"
PARTS = ("pause", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubeadm", "coredns", "konnectivity-server", "konnectivity-agent")
UP = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1}


def release(version: str = "v1.35.1") -> InstalledRelease:
    return InstalledRelease(name=version, stamp=f"{version}-ckp", registry="r.example:5000/ckp", images=dict.fromkeys(PARTS, f"{version}-ckp"), bundles={})


class ControlPlaneWorld:
    """One ManagedControlPlane `demo` whose Service has an address and whose certificates are issued."""

    def __init__(self, etcd: EtcdSimulator | None = None) -> None:
        self.simulated_etcd = etcd or EtcdSimulator()
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT, "default"))
        self.workload = KubeSimulator(manager="ckp-controllers")
        self.clock = ManualClock(datetime(2026, 5, 1, 12, tzinfo=UTC))
        self.releases = Releases(releases={name: release(name) for name in ("v1.34.3", "v1.35.1")})
        self.reconciler = ManagedControlPlaneReconciler(
            self.kube,
            self.clock,
            self.releases,
            Applier(self.kube, self.clock),
            clients=WorkloadClients(lambda kubeconfig: self.workload),
            connect_to_etcd=self.simulated_etcd.connect,
        )

    async def start(self, **spec: Any) -> None:
        meta = {"name": "demo", "namespace": TENANT, "labels": {CLUSTER_NAME_LABEL: "demo"}}
        cluster = await self.kube.create({"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {}})
        owner = [{"apiVersion": cluster["apiVersion"], "kind": "Cluster", "name": "demo", "uid": cluster["metadata"]["uid"], "controller": True}]
        plane = {
            "apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version,
            "kind": "ManagedControlPlane",
            "metadata": {**meta, "ownerReferences": owner},
            "spec": {"version": "v1.35.1", "controlPlaneEndpoint": {"host": HOST, "port": 6443}, **spec},
        }
        made = await self.kube.create(plane)
        plan, authority = Plan.of(made, cluster, self.releases, HOST), make_authority("kubernetes")
        for part in AUTHORITIES:
            await self.kube.create(secret(plan.name(part), authority))
        for leaf in leaves(plan):
            await self.kube.create(secret(plan.name(leaf.name), with_names(authority, leaf)))
        await self.kube.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-apiserver", "namespace": TENANT}})
        await self.kube.merge(kinds.SERVICE, "demo-apiserver", TENANT, {"status": {"loadBalancer": {"ingress": [{"ip": HOST}]}}}, subresource="status")

    async def pass_once(self) -> Result:
        return await self.reconciler.reconcile(TENANT, "demo")

    async def etcd(self, ready: int) -> None:
        seen = self.kube.stored(kinds.STATEFUL_SET, "demo-etcd", TENANT)["metadata"]["generation"]
        status = {"replicas": ready, "readyReplicas": ready, "updatedReplicas": ready, "observedGeneration": seen}
        await self.kube.merge(kinds.STATEFUL_SET, "demo-etcd", TENANT, {"status": status}, subresource="status")

    async def api_server(self, **status: int) -> None:
        await self.kube.merge(kinds.DEPLOYMENT, "demo-apiserver", TENANT, {"status": status}, subresource="status")

    async def managers(self, **status: int) -> None:
        for part in ("controller-manager", "scheduler"):
            await self.kube.merge(kinds.DEPLOYMENT, f"demo-{part}", TENANT, {"status": status}, subresource="status")

    async def bootstrapped(self) -> None:
        for job in await self.kube.list(kinds.JOB, TENANT):
            await self.kube.merge(kinds.JOB, job["metadata"]["name"], TENANT, {"status": {"succeeded": 1}}, subresource="status")

    async def ready(self, **spec: Any) -> None:
        """All of it up, as after a creation."""
        await self.start(**spec)
        await self.pass_once()
        await self.etcd(len(self.simulated_etcd.names))
        await self.api_server(**UP)
        await self.pass_once()
        await self.bootstrapped()
        await self.managers(**UP)
        await self.pass_once()

    @property
    def status(self) -> Obj:
        return dict(self.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT).get("status") or {})

    def condition(self, kind: str) -> Obj:
        return get_condition(self.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT), kind) or {}

    def cut_off(self) -> None:
        """The workload cluster's API server can't be reached."""
        self.workload.on_fault(lambda verb, kind, name: KubeError(f"{verb} {kind.kind}: timed out", code=0))
